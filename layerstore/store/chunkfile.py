"""The chunk address space: one sparse file, and who may write where in it.

    |frame|frame|fra…  |frame|frame|        (free)      |        (reserved by a session)       |
    0                                        64 MiB                                          128 MiB

A byte address names a frame for ever; nothing is moved. Writers reserve whole extents in a transaction and fill them
with pwrite, each its own, so that no lock is held while data is written. The file always ends on a segment border.

    free:      address (u64, big endian) -> length (u64, big endian), on 4 KiB borders, never adjacent to another
    reusable:  address of a row of `free` that is long enough to be reserved -> nothing
    state:     "file_size" -> bytes the file has, a multiple of 64 MiB

Source: docs/format.md, "Chunk file".
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from layerstore.errors import CorruptStore
from layerstore.store import files
from layerstore.store.database import pack_u64, unpack_u64
from layerstore.store.layout import BLOCK, SEGMENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layerstore.store.database import Database, Transaction

__all__ = ["WORTH_REUSING", "ChunkFile", "Extent"]

_FILE_SIZE = b"file_size"
WORTH_REUSING = 1 << 20  # a smaller free extent would cost more reservations than it saves bytes


class Extent(NamedTuple):
    """A range of addresses, half open."""

    start: int
    end: int


class ChunkFile:
    """The file `chunks` of one store.

    Thread safety: reads and writes from any thread; reservations happen inside the caller's write transaction.
    """

    def __init__(self, path: Path, database: Database, *, read_only: bool) -> None:
        flags = os.O_RDONLY if read_only else os.O_RDWR
        self._fd = os.open(path, flags | os.O_CLOEXEC)
        self._database = database

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def read(self, address: int, length: int) -> bytes:
        """Bytes at an address; fewer where the file ends."""
        return files.pread_exactly(self._fd, length, address)

    def write(self, address: int, data: bytes) -> None:
        """Write into an extent that this session has reserved; durable after `sync`.

        Raises: StoreFull.
        """
        with files.no_room("write chunks"):
            files.pwrite_all(self._fd, data, address)

    def sync(self) -> None:
        """Make all that was written durable."""
        with files.no_room("write chunks"):
            files.fdatasync(self._fd)

    def punch(self, extent: Extent) -> None:
        """Give the blocks wholly inside a range back to the filesystem.

        Raises: StoreFull: a filesystem may need room to say that there is a hole.
        """
        start, end = -(-extent.start // BLOCK) * BLOCK, extent.end // BLOCK * BLOCK
        with files.no_room("give blocks back"):
            files.punch_hole(self._fd, start, end - start)

    def allocated_bytes(self) -> int:
        """What the file takes on disk."""
        return os.fstat(self._fd).st_blocks * 512

    def reserve(self, txn: Transaction) -> Extent:
        """Take an extent of at most one segment out of the free list, or grow the file by one.

        Raises: StoreFull.
        """
        cursor = self._database.cursor(txn, "reusable")
        if cursor.first():
            start = unpack_u64(cursor.key())
            end = start + self._take_free(txn, start)
            taken = Extent(start, min(end, start + SEGMENT))
            if taken.end < end:
                self._put_free(txn, taken.end, end - taken.end)
            return taken
        size = self.size(txn)
        with files.no_room("grow the chunk file"):
            os.ftruncate(self._fd, max(size + SEGMENT, os.fstat(self._fd).st_size))
        self._database.put(txn, "state", _FILE_SIZE, pack_u64(size + SEGMENT))
        return Extent(size, size + SEGMENT)

    def release(self, txn: Transaction, extent: Extent) -> None:
        """Give the blocks wholly behind `extent.start` back to the free list, joined with their free neighbours."""
        start = -(-extent.start // BLOCK) * BLOCK
        end = extent.end
        if start >= end:
            return
        cursor = self._database.cursor(txn, "free")
        if cursor.set_range(pack_u64(end)) and cursor.key() == pack_u64(end):
            end += self._take_free(txn, end)
        cursor = self._database.cursor(txn, "free")
        if cursor.set_range(pack_u64(start)):
            found = cursor.prev()
        else:
            found = cursor.last()
        if found:
            before, length = unpack_u64(cursor.key()), unpack_u64(cursor.value())
            if before + length == start:
                start = before
        self._put_free(txn, start, end - start)

    def restore_size(self, txn: Transaction) -> None:
        """Make the file as long as the address space again: it was cut short, or a crash undid its growth."""
        with files.no_room("grow the chunk file"):
            os.ftruncate(self._fd, max(self.size(txn), os.fstat(self._fd).st_size))

    def size(self, txn: Transaction) -> int:
        """The size of the address space."""
        value = self._database.get(txn, "state", _FILE_SIZE)
        return unpack_u64(value) if value else 0

    def free_extents(self, txn: Transaction) -> Iterator[Extent]:
        """The free list, ascending."""
        for key, value in self._database.items(txn, "free"):
            start = unpack_u64(key)
            yield Extent(start, start + unpack_u64(value))

    def stale_extents(self, txn: Transaction) -> Iterator[Extent]:
        """Ranges of the free list that take disk space all the same, ascending: a crash came before their hole was durable."""
        for extent in self.free_extents(txn):
            for start, end in self._data_in(extent):
                # A filesystem with smaller blocks than ours may begin in the middle of one.
                yield Extent(start // BLOCK * BLOCK, min(-(-end // BLOCK) * BLOCK, extent.end))

    def claim(self, txn: Transaction, extent: Extent) -> list[Extent]:
        """Take out of the free list what of a range is still on it."""
        claimed = []
        for start, end in list(self._free_rows(txn, extent)):
            self._take_free(txn, start)
            ours = Extent(max(start, extent.start), min(end, extent.end))
            if start < ours.start:
                self._put_free(txn, start, ours.start - start)
            if ours.end < end:
                self._put_free(txn, ours.end, end - ours.end)
            claimed.append(ours)
        return claimed

    def _data_in(self, extent: Extent) -> Iterator[Extent]:
        """Stretches of a range that are no holes."""
        at = extent.start
        while at < extent.end:
            try:
                start = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # holes up to the file's end
                    return
                raise
            if start >= extent.end:
                return
            at = min(os.lseek(self._fd, start, os.SEEK_HOLE), extent.end)
            yield Extent(start, at)

    def _free_rows(self, txn: Transaction, extent: Extent) -> Iterator[Extent]:
        """Rows of the free list that a range touches."""
        cursor = self._database.cursor(txn, "free")
        if cursor.set_range(pack_u64(extent.start)):
            more = unpack_u64(cursor.key()) == extent.start or cursor.prev() or cursor.first()
        else:
            more = cursor.last()
        while more:
            start = unpack_u64(cursor.key())
            end = start + unpack_u64(cursor.value())
            if start >= extent.end:
                return
            if end > extent.start:
                yield Extent(start, end)
            more = cursor.next()

    def _put_free(self, txn: Transaction, start: int, length: int) -> None:
        self._database.put(txn, "free", pack_u64(start), pack_u64(length))
        if length >= WORTH_REUSING:
            self._database.put(txn, "reusable", pack_u64(start), b"")

    def _take_free(self, txn: Transaction, start: int) -> int:
        """Take a range off the free list; returns its length."""
        length = self._database.get(txn, "free", pack_u64(start))
        if length is None:
            raise CorruptStore("the store's tables are damaged: the free list")
        self._database.delete(txn, "free", pack_u64(start))
        self._database.delete(txn, "reusable", pack_u64(start))
        return unpack_u64(length)
