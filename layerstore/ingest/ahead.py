"""A stage of the way in that runs ahead of the next one, in a thread of its own."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

__all__ = ["Ahead"]

_AHEAD = 3  # items that a stage may be ahead of the next

_POLL_S = 0.1  # how soon a stage notices that it is no longer wanted
_PATIENCE_S = 5.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing a stage gives: nothing more comes, maybe because of an error."""

    error: BaseException | None = None


class Ahead(Generic[T]):
    """Runs an iterable in a thread, a few items ahead; its errors are raised here, in their turn.

    Leave the block before closing what the iterable reads from. Thread safety: one consumer.
    Only queues that C implements are between the threads: an exception from a signal handler leaves no lock taken.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._pipe: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        self._credits: queue.SimpleQueue[None] = queue.SimpleQueue()  # what may still be put
        for _ in range(_AHEAD):
            self._credits.put(None)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="layerstore-ahead", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        # A thread that waits for a slow source (a pipe) is left to it; it can do no harm any more.
        self._thread.join(_PATIENCE_S)

    def __iter__(self) -> Iterator[T]:
        while not self._stopped.is_set():
            try:
                item = self._pipe.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            self._credits.put(None)
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._offer(item):
                    return
            self._offer(_End())
        except BaseException as error:  # raised again in the consumer
            self._offer(_End(error))

    def _offer(self, item: T | _End) -> bool:
        while not self._stopped.is_set():
            try:
                self._credits.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            self._pipe.put(item)
            return True
        return False
