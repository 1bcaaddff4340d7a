"""For how long each write transaction keeps every other writer of the store waiting: the lock is LMDB's, and one of a kind.

    with measured_holds() as holds:
        ...
    max(holds, key=lambda hold: hold.seconds)

A hold goes from the moment when the lock is had to the one when it is let go: the work, and the sync of the commit.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

from layerstore.store.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["Hold", "measured_holds"]

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


def _where() -> str:
    frame: FrameType | None = sys._getframe(1)
    names: list[str] = []
    while frame is not None and len(names) < 4:
        code = frame.f_code
        if code.co_filename.startswith(_ROOT) and code.co_name != "write":
            names.append(f"{Path(code.co_filename).stem}.{code.co_qualname}")
        frame = frame.f_back
    return " < ".join(names)
