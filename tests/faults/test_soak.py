"""The soak, for as long as a test may take: `python -m tests.faults.soak` is the whole one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.soak import soak

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_random_work_by_four_processes_loses_and_leaks_nothing(tmp_path: Path) -> None:
    report = soak(tmp_path / "store", seconds=15, operations=100_000, processes=4, seed=3)
    assert report.lost == []
    assert report.damages == 0
    assert report.leaked_bytes == 0
    # A filesystem may take a block or two for where the file's blocks are.
    assert report.disk_bytes <= report.live_bytes * 1.01 + (16 << 10)
    assert report.operations > 100
    assert report.counts["chunks freed"] > 0
