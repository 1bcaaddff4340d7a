"""How progress looks: bars on a terminal, one line a task elsewhere, nothing when quiet.

    on a terminal   a1b2c3d4e5f6 ━━━━━━━━━━━╸━━━━━━━━ 30.2/126.7 MB 81.4 MB/s 0:00:01
    and after it,   a1b2c3d4e5f6: 127 MB new
    or in a log

A finished bar becomes a line, so that an image of 100 layers scrolls and does not fill the screen.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from layerstore.cli.wording import printable, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["BarProgress", "CountedProgress", "LineProgress", "shown_progress"]


@contextmanager
def shown_progress(*, quiet: bool = False) -> Iterator[CountedProgress]:
    """The progress for this standard error. Print results after the block: a bar may be on the screen inside."""
    if quiet:
        yield CountedProgress()
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        bars = _new_bars()
        with bars:
            yield BarProgress(bars)
    else:
        yield LineProgress()


class CountedProgress:
    """Shows nothing, and counts.

    Thread safety: `advance` from any thread; `start` and `finish` from one.

    Attributes:
        bytes: done in all tasks so far.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._task = ""
        self._total: int | None = None
        self._done = 0
        self.bytes = 0

    def start(self, task: str, total: int | None) -> None:
        """A task begins."""
        self._task, self._total, self._done = task, total, 0

    def advance(self, size: int) -> None:
        """So many more bytes are done."""
        with self._lock:
            self._done += size
            self.bytes += size

    def finish(self, outcome: str) -> None:
        """The task is over."""

    def _line(self, outcome: str) -> str:
        # A known layer is not read, and counts whole; a failed one counts as far as it came.
        size = self._done if self._total is None or outcome == "failed" else self._total
        return printable(f"{self._task}: {size_text(size)} {outcome}")


class LineProgress(CountedProgress):
    """One line for each task, when it is over."""

    def finish(self, outcome: str) -> None:
        """Print the line."""
        click.echo(self._line(outcome), err=True)


class BarProgress(CountedProgress):
    """A bar while a task runs, a line afterwards."""

    def __init__(self, bars: Bars) -> None:
        super().__init__()
        self._bars = bars
        self._bar: TaskID | None = None

    def start(self, task: str, total: int | None) -> None:
        """Show a bar."""
        super().start(task, total)
        self._bar = self._bars.add_task(printable(task), total=total)

    def advance(self, size: int) -> None:
        """Move the bar."""
        super().advance(size)
        if self._bar is not None:
            self._bars.advance(self._bar, size)

    def finish(self, outcome: str) -> None:
        """Replace the bar by a line."""
        bar, self._bar = self._bar, None
        if bar is not None:
            self._bars.remove_task(bar)
        self._bars.console.print(
            self._line(outcome), markup=False, highlight=False, emoji=False, soft_wrap=True
        )


def _new_bars() -> Bars:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # Standard output may be the archive itself.
        redirect_stdout=False,
        redirect_stderr=False,
    )
