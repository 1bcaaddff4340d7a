"""How long work says how far it is. Front ends draw it; without one nothing is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerstore.digest import Readable

__all__ = ["SILENT", "CountedReader", "Progress"]


class Progress(Protocol):
    """Told by one thread, in this order for each task: `start`, any number of `advance`, `finish`."""

    def start(self, task: str, total: int | None) -> None:
        """A task begins; `total` is its size in bytes where that is known."""

    def advance(self, size: int) -> None:
        """So many more bytes are done. May be called from a thread of its own."""

    def finish(self, outcome: str) -> None:
        """The task is over; `outcome` is a word or two."""


class _Silent:
    def start(self, task: str, total: int | None) -> None:
        pass

    def advance(self, size: int) -> None:
        pass

    def finish(self, outcome: str) -> None:
        pass


SILENT: Progress = _Silent()


class CountedReader:
    """Tells how much of a source was read."""

    def __init__(self, source: Readable, advance: Callable[[int], object]) -> None:
        self._source, self._advance = source, advance

    def read(self, size: int) -> bytes:
        """As the source."""
        data = self._source.read(size)
        self._advance(len(data))
        return data
