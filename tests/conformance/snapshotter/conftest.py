"""The snapshots service of a store, asked over its socket, for each test; what it mounted goes with the test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.serve.daemon import ServeOptions, snapshotter_daemon
from tests.clients.servers import unmount_below
from tests.support.snapshots_client import SnapshotsClient, snapshots_client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _unmounted(tmp_path: Path) -> Iterator[None]:
    yield
    unmount_below(tmp_path)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[SnapshotsClient]:
    options = ServeOptions(f"unix://{tmp_path}/s.sock")
    with (
        open_store(tmp_path / "store") as store,
        snapshotter_daemon(store, options) as path,
        snapshots_client(path) as connected,
    ):
        yield connected
