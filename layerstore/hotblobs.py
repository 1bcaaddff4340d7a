"""Regenerated blobs that are read again: spooled to unnamed files, least recently read ones dropped first.

    read of all of a blob ──▶ regenerated ──▶ reader
                                   └──▶ spool file; kept when its digest was right

Who serves blobs reads the same ones again and again: many clients pull one image, and one that was cut off comes back.
They are files, as a blob is larger than what a process may take of memory, and the kernel's page cache holds them in
memory as long as nobody else needs it. Unnamed, in the store's `tmp/`: after a crash nothing is left of them. Only blobs
that have to be made again are held, and only reads of all of one fill: kept blobs are a read of chunks anyway, a range
costs the segments that it touches, and a `save`, which reads each blob once, goes past this.

What comes back from a spool file is compared, block by block, with the BLAKE3 that the block had when it was written.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from layerstore import kernels
from layerstore.digest import Digest
from layerstore.emit import blob_record, check_range, iter_blob
from layerstore.errors import CorruptStore
from layerstore.store.catalog import Wrapping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.store.store import Store

__all__ = ["HotBlobCounters", "HotBlobs"]

_BLOCK = 1 << 20  # bytes that are compared at once
_SPAN = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class HotBlobCounters:
    """What was done since it was made.

    Attributes:
        hits: reads that a spooled blob served.
        misses: reads of regenerated blobs that were made again, all or a range.
        evictions: blobs that had to go for another.
        blobs: held now.
        bytes: disk that they take, those that are being written included.
    """

    hits: int
    misses: int
    evictions: int
    blobs: int
    bytes: int


class HotBlobs:
    """Reads blobs of one store, and holds up to `capacity` bytes of those that it regenerated.

    Two threads that miss the same blob at once both make it; one of the results is held.
    Thread safety: all methods, from any thread; an iterator belongs to one at a time.
    """

    def __init__(self, store: Store, capacity: int) -> None:
        """Hold nothing yet; with a capacity of 0, never anything."""
        self._store, self._capacity = store, capacity
        self._lock = threading.Lock()
        self._spools = OrderedDict[Digest, _Spool]()  # least recently read first
        self._bytes = self._hits = self._misses = self._evictions = 0

    def iter_blob(self, digest: Digest, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """A blob or a range of it: as `emit.iter_blob`, and with its errors."""
        record = blob_record(self._store, digest)
        end = check_range(digest, record.size, start, end)
        if record.wrapping is Wrapping.REGENERATED:
            spool = self._take(digest)
            if spool is not None:
                try:
                    for block in spool.read(start, end):
                        start += len(block)
                        yield block
                except (CorruptStore, OSError):
                    self._drop(digest, spool)
                else:
                    return
                finally:
                    self._put_back(spool)
            elif end - start == record.size and self._reserve(record.size):
                yield from self._spooled(digest, record.size)
                return
        yield from iter_blob(self._store, digest, start, end)

    def counters(self) -> HotBlobCounters:
        """All counters at one moment."""
        with self._lock:
            return HotBlobCounters(
                self._hits, self._misses, self._evictions, len(self._spools), self._bytes
            )

    def close(self) -> None:
        """Drop all that is held; what is being read stays until that ends."""
        with self._lock:
            self._capacity = 0
            spools = list(self._spools.items())
        for digest, spool in spools:
            self._drop(digest, spool)

    def _spooled(self, digest: Digest, size: int) -> Iterator[bytes]:
        """All of a blob, held if it ends well; room for it is reserved. A full disk ends the spooling and nothing else."""
        spool: _Spool | None = None
        is_held = False
        try:
            spool = self._open_spool(size)
            for block in iter_blob(self._store, digest):
                if spool is not None and not spool.write(block):
                    spool = None
                yield block
            if spool is not None and spool.finish():
                is_held = self._publish(digest, spool)
        finally:
            if not is_held:
                if spool is not None:
                    spool.close()
                with self._lock:
                    self._bytes -= size

    def _open_spool(self, size: int) -> _Spool | None:
        """An empty spool; None where there is no room that nobody else may want, or nothing is to be written."""
        folder = self._store.layout.tmp
        try:
            if self._store.read_only or shutil.disk_usage(folder).free < size + self._capacity:
                return None
            return _Spool(tempfile.TemporaryFile(dir=folder, buffering=0), size)
        except OSError:
            return None

    def _take(self, digest: Digest) -> _Spool | None:
        with self._lock:
            spool = self._spools.get(digest)
            if spool is None:
                self._misses += 1
                return None
            self._hits += 1
            self._spools.move_to_end(digest)
            spool.readers += 1
            return spool

    def _put_back(self, spool: _Spool) -> None:
        with self._lock:
            spool.readers -= 1
            self._end_if_unused(spool)

    def _drop(self, digest: Digest, spool: _Spool) -> None:
        """Give it to nobody any more; its room is free when the last reader is done."""
        with self._lock:
            if self._spools.get(digest) is spool:
                del self._spools[digest]
                spool.is_dropped = True
                self._end_if_unused(spool)

    def _end_if_unused(self, spool: _Spool) -> None:
        if spool.is_dropped and not spool.readers:
            spool.close()
            self._bytes -= spool.size

    def _reserve(self, size: int) -> bool:
        """Make room for a blob: those that are read right now stay. Whether there is room; if not, nothing has changed."""
        with self._lock:
            unused = [(digest, one) for digest, one in self._spools.items() if not one.readers]
            if self._bytes + size - sum(one.size for _, one in unused) > self._capacity:
                return False
            for digest, spool in unused:
                if self._bytes + size <= self._capacity:
                    break
                del self._spools[digest]
                self._evictions += 1
                spool.is_dropped = True
                self._end_if_unused(spool)
            self._bytes += size
            return True

    def _publish(self, digest: Digest, spool: _Spool) -> bool:
        """Hold a spool that is complete; False where another thread was quicker, or this is closed."""
        with self._lock:
            if digest in self._spools or not self._capacity:
                return False
            self._spools[digest] = spool
            return True


class _Spool:
    """A blob of `size` bytes in an unnamed file, and the BLAKE3 of each of its blocks.

    One thread writes; then any may read. `readers` and `is_dropped` are the owner's.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size
        self._rest = bytearray()
        self._hashes: list[bytes] = []
        self.readers = 0
        self.is_dropped = False

    def write(self, block: bytes) -> bool:
        """Add bytes; False, and it is closed, where the disk is full or broken."""
        self._rest += block
        while len(self._rest) >= _BLOCK:
            if not self._flush(_BLOCK):
                return False
        return True

    def finish(self) -> bool:
        """Write what is left; as `write`."""
        return not self._rest or self._flush(len(self._rest))

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """A range, in blocks. Raises: CorruptStore: the file has not what was written. OSError."""
        for at in range(start // _BLOCK * _BLOCK, end, _BLOCK):
            block = os.pread(self._file.fileno(), _BLOCK, at)
            if _hash(block) != self._hashes[at // _BLOCK]:
                raise CorruptStore("a spooled blob is damaged")
            yield block[max(start - at, 0) : end - at]

    def close(self) -> None:
        """Free its disk."""
        self._file.close()

    def _flush(self, size: int) -> bool:
        block = bytes(self._rest[:size])
        del self._rest[:size]
        self._hashes.append(_hash(block))
        try:
            if self._file.write(block) == size:
                return True
        except OSError:
            pass
        self.close()
        return False


def _hash(block: bytes) -> bytes:
    return kernels.hash_many(block, _SPAN.pack(0, len(block)))
