"""EROFS images over the chunk file: trees in, bytes out, and back."""

from __future__ import annotations

from layerstore.formats.erofs.reader import Extent, Image, Node, dump, read_image
from layerstore.formats.erofs.writer import (
    SPAN,
    DataFiles,
    content_path,
    place_extents,
    write_data_image,
    write_image,
    write_metadata_image,
)

__all__ = [
    "SPAN",
    "DataFiles",
    "Extent",
    "Image",
    "Node",
    "content_path",
    "dump",
    "place_extents",
    "read_image",
    "write_data_image",
    "write_image",
    "write_metadata_image",
]
