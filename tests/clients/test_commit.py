"""Docker and containerd load and run an image that a snapshot was committed to."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.images.commit import CommitOptions, commit_image, fork_image
from layerstore.snapshots import Snapshots, StoreLowers
from tests.clients.images import runnable_image
from tests.clients.servers import run
from tests.support.archive_builders import docker_archive_of
from tests.support.snapshots import changed, unmount_below

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _unmounted(tmp_path: Path) -> Iterator[None]:
    yield
    unmount_below(tmp_path)


def _change(top: Path) -> None:
    (top / "etc/motd").unlink()
    (top / "etc/new").write_text("new")
    (top / "bin/true").rename(top / "bin/yes")


def _committed(tmp_path: Path) -> Path:
    """An archive with the image `test/committed:1`."""
    with open_store(tmp_path / "store") as store:
        store.load(io.BytesIO(docker_archive_of([runnable_image("test/base:1")])))
        snapshots = Snapshots(store.store, StoreLowers(store.store))
        fork_image(store.store, snapshots, "test/base:1", ["work"])
        changed(snapshots, tmp_path / "m", "work", _change)
        options = CommitOptions("me", "why", ('CMD ["/bin/yes"]', "ENV MORE=1"))
        report = commit_image(store.store, snapshots, "work", "test/committed:1", options)
        assert store.images()[-1].id == report.id
        assert store.verify().damages == ()
        store.save("test/committed:1", tmp_path / "committed.tar")
    return tmp_path / "committed.tar"


@pytest.mark.client("containerd", "ctr", "dockerd", "docker")
def test_docker_loads_and_runs_a_committed_image(docker: list[str], tmp_path: Path) -> None:
    run(*docker, "load", "-i", _committed(tmp_path))
    (seen,) = json.loads(run(*docker, "image", "inspect", "test/committed:1"))
    assert (seen["Author"], seen["Comment"], len(seen["RootFS"]["Layers"])) == ("me", "why", 3)
    assert seen["Config"]["Env"] == ["PATH=/bin", "TEXT=a=b", "MORE=1"]
    assert "layerstore commit" in run(*docker, "history", "test/committed:1")
    run(*docker, "create", "--name", "made", "test/committed:1")
    assert run(*docker, "cp", "made:/etc/new", "-").count("new") >= 1
    run(*docker, "rm", "made")
    run(
        *docker, "run", "--rm", "--network", "host", "test/committed:1"
    )  # /bin/yes is the base's /bin/true
    run(*docker, "rmi", "test/committed:1")


@pytest.mark.client("containerd", "ctr", "runc")
def test_containerd_imports_and_runs_a_committed_image(ctr: list[str], tmp_path: Path) -> None:
    run(*ctr, "images", "import", _committed(tmp_path))
    run(*ctr, "run", "--rm", "--net-host", "docker.io/test/committed:1", "run-committed")
    run(*ctr, "images", "rm", "--sync", "docker.io/test/committed:1")
