"""A store, a folder to mount at, and nothing left behind by any test of mounts."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from tests.support.mounts import (
    mounts_below,
    open_descriptors,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layerstore.store.store import Store


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    """No mount and no descriptor outlives a test; mounts are taken away even if it failed."""
    descriptors = open_descriptors()
    yield
    left = mounts_below(tmp_path)
    for entry in reversed(left):
        subprocess.run(["umount", "-l", entry.target], check=False, capture_output=True)
    assert left == []
    assert open_descriptors() <= descriptors


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened.store


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path
