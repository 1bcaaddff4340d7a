"""Directories that belong to nobody, deleted while calls are answered.

    put > [queue] > one thread deletes, one after another

No record names what is put, so nobody has to wait for its deletion; what is left at the end, or after a crash, the next
start finds by its name. The queue is short: who makes garbage faster than it can be deleted waits for it, and the
disk holds a bounded number of such directories.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

__all__ = ["Sweeper"]

_MOST: Final = 16  # directories that wait; a layer of a gigabyte among them takes seconds


class Sweeper:
    """Deletes directories in a thread of its own, for a block. Thread safety: all methods, from any thread."""

    def __init__(self, delete: Callable[[Path], None]) -> None:
        self._delete = delete
        self._waiting: queue.Queue[Path | None] = queue.Queue(_MOST)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="layerstore-sweep", daemon=True)

    def __enter__(self) -> Sweeper:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._waiting.put(None)
        self._thread.join()

    def put(self, path: Path) -> None:
        """Have a disowned directory deleted; waits while many are queued."""
        self._waiting.put(path)

    def _run(self) -> None:
        while (path := self._waiting.get()) is not None:
            if not self._ending.is_set():
                self._delete(path)
