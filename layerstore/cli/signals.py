"""Signals become one exception, so that `with` blocks put everything in order on the way out.

    SIGINT, SIGTERM, SIGHUP ──> Stopped in the main thread ──> sessions and sinks close ──> exit 128 + n
                            └─> the wake pipe: a thread that waits for standard input wakes up too

What the parent process ignores (nohup, `&` in a shell script) stays ignored.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["Stopped", "stopping_on_signals", "wake_descriptor"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_S = 1.0  # a second Ctrl-C within this time must not interrupt the clean-up of the first

_last_stop_s = -_PATIENCE_S


class Stopped(BaseException):
    """A signal asked this process to end. Like KeyboardInterrupt, it is no `Exception`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells say it."""
        return 128 + self.number


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Raise `Stopped` in the main thread when a signal comes; elsewhere than there, do nothing."""
    global _last_stop_s
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _last_stop_s = -_PATIENCE_S
    _wake_pipe()
    previous = {
        number: handler
        for number in _SIGNALS
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    for number in previous:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def wake_descriptor() -> int:
    """Readable once a signal has asked to stop: to be polled beside what a thread waits for."""
    return _wake_pipe()[0]


@functools.cache
def _wake_pipe() -> tuple[int, int]:
    """One for the process, never closed: a thread may wait for it until the very end."""
    return os.pipe()


def _stop(number: int, frame: FrameType | None) -> None:
    global _last_stop_s
    now_s = time.monotonic()
    if now_s - _last_stop_s < _PATIENCE_S:
        return
    if _last_stop_s < 0:
        os.write(_wake_pipe()[1], b"!")
    _last_stop_s = now_s
    raise Stopped(number)
