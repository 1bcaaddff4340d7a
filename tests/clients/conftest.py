"""One server of each kind for all client tests; skipped tests start none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients.machine import machine_in
from tests.clients.servers import containerd, dockerd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.clients.machine import Machine


@pytest.fixture(scope="session")
def containerd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("containerd")


@pytest.fixture(scope="session")
def ctr(containerd_folder: Path) -> Iterator[list[str]]:
    """The start of a `ctr` command that talks to a private containerd."""
    with containerd(containerd_folder) as words:
        yield words


@pytest.fixture(scope="session")
def docker(
    ctr: list[str], containerd_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """The start of a `docker` command that talks to a private dockerd."""
    assert ctr, "dockerd needs a running containerd"
    with dockerd(tmp_path_factory.mktemp("dockerd"), containerd_folder / "c.sock") as words:
        yield words


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A containerd whose snapshotter is layerstore."""
    with machine_in(tmp_path) as started:
        yield started
