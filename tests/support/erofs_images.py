"""EROFS images of trees whose chunks are invented, and what an image says as `trees.shown` says it of a tree.

    tree = tree_of(file(b"a", (7, 5000)))
    shown_by(read_image(write_image(tree, spans_of(tree), DEVICE_BYTES, UUID))) == shown(tree)

The chunk of number n lies at n * 2 MiB; odd ones compress, even ones grow.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from layerstore.formats.erofs import place_extents
from layerstore.merge import merge
from layerstore.tree import HOLE, Kind, Tree
from tests.support.trees import Extents, Item, Shown, directory, layer_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from layerstore.formats.erofs import Image, Node

__all__ = [
    "DEVICE_BYTES",
    "UUID",
    "encoded_length",
    "joined_holes",
    "shown_by",
    "spans_of",
    "tree_of",
]

UUID = bytes(range(16))
STRIDE = 2 << 20
DEVICE_BYTES = 1 << 50
PLACE = np.dtype([("address", "<u8"), ("encoded", "<u4"), ("decoded", "<u4"), ("id", "V32")])


def tree_of(*items: Item) -> Tree:
    """The tree of one layer with these rows; its root is written down."""
    tree = merge([layer_of(directory(b""), *items)])
    assert tree.warnings == ()
    return tree


def encoded_length(number: int, length: int) -> int:
    return length // 2 + 1 if number % 2 else length + 13


def spans_of(tree: Tree) -> npt.NDArray[np.void]:
    real = tree.extents[tree.extents["number"] != HOLE].tolist()
    places = [(n * STRIDE, encoded_length(n, length), length, b"") for n, length in real]
    return place_extents(tree.extents, np.array(places, PLACE))


def shown_by(image: Image) -> dict[bytes, Shown]:
    """Every path of an image; the number of a chunk follows from its address. Neighbouring zeros are one extent."""
    paths = list(image.walk())
    names: dict[int, list[bytes]] = {}
    for path, node in paths:
        names.setdefault(node.nid, []).append(path)
    return {
        path: Shown(
            node.kind,
            node.mode,
            (node.uid, node.gid),
            (node.mtime, node.nsec),
            node.size if node.kind in (Kind.FILE, Kind.SYMLINK) else 0,
            node.device,
            node.target,
            tuple(sorted(node.xattrs.items())),
            _extents(node),
            tuple(sorted(names[node.nid])) if node.kind is not Kind.DIRECTORY else (),
        )
        for path, node in paths
    }


def _extents(node: Node) -> Extents:
    if node.kind is Kind.FILE and node.size and not node.extents:
        return ((HOLE, node.size),)
    for extent in node.extents:
        if extent.address is not None:
            number = extent.address // STRIDE
            assert extent.encoded == encoded_length(number, extent.length)
            assert extent.partial == (extent.encoded >= extent.length)
    return tuple(
        (HOLE if one.address is None else one.address // STRIDE, one.length) for one in node.extents
    )


def joined_holes(shown: dict[bytes, Shown]) -> dict[bytes, Shown]:
    """As `shown_by` gives it: neighbouring zeros are one extent, sizes are those of files and links."""
    return {path: one._replace(extents=tuple(_joined(one.extents))) for path, one in shown.items()}


def _joined(extents: Extents) -> Iterable[tuple[int, int]]:
    for is_hole, group in groupby(extents, lambda extent: extent[0] == HOLE):
        if is_hole:
            yield HOLE, sum(length for _, length in group)
        else:
            yield from group
