"""Chunks that are about to be freed: no look-up finds them any more, and their places are still there.

    condemned:  first number of 8192 (u64, big endian) -> bitmap of those that are condemned, low bit first
    state:      "condemned_before" -> sessions with a smaller number may have found one of them (u64, big endian)

Source: docs/durability.md, "Garbage collection".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerstore.errors import CorruptStore
from layerstore.store.database import pack_u64, unpack_u64

if TYPE_CHECKING:
    import numpy.typing as npt

    from layerstore.store.database import Database, Transaction

__all__ = ["CondemnedTable"]

_WINDOW = 8192  # numbers in one row: three rows fill an LMDB page
_BEFORE = b"condemned_before"


class CondemnedTable:
    """The table `condemned`. Thread safety: stateless; transactions are the caller's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, txn: Transaction, numbers: npt.NDArray[np.uint64]) -> None:
        """Condemn chunks, in any order."""
        self._set(txn, numbers, True)

    def remove(self, txn: Transaction, numbers: npt.NDArray[np.uint64]) -> None:
        """Take chunks out: freed, or given back."""
        self._set(txn, numbers, False)

    def numbers(self, txn: Transaction) -> npt.NDArray[np.uint64]:
        """All that are condemned, ascending. Raises: CorruptStore."""
        found = [np.empty(0, "u8")]
        for key, value in self._database.items(txn, "condemned"):
            found.append(np.flatnonzero(_bits(value)).astype("u8") + np.uint64(unpack_u64(key)))
        return np.concatenate(found)

    def sessions_before(self, txn: Transaction) -> int:
        """Sessions with a smaller number than this may know a condemned chunk."""
        value = self._database.get(txn, "state", _BEFORE)
        return unpack_u64(value) if value else 0

    def set_sessions_before(self, txn: Transaction, session: int) -> None:
        """Say so, in the transaction that condemns."""
        self._database.put(txn, "state", _BEFORE, pack_u64(session))

    def _set(self, txn: Transaction, numbers: npt.NDArray[np.uint64], value: bool) -> None:
        numbers = np.sort(numbers)
        windows = numbers // np.uint64(_WINDOW)
        starts = np.flatnonzero(np.diff(windows, prepend=np.uint64(1 << 63)))
        for at, until in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)], strict=True):
            first = int(windows[at]) * _WINDOW
            key = pack_u64(first)
            row = self._database.get(txn, "condemned", key)
            bits = np.zeros(_WINDOW, "u1") if row is None else _bits(row).copy()
            bits[(numbers[at:until] - np.uint64(first)).astype("i8")] = value
            if bits.any():
                packed = np.packbits(bits, bitorder="little").tobytes()
                self._database.put(txn, "condemned", key, packed)
            else:
                self._database.delete(txn, "condemned", key)


def _bits(row: bytes) -> npt.NDArray[np.uint8]:
    if len(row) != _WINDOW // 8:
        raise CorruptStore("the store's tables are damaged: a row of condemned chunks")
    return np.unpackbits(np.frombuffer(row, "u1"), bitorder="little")
