"""Directories that belong to nobody, deleted while calls are answered.

    put > [queue] > some threads delete, a directory each

No record names what is put, so nobody has to wait for its deletion; what is left at the end, or after a crash, the next
start finds by its name. The queue is short: who makes garbage faster than it can be deleted waits for it, and the disk
holds a bounded number of such directories.

Deleting waits for the disk more than for anything else: a filesystem that is mounted with `discard` may tell the device
of each file before the next one goes (1.3 ms each, measured), several at once as well as one.
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

_THREADS: Final = 4
_MOST: Final = 32  # directories that wait; a layer of a gigabyte among them takes seconds


class Sweeper:
    """Deletes directories in threads of its own, for a block. Thread safety: all methods, from any thread."""

    def __init__(self, delete: Callable[[Path], None]) -> None:
        self._delete = delete
        self._waiting: queue.Queue[Path | None] = queue.Queue(_MOST)
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="layerstore-sweep", daemon=True)
            for _ in range(_THREADS)
        ]

    def __enter__(self) -> Sweeper:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def put(self, path: Path) -> None:
        """Have a disowned directory deleted; waits while many are queued."""
        self._waiting.put(path)

    def _run(self) -> None:
        while (path := self._waiting.get()) is not None:
            if not self._ending.is_set():
                self._delete(path)
