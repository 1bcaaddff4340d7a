"""The directories of an EROFS image, laid out for all of a tree at once.

    block:  DIRENT of each entry   the names, one behind another   zeros

A directory is its entries and `.` and `..`, sorted by bytes, in as few blocks of 4 KiB as keep the order. "Slots" are
all entries of all directories in that order; a directory's "ordinal" counts directories by inode number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.formats.erofs.ondisk import BLOCK, DIRENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

__all__ = ["Directories", "arrange_directories", "scatter"]

_DOT = ord(".")
_SIZE = DIRENT.itemsize


class Directories(NamedTuple):
    """Where each entry stands; addresses of blocks are not known yet.

    Attributes:
        inodes: inode number of each directory, ascending.
        blocks: how many blocks each has.
        tails: bytes used in each one's last block.
        block_owner: ordinal of the directory of each block.
        slot_block: block of each slot.
        slot_rank: place of each slot in its block.
        slot_inode: inode number that the slot names.
        slot_name: offset of its name in its block.
        name_start: offset of its name in the heap.
        name_length: bytes of its name.
        heap: all names.
    """

    inodes: Ints
    blocks: Ints
    tails: Ints
    block_owner: Ints
    slot_block: Ints
    slot_rank: Ints
    slot_inode: Ints
    slot_name: Ints
    name_start: Ints
    name_length: Ints
    heap: npt.NDArray[np.uint8]

    def fill(
        self,
        image: npt.NDArray[np.uint8],
        addresses: Ints,
        nids: Ints,
        types: npt.NDArray[np.uint8],
    ) -> None:
        """Write every block at its byte address; `nids` and `types` are by inode number."""
        records = np.zeros(len(self.slot_inode), DIRENT)
        records["nid"] = nids[self.slot_inode]
        records["name"] = self.slot_name
        records["type"] = types[self.slot_inode]
        base = addresses[self.slot_block]
        at = base + _SIZE * self.slot_rank
        image[at[:, None] + np.arange(_SIZE)] = records.view("u1").reshape(-1, _SIZE)
        scatter(image, base + self.slot_name, self.heap, self.name_start, self.name_length)


def arrange_directories(
    is_directory: npt.NDArray[np.bool_],
    parents: npt.NDArray[np.uint32],
    children: npt.NDArray[np.uint32],
    names: Sequence[bytes],
) -> Directories:
    """Lay out directories whose entries come sorted by (parent, name); inode 0 is the root."""
    inodes = np.flatnonzero(is_directory)
    ordinal = np.cumsum(is_directory) - 1
    owner = ordinal[parents]
    above = np.zeros(len(is_directory), "i8")  # the parent of each directory; the root is its own
    above[children[is_directory[children]]] = parents[is_directory[children]]

    heap = np.frombuffer(b"".join(names) + b"..", "u1")
    lengths = np.fromiter(map(len, names), "i8", len(names))
    starts = np.cumsum(lengths) - lengths
    first, second = (
        heap[starts],
        heap[starts + 1],
    )  # a name that begins with a dot has a second byte
    before_dot = first < _DOT
    before_dots = before_dot | (first == _DOT) & (second < _DOT)

    count = len(inodes)
    many = np.bincount(owner, minlength=count)
    begin = np.cumsum(many) - many + 2 * np.arange(count)
    dot = begin + np.bincount(owner[before_dot], minlength=count)
    dots = begin + np.bincount(owner[before_dots], minlength=count) + 1
    slot = np.arange(len(names)) + 2 * owner + ~before_dot + ~before_dots

    slots = len(names) + 2 * count
    slot_inode, name_start, name_length = (np.empty(slots, "i8") for _ in range(3))
    slot_inode[slot], slot_inode[dot], slot_inode[dots] = children, inodes, above[inodes]
    name_start[slot], name_start[dot], name_start[dots] = starts, len(heap) - 1, len(heap) - 2
    name_length[slot], name_length[dot], name_length[dots] = lengths, 1, 2

    ends = np.concatenate([[0], np.cumsum(name_length + _SIZE)])
    block_first = _cut_blocks(ends, np.append(begin, slots))
    block_slots = np.diff(np.append(block_first, slots))
    block_owner = np.searchsorted(begin, block_first, side="right") - 1
    slot_block = np.repeat(np.arange(len(block_first)), block_slots)
    slot_rank = np.arange(slots) - block_first[slot_block]
    # Names so far in the block, behind all of its records.
    slot_name = (
        ends[:-1] - ends[block_first][slot_block] + _SIZE * (block_slots[slot_block] - slot_rank)
    )
    blocks = np.bincount(block_owner, minlength=count)
    used = ends[block_first + block_slots] - ends[block_first]
    tails = used[np.cumsum(blocks) - 1]
    return Directories(
        inodes, blocks, tails, block_owner,
        slot_block, slot_rank, slot_inode, slot_name, name_start, name_length, heap,
    )  # fmt: skip


def scatter(
    image: npt.NDArray[np.uint8],
    targets: Ints,
    heap: npt.NDArray[np.uint8],
    starts: Ints,
    lengths: Ints,
) -> None:
    """Copy `lengths[i]` bytes from `starts[i]` of the heap to `targets[i]` of the image, for all i."""
    before = np.cumsum(lengths) - lengths
    steps = np.arange(int(lengths.sum()))
    image[steps + np.repeat(targets - before, lengths)] = heap[
        steps + np.repeat(starts - before, lengths)
    ]


def _cut_blocks(ends: Ints, bounds: Ints) -> Ints:
    """The first slot of each block: as many slots to a block as fit, a new block for each directory."""
    extra = []
    for ordinal in np.flatnonzero(ends[bounds[1:]] - ends[bounds[:-1]] > BLOCK).tolist():
        at, until = int(bounds[ordinal]), int(bounds[ordinal + 1])
        while (at := int(np.searchsorted(ends, ends[at] + BLOCK, side="right")) - 1) < until:
            extra.append(at)
    return np.sort(np.concatenate([bounds[:-1], np.array(extra, "i8")]))
