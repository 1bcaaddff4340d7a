from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TextColumn

from layerstore.cli.progress import BarProgress, CountedProgress, LineProgress, shown_progress

if TYPE_CHECKING:
    import pytest

    from layerstore.images.progress import Progress


def _report(progress: Progress) -> None:
    progress.start("a1b2c3d4e5f6", 30_200_000)
    progress.advance(30_200_000)
    progress.finish("new")


def test_a_log_gets_a_line_for_each_task(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress() as progress:
        _report(progress)
    assert isinstance(progress, LineProgress)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "a1b2c3d4e5f6: 30.2 MB new\n")


def test_quiet_shows_nothing_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress(quiet=True) as progress:
        _report(progress)
    assert capsys.readouterr() == ("", "")
    assert progress.bytes == 30_200_000


def test_a_known_layer_counts_whole_and_a_failed_one_as_far_as_it_came(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = LineProgress()
    progress.start("known", 2000)
    progress.finish("known")
    progress.start("bad", 2000)
    progress.advance(5)
    progress.finish("failed")
    progress.start("pipe", None)
    progress.advance(7)
    progress.finish("imported")
    assert capsys.readouterr().err.splitlines() == [
        "known: 2.00 kB known",
        "bad: 5 B failed",
        "pipe: 7 B imported",
    ]
    assert progress.bytes == 12


def test_no_advance_of_any_thread_is_lost() -> None:
    progress = CountedProgress()
    progress.start("x", None)

    def advance_often() -> None:
        for _ in range(2000):
            progress.advance(1)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(advance_often)
    assert progress.bytes == 16_000


def test_a_bar_becomes_a_line_and_markup_stays_text() -> None:
    screen = io.StringIO()
    bars = Bars(
        TextColumn("{task.description}", markup=False),
        console=Console(file=screen, force_terminal=True, width=100, color_system=None),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bars:
        progress = BarProgress(bars)
        progress.start("[red]x\x1b[2J", 10)
        progress.advance(4)
        assert [task.completed for task in bars.tasks] == [4]
        progress.finish("new")
        assert not bars.tasks
    assert "[red]x\\x1b[2J: 10 B new\n" in screen.getvalue()
