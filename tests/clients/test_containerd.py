"""containerd imports what `save` wrote, and runs it; what it exports comes back as the same image."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.digest import digest_of
from layerstore.images.save import ArchiveKind
from tests.clients.images import awkward_image, runnable_image
from tests.clients.servers import run
from tests.support.archive_builders import docker_archive_of
from tests.support.stores import assert_holds

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.client("containerd", "ctr"), pytest.mark.root, pytest.mark.slow]


@pytest.mark.client("runc")
@pytest.mark.parametrize("zstd", [False, True], ids=["plain", "zstd"])
@pytest.mark.parametrize("kind", [ArchiveKind.DOCKER, ArchiveKind.OCI])
def test_containerd_imports_and_runs_what_was_saved(
    ctr: list[str], tmp_path: Path, kind: ArchiveKind, zstd: bool
) -> None:
    tag = f"test/run-{kind}-{'zstd' if zstd else 'plain'}:1"
    image = runnable_image(tag)
    with open_store(tmp_path / "store") as store:
        store.load(io.BytesIO(docker_archive_of([image])))
        store.save(tag, tmp_path / "saved.tar", kind=kind, zstd=zstd)
    said = run(*ctr, "images", "import", tmp_path / "saved.tar")
    name = f"docker.io/{tag}"
    assert name in said
    run(*ctr, "run", "--rm", "--net-host", name, f"run-{kind}-{zstd}")
    config = run(*ctr, "content", "get", digest_of(image.config))
    assert config.encode() == image.config
    run(*ctr, "images", "export", tmp_path / "exported.tar", name)
    with open_store(tmp_path / "back") as back:
        back.load(tmp_path / "exported.tar")
        assert_holds(back, image)
    run(*ctr, "images", "rm", "--sync", name)


def test_containerd_unpacks_an_awkward_image(ctr: list[str], tmp_path: Path) -> None:
    image = awkward_image("test/awkward:1")
    with open_store(tmp_path / "store") as store:
        store.load(io.BytesIO(docker_archive_of([image])))
        store.save("test/awkward:1", tmp_path / "saved.tar")
    run(*ctr, "images", "import", tmp_path / "saved.tar")
    assert "docker.io/test/awkward:1" in run(*ctr, "images", "ls", "-q")
    run(*ctr, "images", "rm", "--sync", "docker.io/test/awkward:1")
