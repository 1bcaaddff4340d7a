"""Which blocks of the chunk file belong to nobody: no chunk, no session, and not on the free list.

A block belongs to a chunk if a byte of the chunk's frame is in it. Frames lie at any address, so a block is free only
when the last frame that touches it is; that is why all places are looked at, and not only those that go. Blocks of
nobody also come from frames that two sessions wrote of the same chunk, of which one counts.

Only garbage collection takes blocks of nobody, so they stay what they are until it does: sessions take from the free
list and from the file's end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerstore.errors import CorruptStore
from layerstore.store.chunkfile import Extent
from layerstore.store.layout import BLOCK
from layerstore.store.sessionstate import SessionTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from layerstore.store.database import Transaction
    from layerstore.store.store import Store

__all__ = ["NOBODY", "SHARED", "blocks_of_owners", "chunk_blocks", "unowned_extents"]

NOBODY = -1
SHARED = np.iinfo(np.int32).max

_RECORDS = 1 << 16  # places that are looked at in one go


def unowned_extents(
    store: Store,
    txn: Transaction,
    is_kept: Callable[[int, int], npt.NDArray[np.bool_]] | None = None,
) -> list[Extent]:
    """Ranges of blocks that belong to nobody, ascending, neighbours joined.

    One byte of memory for each 4 KiB of the chunk file. With `is_kept(first, count)`, chunks of which it says no count
    as gone already.
    """
    owned = np.zeros(store.chunkfile.size(txn) // BLOCK, np.bool_)
    for start, end in store.chunkfile.free_extents(txn):
        owned[start // BLOCK : end // BLOCK] = True
    for _, session in SessionTable(store.database).items(txn):
        for start, end, _ in session.extents:
            owned[start // BLOCK : -(-end // BLOCK)] = True
    _own_frames(owned, store, txn, is_kept)
    edges = np.flatnonzero(np.diff(owned, prepend=True, append=True)) * BLOCK
    return [Extent(start, end) for start, end in edges.reshape(-1, 2).tolist()]


def chunk_blocks(store: Store, txn: Transaction) -> int:
    """Blocks that chunks with a place touch: what the chunk file needs at least."""
    owned = np.zeros(store.chunkfile.size(txn) // BLOCK, np.bool_)
    _own_frames(owned, store, txn, None)
    return int(np.count_nonzero(owned))


def blocks_of_owners(
    store: Store, txn: Transaction, owners: npt.NDArray[np.int32], count: int
) -> npt.NDArray[np.int64]:
    """How many blocks come back when all chunks of one owner go, for each of `count` owners.

    `owners` says it by chunk number: an owner, NOBODY for garbage, SHARED for what goes with none of them. Eight bytes of
    memory for each 4 KiB of the chunk file.
    """
    blocks = store.chunkfile.size(txn) // BLOCK
    low, high = np.full(blocks, SHARED, "i4"), np.full(blocks, NOBODY, "i4")
    for _, session in SessionTable(store.database).items(txn):
        for start, end, _ in session.extents:
            high[start // BLOCK : -(-end // BLOCK)] = SHARED
    for first, run in store.index.runs(txn):
        owner = owners[first : first + len(run)]
        is_owned = (owner != NOBODY) & (run["encoded"] > 0)
        owner, frames = owner[is_owned], run[is_owned]
        for touched, rows in _touched(frames, blocks):
            np.minimum.at(low, touched, owner[rows])
            np.maximum.at(high, touched, owner[rows])
    alone = low[(low == high) & (low != SHARED)]
    return np.bincount(alone, minlength=count)


def _own_frames(
    owned: npt.NDArray[np.bool_],
    store: Store,
    txn: Transaction,
    is_kept: Callable[[int, int], npt.NDArray[np.bool_]] | None,
) -> None:
    waiting: list[npt.NDArray[np.void]] = []
    count = 0
    for first, run in store.index.runs(txn):
        kept = run if is_kept is None else run[is_kept(first, len(run))]
        waiting.append(kept)
        count += len(kept)
        if count >= _RECORDS:
            _own(owned, waiting)
            waiting, count = [], 0
    _own(owned, waiting)


def _own(owned: npt.NDArray[np.bool_], runs: Iterable[npt.NDArray[np.void]]) -> None:
    """Mark every block that a frame touches: all first ones, then all second ones, and so on."""
    frames = [run[["address", "encoded"]] for run in runs]
    if not frames:
        return
    table = np.concatenate(frames)
    for touched, _ in _touched(table[table["encoded"] > 0], len(owned)):
        owned[touched] = True


def _touched(
    frames: npt.NDArray[np.void], blocks: int
) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]]:
    """(block, row of its frame) of all first blocks, then of all second ones, and so on."""
    first = frames["address"] // np.uint64(BLOCK)
    last = (frames["address"] + frames["encoded"] - np.uint64(1)) // np.uint64(BLOCK)
    if len(last) and int(last.max()) >= blocks:
        raise CorruptStore("a chunk lies outside the chunk file; run `layerstore verify`")
    rows = np.arange(len(frames))
    while len(first):
        yield first, rows
        longer = first < last
        first, last, rows = first[longer] + np.uint64(1), last[longer], rows[longer]
