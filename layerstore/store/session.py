"""One writer's transaction: chunks, layers, blobs and images go in, and become visible in order.

    put_chunks …  > flush: fdatasync(chunks) > LMDB commit of the index rows > numbers are known
                    commit: the same, and the caller's catalog records in the same LMDB commit

A chunk is durable before anybody can see its row (I1), a record is committed no earlier than the rows it needs (I2,
I3). A session reserves whole extents of the chunk file and fills its own. It has a record (`sessionstate`) before it
looks up the first chunk, so that garbage collection frees none whose number it may have; records of the catalog that
it relies on, or makes before something leads to them, it has to `hold`.

Source: docs/durability.md.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np

from layerstore import kernels
from layerstore.chunking import HOLE_ID
from layerstore.errors import FailedPrecondition, LayerstoreError
from layerstore.formats import frame
from layerstore.store.chunkfile import ChunkFile
from layerstore.store.index import PLACE
from layerstore.store.sessionstate import (
    SessionRecord,
    SessionTable,
    end_session,
    register_session,
)
from layerstore.tree import HOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    import numpy.typing as npt

    from layerstore.digest import Digest
    from layerstore.limits import Limits
    from layerstore.store.catalog import Catalog
    from layerstore.store.database import Database, Transaction
    from layerstore.store.index import ChunkIndex
    from layerstore.store.layout import Layout

__all__ = ["GROUP_BYTES", "WriteSession"]

GROUP_BYTES = 64 << 20  # encoded bytes between two commits
_GROUP_CHUNKS = 1 << 16  # rows between two commits
_AIM_S = 0.010  # for how long inserting rows may take before a commit, about
_FIRST_ROWS = 4096
_FEWEST_ROWS = 512  # fewer would cost more syncs than they save time
_SYNC_EVERY = (
    8 << 20
)  # encoded bytes after which writing back starts, so that the commit does not wait for all
_PIECE = frame.MAX_DECODED  # metadata is cut at this length, without looking at it

_JOBS = 2  # calls of put_chunks whose chunks are still being encoded and written

_PENDING = np.uint64(1 << 63)  # a chunk number that the next flush will give


@dataclass(slots=True)
class _Reserved:
    """An extent of ours: frames up to `used`, of which those up to `committed` have rows."""

    start: int
    end: int
    used: int
    committed: int


class WriteSession:
    """A write transaction on a store; leaving it without `commit` undoes what was not flushed.

    What was flushed without a record that reaches it is garbage that the next ingest of the same bytes uses again.
    After an error while writing (a full disk, EIO) a session only closes: the kernel reports EIO once, and the pages
    may be gone.
    Thread safety: one thread at a time.
    """

    def __init__(
        self,
        layout: Layout,
        database: Database,
        index: ChunkIndex,
        catalog: Catalog,
        limits: Limits,
    ) -> None:
        self.catalog, self.limits = catalog, limits
        self._layout, self._database, self._index = layout, database, index
        # A file description of our own: the kernel reports a failed write-back once to each of them.
        self._chunkfile = ChunkFile(layout.chunks, database, read_only=False)
        self._encoder = frame.FrameEncoder(threads=min(os.cpu_count() or 1, 4))
        self._write_back = _WriteBack(self._chunkfile)
        self._appender = _Appender()
        self._pending: dict[
            bytes, int
        ] = {}  # chunk ID -> position among all chunks that were new to us
        self._places: list[npt.NDArray[np.void]] = []  # of the pending chunks
        self._numbers = np.empty(0, "u8")  # of all chunks that were new to us, as far as flushed
        self._reserved: list[_Reserved] = []
        self._batch = _Batch()
        self._table = SessionTable(database)
        self._held: set[Digest] = set()
        self._group_bytes = 0
        self._id = 0
        self._lock: int | None = None
        self._failed: BaseException | None = None
        self._closed = False
        self.new_chunks = 0
        self.new_bytes = 0  # encoded

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def put_chunks(
        self,
        data: bytes,
        lengths: npt.NDArray[np.uint32],
        ids: bytes,
        starts: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.uint64]:
        """Store the chunks of `data` that are new; returns the number of each, or a promise of it.

        Promises are made numbers by `numbers_of`, after `flush`. Holes get the number of the hole. Encoding and
        writing go on in a thread of the session; at most two calls are behind.

        Raises: StoreFull, OSError: of this call or an earlier one; the session can only be closed then.
        """
        self._check_usable()
        self._register()
        keys = [ids[at : at + 32] for at in range(0, len(ids), 32)]
        with self._database.read() as txn:
            known = self._index.lookup(txn, keys)
        known[HOLE_ID] = HOLE
        promised = len(self._numbers)
        numbers, fresh = [], []
        for position, key in enumerate(keys):
            number = known.get(key)
            if number is None:
                pending = self._pending.get(key)
                if pending is None:
                    pending = self._pending[key] = promised + len(self._pending)
                    fresh.append(position)
                number = pending | (1 << 63)
            numbers.append(number)
        if fresh:
            self._finish_jobs(_JOBS - 1)
            self._appender.submit(partial(self._append, data, lengths, starts, keys, fresh))
        return np.array(numbers, "u8")

    def put_bytes(self, data: bytes) -> npt.NDArray[np.uint64]:
        """Store bytes that are looked at as a whole (metadata, documents), cut at fixed lengths."""
        starts = np.arange(0, len(data), _PIECE, dtype="i8")
        lengths = np.minimum(len(data) - starts, _PIECE).astype("u4")
        spans = np.stack([starts, lengths], axis=1).astype("<u8").tobytes()
        return self.put_chunks(data, lengths, kernels.hash_many(data, spans), starts)

    def hold(self, digests: Iterable[Digest]) -> None:
        """Keep records of layers and blobs from being collected until this session ends, those of the future as well.

        What a look-up finds after this stays. A manifest or index holds what it leads to.
        """
        self._check_usable()
        missing = set(digests) - self._held
        if missing:
            if not self._register(missing):
                with self._database.write() as txn:
                    self._table.hold(txn, self._id, missing)
            self._held |= missing

    def hold_new(self, txn: Transaction, digest: Digest) -> None:
        """The same of a record that this transaction puts and that nothing leads to yet."""
        if digest not in self._held:
            self._table.hold(txn, self._id, [digest])

    @property
    def group_is_full(self) -> bool:
        """Whether enough is pending for a `flush` to pay."""
        return self._group_bytes >= GROUP_BYTES or len(self._pending) >= _GROUP_CHUNKS

    def settle(self) -> None:
        """Wait until what was put is encoded and written (not durable yet); raises what went wrong on the way."""
        self._finish_jobs(0)

    def flush(self) -> None:
        """Make the pending chunks durable and visible, so that their numbers are known."""
        with self._group():
            pass

    @contextmanager
    def commit(self) -> Iterator[Transaction]:
        """Flush, and commit the records that the block puts into the catalog with the same transaction.

        Inside the block `numbers_of` knows every chunk.

            with session.commit() as txn:
                session.catalog.put_layer(txn, diff_id, record)
        """
        with self._group() as txn:
            yield txn

    def numbers_of(self, promises: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """The chunk numbers behind what `put_chunks` returned, once flushed."""
        numbers = promises.copy()
        is_promise = promises >= _PENDING
        numbers[is_promise] = self._numbers[(promises[is_promise] ^ _PENDING).astype("i8")]
        return numbers

    def close(self) -> None:
        """Drop what was not flushed and give the unused space back; the session cannot be used again.

        A second call does nothing.
        """
        if self._closed:
            return
        self._closed = True
        self._appender.close()
        self._write_back.close()
        lock, self._lock = self._lock, None
        try:
            if lock is not None:
                # Where that fails (a full disk), the next open reclaims it as it would a dead session's.
                with suppress(OSError, LayerstoreError):
                    end_session(self._database, self._chunkfile, self._id)
                    self._layout.session_lock(self._id).unlink(missing_ok=True)
                    self._database.sync_journal()
        finally:
            if lock is not None:
                os.close(lock)
            self._chunkfile.close()

    def _append(
        self,
        data: bytes,
        lengths: npt.NDArray[np.uint32],
        starts: npt.NDArray[np.int64],
        keys: Sequence[bytes],
        fresh: Sequence[int],
    ) -> None:
        """Encode chunks and write the frames one behind another into our extents."""
        view = memoryview(data)
        sizes = lengths[fresh].tolist()
        chunks = [
            view[start : start + size]
            for start, size in zip(starts[fresh].tolist(), sizes, strict=True)
        ]
        frames = self._encoder.encode(chunks)
        places = np.empty(len(frames), PLACE)
        places["encoded"] = list(map(len, frames))
        places["decoded"] = sizes
        places["id"] = np.frombuffer(b"".join([keys[position] for position in fresh]), "V32")
        at = 0
        while at < len(frames):
            ends = np.cumsum(places["encoded"][at:], dtype="i8")
            ours = self._with_room(int(ends[0]))
            count = int(np.searchsorted(ends, ours.end - ours.used, side="right"))
            until = at + count
            places["address"][at:until] = ours.used + ends[:count] - places["encoded"][at:until]
            self._chunkfile.write(ours.used, b"".join(frames[at:until]))
            ours.used += int(ends[count - 1])
            at = until
        encoded = int(places["encoded"].sum(dtype="u8"))
        self._write_back.wrote(encoded)
        self._places.append(places)
        self._group_bytes += encoded
        self.new_chunks += len(frames)
        self.new_bytes += encoded

    def _with_room(self, length: int) -> _Reserved:
        """Our last extent, or a new one where that has no room for a frame."""
        if not self._reserved or self._reserved[-1].used + length > self._reserved[-1].end:
            with self._database.write() as txn:
                extent = self._chunkfile.reserve(txn)
                self._record(txn, [*self._reserved, _Reserved(*extent, extent.start, extent.start)])
            self._reserved.append(_Reserved(*extent, extent.start, extent.start))
        return self._reserved[-1]

    def _register(self, holds: Iterable[Digest] = ()) -> bool:
        """Have a record that says we live, before anything is looked up or reserved; whether it is new."""
        if self._lock is not None:
            return False
        with self._database.read() as txn:
            first = self._index.count(txn) + 1
        record = SessionRecord(holds=frozenset(holds), numbers_from=first)
        self._id, self._lock = register_session(self._layout, self._database, record)
        return True

    @contextmanager
    def _group(self) -> Iterator[Transaction]:
        """The one durable commit point: bytes, then rows, then what the caller adds."""
        self._check_usable()
        self.settle()
        if self._pending:
            self._sync()
        while len(self._pending) > self._batch.rows:
            with self._inserting(self._batch.rows):
                pass
        with self._inserting(len(self._pending)) as txn:
            yield txn

    @contextmanager
    def _inserting(self, count: int) -> Iterator[Transaction]:
        """Commit the rows of the first `count` pending chunks, which are durable, and what the block adds."""
        before = self._numbers
        places = np.concatenate(self._places) if self._places else np.empty(0, PLACE)
        committed = self._ends(places[:count])
        try:
            with self._database.write() as txn:
                started = time.perf_counter()
                if count:
                    ids = list(itertools.islice(self._pending, count))
                    numbers = self._index.insert(txn, ids, places[:count])
                    rows = zip(self._reserved, committed, strict=True)
                    self._record(txn, [replace(ours, committed=end) for ours, end in rows])
                    self._numbers = np.concatenate([before, numbers])
                    self._batch.took(count, time.perf_counter() - started)
                yield txn
            for ours, end in zip(self._reserved, committed, strict=True):
                ours.committed = end
            self._pending = dict(itertools.islice(self._pending.items(), count, None))
            self._places = [places[count:]]
            self._group_bytes = int(places["encoded"][count:].sum(dtype="u8"))
        except LayerstoreError:
            self._numbers = before
            raise
        except BaseException as error:
            # Whether LMDB has committed is not known here (a signal may come between): no more from this session.
            self._numbers, self._failed = before, error
            raise

    def _ends(self, places: npt.NDArray[np.void]) -> list[int]:
        """Up to where each of our extents holds committed frames, once these have rows: the next ones that we wrote."""
        ends = [ours.committed for ours in self._reserved]
        for at, ours in enumerate(self._reserved):
            if ours.committed < ours.used:
                inside = places[(places["address"] >= ours.start) & (places["address"] < ours.end)]
                if len(inside):
                    ends[at] = int(inside["address"][-1]) + int(inside["encoded"][-1])
        return ends

    def _sync(self) -> None:
        try:
            self._write_back.wait()
            self._chunkfile.sync()
        except BaseException as error:
            self._failed = error
            raise

    def _finish_jobs(self, left: int) -> None:
        """Wait until no more than `left` appends are under way."""
        try:
            self._appender.wait(left)
        except BaseException as error:
            self._failed = error
            raise

    def _check_usable(self) -> None:
        if self._closed:
            raise FailedPrecondition("this session is closed; begin a new one")
        if self._failed is not None:
            raise FailedPrecondition(
                "an earlier write of this session failed; begin a new one"
            ) from self._failed

    def _record(self, txn: Transaction, reserved: Sequence[_Reserved]) -> None:
        """Write down what we have reserved, and how much of it holds committed chunks."""
        rows = tuple((ours.start, ours.end, ours.committed) for ours in reserved)
        self._table.put(txn, self._id, replace(self._table.get(txn, self._id), extents=rows))


class _Batch:
    """How many rows one transaction inserts, so that it keeps other writers waiting for about 20 ms.

    Half of that is the commit, whose syncs take as long as the disk takes, however few rows there are.
    """

    def __init__(self) -> None:
        self.rows = _FIRST_ROWS

    def took(self, count: int, seconds: float) -> None:
        """Learn from a transaction of so many rows; one of a few says little."""
        if 2 * count >= self.rows:
            factor = min(2.0, _AIM_S / max(seconds, 1e-6))
            self.rows = min(max(int(self.rows * factor), _FEWEST_ROWS), _GROUP_CHUNKS)


class _Appender:
    """One thread that does jobs in their order.

    Its queues are those that C implements: an exception from a signal handler leaves no lock taken.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._under_way = 0
        self._stopped = False
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Do a job after those before it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="layerstore-append", daemon=True)
            self._thread.start()
        self._under_way += 1
        self._jobs.put(job)

    def wait(self, left: int) -> None:
        """Wait until no more than `left` jobs are under way; raises what one of them has met."""
        while self._under_way > left:
            error = self._outcomes.get()
            self._under_way -= 1
            if error is not None:
                raise error

    def close(self) -> None:
        """Let the job that runs come to its end, and forget the others."""
        self._stopped = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            error: BaseException | None = None
            try:
                if not self._stopped:
                    job()
            except BaseException as caught:  # raised again by `wait`
                error = caught
                self._stopped = True  # what comes behind a failure would not count
            self._outcomes.put(error)


class _WriteBack:
    """Starts fdatasync behind the writer's back, so that little is left to wait for at the commit."""

    def __init__(self, chunkfile: ChunkFile) -> None:
        self._chunkfile = chunkfile
        self._unsynced = 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def wrote(self, length: int) -> None:
        """Count bytes; from time to time, start syncing."""
        self._unsynced += length
        if self._unsynced >= _SYNC_EVERY and (self._thread is None or not self._thread.is_alive()):
            self._unsynced = 0
            self._thread = threading.Thread(target=self._sync, name="layerstore-sync")
            self._thread.start()

    def wait(self) -> None:
        """Wait for a sync that runs; raises what any sync since the start has met."""
        self.close()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Wait for a sync that runs."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _sync(self) -> None:
        try:
            self._chunkfile.sync()
        except (
            OSError,
            LayerstoreError,
        ) as error:  # the kernel says it once: keep it for the commit
            self._error = error
