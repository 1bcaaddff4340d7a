"""A store with an index as large as one likes: rows of chunks that are nowhere, layers and images that need them.

Everything that reads only tables and recipes (look-ups, garbage collection, `df`) finds what it would find in a real
store of that size; the recipes are real chunks.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import numpy as np

from layerstore.digest import DiffID, digest_of
from layerstore.formats import oci
from layerstore.formats.recipe import OP, Part, encode_part
from layerstore.ingest import ingest_document
from layerstore.store.catalog import BlobRecord, ImageRecord, LayerRecord, Stretch, Wrapping
from layerstore.store.database import pack_u64
from layerstore.store.index import PLACE
from layerstore.store.layout import SEGMENT
from layerstore.tree import EXTENT, ROW, Entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerstore.store.database import Transaction
    from layerstore.store.session import WriteSession
    from layerstore.store.store import Store

__all__ = ["add_layers", "add_rows", "made_ids"]

_ENCODED = 8000  # bytes of a frame, about what a real one has
_RUN = 510
_GROUP = 100  # runs in one transaction
_LAYERS_OF_IMAGE = 10


def add_rows(store: Store, chunks: int) -> int:
    """Rows of chunks that are nowhere; returns the number of the first."""
    with store.write() as txn:
        size = chunks * _ENCODED // SEGMENT * SEGMENT + SEGMENT
        store.database.put(txn, "state", b"file_size", pack_u64(size))
    os.truncate(store.layout.chunks, size)
    for at in range(0, chunks, _GROUP * _RUN):
        count = min(_GROUP * _RUN, chunks - at)
        places = np.zeros(count, PLACE)
        places["address"] = (np.arange(count, dtype="u8") + np.uint64(at)) * np.uint64(_ENCODED)
        places["encoded"], places["decoded"] = _ENCODED, 4 * _ENCODED
        ids = made_ids(at, count)
        places["id"] = np.frombuffer(b"".join(ids), "V32")
        with store.write() as txn:
            store.index.insert(txn, ids, places)
    return 1


def made_ids(start: int, count: int) -> list[bytes]:
    """The chunk IDs of rows `start` to `start + count`; `start` is a multiple of what one transaction takes."""
    data = np.random.default_rng(start).bytes(count * 32)
    return [data[at : at + 32] for at in range(0, len(data), 32)]


def add_layers(store: Store, first: int, chunks: int, layers: int) -> None:
    """Layers that need the chunks in order, in images of ten; the last tenth belongs to no image."""
    each = chunks // layers
    diff_ids = [DiffID(digest_of(b"%d" % number)) for number in range(layers)]
    with store.begin() as session:
        for at in range(0, layers, 1000):
            parts = [
                session.put_bytes(part) for part in _parts(first, each, at, min(at + 1000, layers))
            ]
            with session.commit() as txn:
                for diff_id, part in zip(diff_ids[at : at + 1000], parts, strict=True):
                    stretch = Stretch((), tuple(session.numbers_of(part).tolist()))
                    record = LayerRecord(each * 4 * _ENCODED, 0, (stretch,), 0)
                    session.catalog.put_layer(txn, diff_id, record)
    with store.begin() as session:
        images = [
            _image(session, diff_ids[at : at + _LAYERS_OF_IMAGE])
            for at in range(0, layers * 9 // 10, _LAYERS_OF_IMAGE)
        ]
        with session.commit() as txn:
            for number, put in enumerate(images):
                put(txn, f"made.example/image:{number}")


def _image(session: WriteSession, diff_ids: list[DiffID]) -> Callable[[Transaction, str], None]:
    """An image as `load` leaves it: documents, record, name. Its manifest names the layers as plain tars."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    data = json.dumps(config).encode()
    manifest = oci.encode_manifest(
        oci.Descriptor(oci.OCI_CONFIG, digest_of(data), len(data)),
        [oci.Descriptor(oci.OCI_LAYER, diff_id, 0) for diff_id in diff_ids],
    )
    documents = [(one, ingest_document(one, session)) for one in (data, manifest)]

    def put(txn: Transaction, name: str) -> None:
        for document, stretches in documents:
            record = BlobRecord(len(document), Wrapping.KEPT, None, "none", stretches())
            session.catalog.put_blob(txn, digest_of(document), record)
        image = ImageRecord(digest_of(data), tuple(diff_ids), 0)
        session.catalog.put_image(txn, digest_of(manifest), image)
        session.catalog.put_ref(txn, name, digest_of(manifest))

    return put


def _parts(first: int, each: int, start: int, end: int) -> Iterator[bytes]:
    nothing = Entries(np.empty(0, ROW), b"", b"", b"")
    for number in range(start, end):
        extents = np.empty(each, EXTENT)
        extents["number"] = np.arange(first + number * each, first + (number + 1) * each)
        extents["length"] = 4 * _ENCODED
        yield encode_part(Part(np.array([(0, each)], OP), extents, nothing))
