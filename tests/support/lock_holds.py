"""For how long each write transaction keeps every other writer of the store waiting: the lock is LMDB's, and one of a kind.

    with measured_holds() as holds:
        ...
    max(holds, key=lambda hold: hold.seconds)

`measured_syncs` tells beside it how long the disk takes for a sync of one block, for whoever holds no lock at all.

A hold goes from the moment when the lock is had to the one when it is let go: the work, and the sync of the commit.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

from layerstore.store.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

__all__ = ["Hold", "in_milliseconds", "measured_holds", "measured_syncs"]

_PROBE_S = 0.05  # between two syncs of the probe

_ROOT = str(Path(__file__).parents[2] / "layerstore")


class Hold(NamedTuple):
    """One write transaction.

    Attributes:
        seconds: from getting the lock to letting it go.
        commit: of those, what LMDB's commit took: two syncs, if anything was changed.
        cpu: of those, what the thread worked; the rest it waited for the disk or for a processor.
        where: functions of layerstore that it was in, the innermost first.
    """

    seconds: float
    commit: float
    cpu: float
    where: str


@contextmanager
def measured_holds() -> Iterator[list[Hold]]:
    """Note the holds of this process, of all its stores and threads, while the block runs."""
    holds: list[Hold] = []
    real = Database._begin

    @contextmanager
    def begin(self: Database, *, write: bool) -> Iterator[Any]:
        if not write:
            with real(self, write=False) as txn:
                yield txn
            return
        done = 0.0
        started = cpu = None
        try:
            with real(self, write=True) as txn:
                started, cpu = time.perf_counter(), time.thread_time()
                yield txn
                done = time.perf_counter()
        finally:
            if started is not None and cpu is not None:
                now = time.perf_counter()
                commit = now - done if done else 0.0
                holds.append(Hold(now - started, commit, time.thread_time() - cpu, _where()))

    with patch.object(Database, "_begin", begin):
        yield holds


@contextmanager
def measured_syncs(folder: Path) -> Iterator[list[float]]:
    """Note how long it takes to write one block of a file in place and sync it, over and over while the block runs; seconds."""
    took: list[float] = []
    over = threading.Event()
    path = folder / "probe"

    def probe() -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while not over.wait(_PROBE_S):
                begin = time.perf_counter()
                os.pwrite(fd, os.urandom(4096), 0)
                os.fdatasync(fd)
                took.append(time.perf_counter() - begin)
        finally:
            os.close(fd)
            path.unlink()

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


def in_milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Median, percentiles and maximum of some times, in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    shares = {"median": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "longest": 1.0}
    last = len(ordered) - 1
    return {name: round(ordered[int(last * share)] * 1000, 2) for name, share in shares.items()}


def _where() -> str:
    frame: FrameType | None = sys._getframe(1)
    names: list[str] = []
    while frame is not None and len(names) < 4:
        code = frame.f_code
        if code.co_filename.startswith(_ROOT) and code.co_name != "write":
            names.append(f"{Path(code.co_filename).stem}.{code.co_qualname}")
        frame = frame.f_back
    return " < ".join(names)
