"""Bytes come in: a layer blob to chunks, recipe and tree; a blob kept as it is.

    blob > verify > decompress > verify > split tar > cut + hash > look up > compress new > append > recipe > commit

The first four stages (`cutting`) each run ahead in a thread of their own (`ahead`).

Source: docs/architecture.md, "One image on its way in".
"""

from layerstore.ingest.cutting import Expected, LayerCutter, Piece, find_chunks, verify_layer
from layerstore.ingest.storing import IngestReport, ingest_blob, ingest_document, ingest_layer

__all__ = [
    "Expected",
    "IngestReport",
    "LayerCutter",
    "Piece",
    "find_chunks",
    "ingest_blob",
    "ingest_document",
    "ingest_layer",
    "verify_layer",
]
