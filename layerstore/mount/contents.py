"""Names of contents: two files of a store with the same chunks are one content, whatever image they are in.

    name = BLAKE3(EXTENT records of the file: u64 chunk number, u32 length, gaps of sparse files included)

Chunk numbers are a store's own, and so are the names. A file of nothing or of zeros only has no name: it needs no bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore import kernels
from layerstore.tree import EXTENT, HOLE, Kind

if TYPE_CHECKING:
    import numpy.typing as npt

    from layerstore.tree import Tree

__all__ = ["Contents", "name_contents"]

_NAME = 32


class Contents(NamedTuple):
    """The contents of a tree.

    Attributes:
        of_inodes: content name of each inode, 32 bytes; None where there is none.
        inodes: distinct contents: name -> an inode that has it.
    """

    of_inodes: list[bytes | None]
    inodes: dict[bytes, int]


def name_contents(tree: Tree) -> Contents:
    """Name the contents of all files."""
    is_file = tree.inodes["kind"] == Kind.FILE
    first, count = tree.inodes["extent"].astype("i8"), tree.inodes["extents"].astype("i8")
    real = np.concatenate([[0], np.cumsum(tree.extents["number"] != HOLE)])
    last = np.where(is_file, first + count, 0)
    begin = np.where(is_file, first, 0)
    named = np.flatnonzero(is_file & (real[last] > real[begin]))
    spans: npt.NDArray[np.uint64] = np.stack([first[named], count[named]], axis=1).astype("<u8")
    hashes = kernels.hash_many(
        tree.extents.astype(EXTENT).tobytes(), (spans * np.uint64(EXTENT.itemsize)).tobytes()
    )
    names = [hashes[at : at + _NAME] for at in range(0, len(hashes), _NAME)]
    of_inodes: list[bytes | None] = [None] * len(tree.inodes)
    inodes: dict[bytes, int] = {}
    for inode, name in zip(named.tolist(), names, strict=True):
        of_inodes[inode] = name
        inodes.setdefault(name, inode)
    return Contents(of_inodes, inodes)
