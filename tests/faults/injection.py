"""Faults at the store's durability calls: an error of the disk at the n-th call, or the end of the process there.

    with failing("fdatasync", errno.EIO, at=3) as fault: ...       the fourth call fails
    with stopping(at=7): ...                                       the process is gone at the eighth step

The real functions run before and after; only the chosen call is disturbed.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from layerstore.store import chunkfile, files
from layerstore.store.database import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CALLS", "GONE", "Fault", "failing", "stopping"]

GONE = 77  # exit code of a process that was stopped
CALLS = ("fdatasync", "pwrite_all", "punch_hole", "fsync_directory", "ftruncate")

_STOPS = (*CALLS, "replace_file", "lock_file")


@dataclass(slots=True)
class Fault:
    """What a fault has done: `calls` that were seen, and whether the chosen one came."""

    calls: int = 0
    hit: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_due(self, at: int) -> bool:
        with self._lock:
            self.calls += 1
            due = self.calls == at + 1
            self.hit |= due
            return due


@contextmanager
def failing(name: str, code: int, at: int, *, short: bool = False) -> Iterator[Fault]:
    """Let the call number `at` of a durability function fail with an errno; `short` writes a half before."""
    fault = Fault()
    owner, attribute, real = _function(name)

    def call(*arguments: Any, **named: Any) -> Any:
        if not fault.is_due(at):
            return real(*arguments, **named)
        if short:
            fd, data, address = arguments
            os.pwrite(fd, data[: len(data) // 2], address)
        raise OSError(code, os.strerror(code))

    with patch.object(owner, attribute, call):
        yield fault


@contextmanager
def stopping(at: int) -> Iterator[Fault]:
    """End this process, without any clean-up, before (even) or after (odd) the durability step `at // 2`."""
    fault = Fault()

    def around(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            _stop_if(fault.is_due(at))
            result = real(*arguments, **named)
            _stop_if(fault.is_due(at))
            return result

        return call

    begin = Database.write

    @contextmanager
    def write(self: Database) -> Iterator[Any]:
        with begin(self) as txn:
            yield txn
            _stop_if(fault.is_due(at))  # all is put, nothing is committed
        _stop_if(fault.is_due(at))

    patches = [patch.object(Database, "write", write)]
    for name in _STOPS:
        owner, attribute, real = _function(name)
        patches.append(patch.object(owner, attribute, around(real)))
    for one in patches:
        one.start()
    try:
        yield fault
    finally:
        for one in patches:
            one.stop()


def _function(name: str) -> tuple[Any, str, Callable[..., Any]]:
    if name == "ftruncate":
        return chunkfile.os, name, os.ftruncate  # type: ignore[attr-defined]
    return files, name, getattr(files, name)


def _stop_if(due: bool) -> None:
    if due:
        os._exit(GONE)
