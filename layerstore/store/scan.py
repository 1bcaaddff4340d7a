"""Reading many chunks to find the damaged ones: in the order of their numbers, by several threads, no faster than asked.

Numbers are never given twice and ascend with time, so "all below n are read" is a place to go on from after a stop:
what came meanwhile has larger numbers.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from layerstore.store.damage import damaged_among
from layerstore.store.reader import ChunkReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from layerstore.store.store import Store

__all__ = ["Pace", "Pool", "Scanned", "paced_reader", "scan_chunks", "scanning_pool"]

_WINDOW = 16 << 20  # decoded bytes that a thread has in memory at once

T = TypeVar("T")
U = TypeVar("U")


class Pace:
    """Lets no more than `rate` bytes a second pass; any number without one.

    Thread safety: all methods, from any thread.
    """

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._next = time.monotonic()

    def take(self, size: int) -> None:
        """Wait until `size` more bytes may be read."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(self._next, now)
            self._next = begin + size / self._rate
        self._stopped.wait(begin - now)

    def stop(self) -> None:
        """Keep nobody waiting any more."""
        self._stopped.set()


class Pool:
    """Threads that do jobs, and give the results in the order of the jobs."""

    def __init__(self, executor: ThreadPoolExecutor, width: int) -> None:
        self._executor, self._width = executor, width

    def map(self, job: Callable[[T], U], items: Iterable[T]) -> Iterator[tuple[T, U]]:
        """Each item with its result; few are begun before their turn, so that a stop loses little."""
        waiting: deque[tuple[T, Future[U]]] = deque()
        for item in items:
            waiting.append((item, self._executor.submit(job, item)))
            if len(waiting) > 2 * self._width:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()


@contextmanager
def scanning_pool(jobs: int, pace: Pace) -> Iterator[Pool]:
    """Threads for a scan; when the block is left early, what has not begun is not done."""
    executor = ThreadPoolExecutor(jobs, "layerstore-verify")
    try:
        yield Pool(executor, jobs)
    finally:
        pace.stop()
        executor.shutdown(cancel_futures=True)


def paced_reader(store: Store, pace: Pace) -> ChunkReader:
    """A reader of a store's chunks at a pace."""
    return ChunkReader(store.database, store.index, store.chunkfile, pace.take)


class Scanned(NamedTuple):
    """All wanted chunks of a stretch of numbers were read.

    Attributes:
        until: the first number that was not looked at.
        numbers: that have a place and were read, ascending.
        bytes: decoded.
        bad: of the numbers.
    """

    until: int
    numbers: npt.NDArray[np.uint64]
    bytes: int
    bad: set[int]


def scan_chunks(
    store: Store,
    reader: ChunkReader,
    pool: Pool,
    wanted: Callable[[int, int], npt.NDArray[np.bool_]],
    first: int = 0,
) -> Iterator[Scanned]:
    """Read chunks from a number on; `wanted(number, count)` says which of a run of consecutive ones."""
    windows = _windows(store, wanted, first)
    for window, bad in pool.map(lambda one: damaged_among(reader, one.numbers), windows):
        yield window._replace(bad=bad)


def _windows(
    store: Store, wanted: Callable[[int, int], npt.NDArray[np.bool_]], at: int
) -> Iterator[Scanned]:
    while True:
        found = [np.empty(0, "u8")]
        size, more = 0, False
        with store.read() as txn:
            for first, run in store.index.runs(txn, at):
                rows = np.flatnonzero(wanted(first, len(run)))
                found.append((rows + first).astype("u8"))
                size += int(run["decoded"][rows].sum(dtype="u8"))
                at = first + len(run)
                if size >= _WINDOW:
                    more = True
                    break
        yield Scanned(at, np.concatenate(found), size, set())
        if not more:
            return
