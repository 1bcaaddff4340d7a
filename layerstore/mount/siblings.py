"""Who reads one small file after another will want the next ones: they are decoded together, before they are asked for.

    a   b   c │ d   e   f   g   h │ i …      files of one directory, in the order in which it is listed
            ▲           ▲         ▲
         read last     read ───▶ in the cache by now

The kernel reads ahead within a file. Reading one file after the other is what it cannot see, and what costs most: a
request, a look-up and a decoder for a few KiB each. Extents of siblings stand one behind another in a tree, so a file
that begins where the one before it ended is a sequence, and the ones behind it are read in steps that grow.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from layerstore.errors import CorruptStore
from layerstore.tree import HOLE, Kind

if TYPE_CHECKING:
    from layerstore.view import View

__all__ = ["SiblingReader"]

_FIRST_STEP, _LAST_STEP = 256 << 10, 2 << 20  # bytes of contents
_SEQUENCES = 16  # followed at once: one for each level of a `find`, and several readers
_GAP = 8  # extents that a sequence may leave out


@dataclass(slots=True)
class _Sequence:
    """Somebody who reads file after file; all positions are among the extents of the tree.

    Attributes:
        at: where the last file that was read ended.
        known: up to where contents were read ahead.
        step: bytes that are read ahead next time.
    """

    at: int
    known: int
    step: int = _FIRST_STEP


class SiblingReader:
    """Brings contents into the cache that a view reads through. Thread safety: all methods, from any thread."""

    def __init__(self, view: View) -> None:
        """Look at the tree of the view once; reading ahead is of no use if its contents come without a cache."""
        tree = view.tree
        self._tree, self._contents = tree, view.contents
        stored = np.where(tree.extents["number"] == HOLE, 0, tree.extents["length"])
        self._bytes = np.concatenate([[0], np.cumsum(stored, dtype="i8")])
        self._ends = _ends_of_siblings(view)
        self._lock = threading.Lock()
        self._sequences = deque[_Sequence](maxlen=_SEQUENCES)

    def before_read(self, inode: int, offset: int, size: int) -> None:
        """Somebody is about to read this; when it ends a file of a sequence, files behind it are read too.

        Damage is not told here: who reads it will see.
        """
        row = self._tree.inodes[inode]
        count = int(row["extents"])
        if not count or offset + size < int(row["size"]):
            return
        first = int(row["extent"])
        begin, end = self._plan(first, first + count, int(self._ends[inode]))
        numbers = self._tree.extents["number"][begin:end]
        with suppress(CorruptStore):
            self._contents.read(numbers[numbers != HOLE])

    def _plan(self, first: int, end: int, last: int) -> tuple[int, int]:
        """The extents to read when a file ends at `end`, of siblings that end at `last`; none most of the time."""
        with self._lock:
            found = next((one for one in self._sequences if 0 <= first - one.at <= _GAP), None)
            if found is None:
                self._sequences.append(_Sequence(end, end))
                return end, end
            found.at = end
            # What is left should last until the next step is done.
            if self._bytes[max(found.known, end)] - self._bytes[end] > found.step // 2:
                return end, end
            begin = max(first, found.known)
            until = int(np.searchsorted(self._bytes, self._bytes[end] + found.step, "right")) - 1
            until = max(min(until, last), begin)
            found.known, found.step = until, min(2 * found.step, _LAST_STEP)
            return begin, until


def _ends_of_siblings(view: View) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """For each inode, where the extents of the files in its directory end."""
    tree = view.tree
    ends = (tree.inodes["extent"] + tree.inodes["extents"]).astype("i8")
    is_file = tree.inodes["kind"][tree.children] == Kind.FILE
    parents, children = tree.parents[is_file], tree.children[is_file]
    of_directory = np.zeros(len(tree), "i8")
    first_name = np.zeros(len(tree), "i8")
    first_name[children[::-1]] = parents[::-1]  # of an inode with several names, the first counts
    is_first = first_name[children] == parents
    np.maximum.at(of_directory, parents[is_first], ends[children[is_first]])
    return of_directory[first_name]
