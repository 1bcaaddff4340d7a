"""What a verb reads from: paths that must be there, and standard input that a signal can wake.

A thread that waits in read(2) for a pipe cannot be told to stop. `StandardInput` waits for the pipe and for the wake
pipe of `signals` together, so that Ctrl-C ends `layerstore import - app` though nobody writes.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import click

from layerstore.cli.signals import wake_descriptor

if TYPE_CHECKING:
    from typing import TypeAlias

__all__ = ["STDIN", "Source", "StandardInput", "label_of", "open_source"]

STDIN = Path("-")

Source: TypeAlias = "Path | BinaryIO"


def open_source(path: Path) -> Source:
    """A path that exists, or standard input for `-`.

    Raises:
        OSError: nothing is at the path, or a folder above it is closed to us.
        click.UsageError: standard input is a terminal: nobody types an archive.
    """
    if path != STDIN:
        path.stat()
        return path
    stream = sys.stdin.buffer if sys.stdin is not None else None
    if stream is None or stream.isatty():
        raise click.UsageError("standard input is a terminal; name a file, or redirect one")
    try:
        descriptor = stream.fileno()
    except OSError:  # no file of the system: whatever stands in for standard input
        return stream
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return stream  # read in place, without a copy
    return cast("BinaryIO", StandardInput(descriptor))


def label_of(path: Path) -> str:
    """How messages call it."""
    return "standard input" if path == STDIN else str(path)


class StandardInput:
    """A pipe as a stream of bytes. Thread safety: one thread at a time."""

    name = "standard input"

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._poll.register(wake_descriptor(), select.POLLIN)

    def read(self, size: int, /) -> bytes:
        """Give `size` bytes, fewer only at the end.

        Raises: InterruptedError: a signal has asked to stop.
        """
        parts: list[bytes] = []
        missing = size
        while missing:
            ready = [descriptor for descriptor, _ in self._poll.poll()]
            if wake_descriptor() in ready:
                raise InterruptedError("stopped by a signal")
            data = os.read(self._descriptor, missing)
            if not data:
                break
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)
