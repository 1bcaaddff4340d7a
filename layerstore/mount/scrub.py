"""Read all contents of a stack and compare them with their chunk IDs, before a mount shows them.

The kernel does not check what layerstore does: its decoder may give a page of a damaged frame before it has come to the
frame's checksum (docs/adr/0005). What was whole here can still be damaged later; then nothing but the kernel is asked.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from layerstore.errors import CorruptStore
from layerstore.mount.images import merged_tree
from layerstore.store.reader import DamagedChunks
from layerstore.tree import HOLE, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.digest import DiffID
    from layerstore.store.store import Store
    from layerstore.tree import Tree

__all__ = ["check_contents"]

_BATCH = 4 << 20  # bytes of contents in memory at once
_MOST_NAMES = 5


def check_contents(store: Store, diff_ids: Sequence[DiffID]) -> None:
    """Read every chunk that the merged tree of a stack needs, once.

    Raises: NotFound: a layer is not in this store. CorruptStore: files are damaged; it names some.
    """
    tree = merged_tree(store, diff_ids)
    with store.hold(*diff_ids):
        needed = tree.extents[tree.extents["number"] != HOLE]
        numbers, first = np.unique(needed["number"], return_index=True)
        batches = np.cumsum(needed["length"][first], dtype="i8") // _BATCH
        damaged: list[int] = []
        for batch in np.split(numbers, np.flatnonzero(np.diff(batches)) + 1):
            try:
                store.reader.read(batch)
            except DamagedChunks as error:
                damaged += error.numbers
    if damaged:
        raise CorruptStore(_told(tree, np.array(damaged, "u8")))


def _told(tree: Tree, damaged: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> str:
    """Which files cannot be shown, for people."""
    is_bad = np.isin(tree.extents["number"], damaged)
    bad = np.concatenate([[0], np.cumsum(is_bad)])
    first = tree.inodes["extent"].astype("i8")
    is_file = tree.inodes["kind"] == Kind.FILE
    hit = is_file & (
        bad[np.where(is_file, first + tree.inodes["extents"], 0)] > bad[np.where(is_file, first, 0)]
    )
    paths = [f"/{os.fsdecode(path)}" for path, inode in tree.walk() if hit[inode]]
    some = ", ".join(map(repr, paths[:_MOST_NAMES]))
    more = f" and {len(paths) - _MOST_NAMES} more" if len(paths) > _MOST_NAMES else ""
    return f"nothing is mounted: damaged on disk: {some}{more}; `layerstore verify` says what else is hit"
