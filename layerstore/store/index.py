"""Chunk ID -> number -> place.

    chunks:  chunk ID (32 bytes)             -> number (u64, big endian)
    places:  first number (u64, big endian)  -> up to 510 PLACE records of consecutive numbers

Numbers are dense, start at 1 and are never reused; 0 is the hole. Recipes and trees hold numbers, so that they are
small and numpy can work on whole images at once.

Source: docs/format.md, "Index".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerstore.errors import CorruptStore
from layerstore.store.database import pack_u64, unpack_u64
from layerstore.tree import HOLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from layerstore.store.database import Database, Transaction

__all__ = ["PLACE", "ChunkIndex"]

PLACE = np.dtype([("address", "<u8"), ("encoded", "<u4"), ("decoded", "<u4"), ("id", "V32")])

_RUN = 510  # records that fill six LMDB pages with their header
_NEXT_NUMBER = b"next_number"


class ChunkIndex:
    """The index of one store.

    Thread safety: stateless; transactions are the caller's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def lookup(self, txn: Transaction, ids: Sequence[bytes]) -> dict[bytes, int]:
        """The numbers of those chunk IDs that are stored."""
        found = self._database.cursor(txn, "chunks").getmulti(ids)
        return {chunk_id: unpack_u64(number) for chunk_id, number in found}

    def insert(
        self, txn: Transaction, ids: Sequence[bytes], places: npt.NDArray[np.void]
    ) -> npt.NDArray[np.uint64]:
        """Add chunks whose bytes are durable (invariant I1); returns the number of each.

        A chunk that somebody else has added meanwhile keeps its number and place; ours is garbage from here on.
        `ids` must be distinct.
        """
        known = self.lookup(txn, ids)
        fresh = [position for position, chunk_id in enumerate(ids) if chunk_id not in known]
        first = int.from_bytes(self._database.get(txn, "state", _NEXT_NUMBER) or b"\1", "big")
        numbers = np.array([known.get(chunk_id, HOLE) for chunk_id in ids], "u8")
        numbers[fresh] = np.arange(first, first + len(fresh), dtype="u8")
        rows = sorted((ids[position], pack_u64(numbers[position])) for position in fresh)
        self._database.cursor(txn, "chunks").putmulti(rows)
        records = places[fresh]
        for at in range(0, len(records), _RUN):
            run = records[at : at + _RUN].tobytes()
            self._database.put(txn, "places", pack_u64(first + at), run)
        self._database.put(txn, "state", _NEXT_NUMBER, pack_u64(first + len(fresh)))
        return numbers

    def delist(
        self, txn: Transaction, ids: Sequence[bytes], numbers: npt.NDArray[np.uint64]
    ) -> None:
        """Let no look-up find these chunks any more; they keep number and place. Quick when `ids` are sorted."""
        cursor = self._database.cursor(txn, "chunks")
        for chunk_id, number in zip(ids, numbers.tolist(), strict=True):
            # An ID that was stored again meanwhile leads to another number.
            if cursor.set_key(chunk_id) and cursor.value() == pack_u64(number):
                cursor.delete()

    def relist(
        self, txn: Transaction, ids: Sequence[bytes], numbers: npt.NDArray[np.uint64]
    ) -> None:
        """Undo `delist`. An ID that was stored again meanwhile goes on leading to the newer number."""
        rows = [(chunk_id, pack_u64(n)) for chunk_id, n in zip(ids, numbers.tolist(), strict=True)]
        self._database.cursor(txn, "chunks").putmulti(rows, overwrite=False)

    def remove(self, txn: Transaction, numbers: npt.NDArray[np.uint64]) -> int:
        """Take places away, of numbers in ascending order; returns how many there were."""
        removed = at = 0
        while at < len(numbers):
            cursor = self._database.cursor(txn, "places")
            first, run = _run_with(cursor, int(numbers[at]))
            until = int(np.searchsorted(numbers, first + len(run)))
            if until <= at:
                at += 1  # it has none
                continue
            kept = np.ones(len(run), np.bool_)
            kept[(numbers[at:until] - np.uint64(first)).astype("i8")] = False
            self._database.delete(txn, "places", pack_u64(first))
            edges = np.flatnonzero(np.diff(kept, prepend=False, append=False))
            for start, end in edges.reshape(-1, 2).tolist():
                self._database.put(txn, "places", pack_u64(first + start), run[start:end].tobytes())
            removed += until - at
            at = until
        return removed

    def move(
        self, txn: Transaction, numbers: npt.NDArray[np.uint64], places: npt.NDArray[np.void]
    ) -> None:
        """Give chunks other places, whose bytes are durable (invariant I1). Raises: CorruptStore: one has none."""
        for number, place in zip(numbers.tolist(), places, strict=True):
            first, run = _run_with(self._database.cursor(txn, "places"), number)
            if number >= first + len(run):
                raise CorruptStore(f"chunk {number} has no place; run `layerstore verify`")
            moved = run.copy()
            moved[number - first] = place
            self._database.put(txn, "places", pack_u64(first), moved.tobytes())

    def places(self, txn: Transaction, numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.void]:
        """Where these chunks lie, in the order asked; numbers may repeat, none may be the hole.

        Raises: CorruptStore: a number has no place.
        """
        wanted, inverse = np.unique(numbers, return_inverse=True)
        found = np.empty(len(wanted), PLACE)
        cursor = self._database.cursor(txn, "places")
        at = 0
        while at < len(wanted):
            first, run = _run_with(cursor, int(wanted[at]))
            until = int(np.searchsorted(wanted, first + len(run)))
            if until == at:
                raise CorruptStore(f"chunk {int(wanted[at])} has no place; run `layerstore verify`")
            found[at:until] = run[(wanted[at:until] - np.uint64(first)).astype("i8")]
            at = until
        return found[inverse]

    def runs(self, txn: Transaction, start: int = 0) -> Iterator[tuple[int, npt.NDArray[np.void]]]:
        """All places: (first number, PLACE records), ascending; from the first run on that begins at `start`."""
        cursor = self._database.cursor(txn, "places")
        more = cursor.set_range(pack_u64(start))
        while more:
            key, value = cursor.item()
            yield unpack_u64(key), _places(value)
            more = cursor.next()

    def count(self, txn: Transaction) -> int:
        """How many numbers were ever given."""
        value = self._database.get(txn, "state", _NEXT_NUMBER)
        return int.from_bytes(value, "big") - 1 if value else 0


def _run_with(cursor: Any, number: int) -> tuple[int, npt.NDArray[np.void]]:
    """The run that starts at `number`, or the next one before it."""
    key = pack_u64(number)
    if cursor.set_range(key):
        found = cursor.key() == key or cursor.prev()
    else:
        found = cursor.last()
    if not found:
        return 0, np.empty(0, PLACE)
    first, run = cursor.item()
    return unpack_u64(first), _places(run)


def _places(run: bytes) -> npt.NDArray[np.void]:
    if len(run) % PLACE.itemsize:
        raise CorruptStore("the store's tables are damaged: a run of places has the wrong length")
    return np.frombuffer(run, PLACE)
