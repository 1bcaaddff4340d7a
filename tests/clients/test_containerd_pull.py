"""A client that unpacks while it fetches gets from a registry only what the store has not: containerd's remote snapshots.

The client is `tools/pull_image`: containerd's own Go client, as nerdctl, Docker and the CRI plugin use it.
"""

from __future__ import annotations

import gzip
import io
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.daemons import registry
from layerstore.api import open_store
from layerstore.images.prune import PruneOptions
from tests.clients.images import busybox_image
from tests.clients.machine import has
from tests.clients.servers import run
from tests.support.archive_builders import docker_archive_of, layer_tar
from tests.support.stores import assert_tight, payload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clients.machine import Machine
    from tests.support.archive_builders import Image

pytestmark = [
    pytest.mark.client("containerd", "ctr", "runc", "docker-registry", "skopeo", "go"),
    pytest.mark.root,
    pytest.mark.slow,
]

_DEBIAN = Path("/usr/share/gocode")
_TOOL = Path(__file__).parents[2] / "tools/pull_image"


@pytest.fixture(scope="module")
def pull_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("pull") / "pull_image"
    environment = {"GO111MODULE": "off", "GOPATH": f"{_TOOL}:{_DEBIAN}", "CGO_ENABLED": "0"}
    done = subprocess.run(
        ["go", "build", "-o", str(program), "pull_image"],
        env={**os.environ, **environment, "GOFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of an empty registry."""
    folder = tmp_path / "registry"
    folder.mkdir()
    with registry(folder, folder / "store") as (_, where):
        yield where


class Puller:
    """Puts images into the registry, and has containerd pull them."""

    def __init__(self, machine: Machine, address: str, program: Path) -> None:
        self._machine, self._address, self._program = machine, address, program

    def push(self, image: Image) -> str:
        """Returns the reference."""
        reference = f"{self._address}/{image.tags[0]}"
        words = ("skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false")
        run(*words, f"docker-archive:{self._machine.archive(image)}", f"docker://{reference}")
        return reference

    def pull(self, reference: str) -> set[str]:
        """The digests of what was fetched for it, manifest and config left out."""
        before = self._contents()
        socket, namespace = self._machine.folder / "c.sock", self._machine.ctr[-1]
        manifest = run(self._program, socket, "layerstore", reference, namespace).strip()
        fetched = self._contents() - before
        config = {one for one in fetched if self._is_config(one)}
        assert manifest in fetched
        assert len(config) == 1
        return fetched - config - {manifest}

    def _contents(self) -> set[str]:
        return set(run(*self._machine.ctr, "content", "ls", "-q").split())

    def _is_config(self, digest: str) -> bool:
        done = subprocess.run(
            [*self._machine.ctr, "content", "get", digest], capture_output=True, check=True
        )
        return done.stdout.startswith(b"{") and b'"rootfs"' in done.stdout


@pytest.fixture
def puller(machine: Machine, address: str, pull_image: Path) -> Puller:
    return Puller(machine, address, pull_image)


def _load(machine: Machine, *images: Image) -> None:
    with open_store(machine.store) as store:
        for image in images:
            store.load(io.BytesIO(docker_archive_of([image])))


def test_of_an_image_that_was_loaded_no_layer_is_fetched(machine: Machine, puller: Puller) -> None:
    image = busybox_image("test/known:1", layer_tar({"file": payload(1, 300_000), "top": b"here"}))
    reference = puller.push(image)
    _load(machine, image)
    assert puller.pull(reference) == set()
    machine.run(reference, "known", *has("/top", "here"))
    assert len(machine.snapshots()) == len(image.layers)
    with open_store(machine.store) as store:
        store.remove("test/known:1")
        store.prune(PruneOptions(everything=True))
    machine.run(reference, "still", *has("/top", "here"))
    machine.remove_images()
    assert machine.snapshots() == []
    with open_store(machine.store) as store:
        store.prune(PruneOptions(everything=True))
        assert_tight(store)


def test_on_a_known_base_only_what_is_new_is_fetched(machine: Machine, puller: Puller) -> None:
    images = [
        busybox_image(f"test/next:{number}", layer_tar({"top": b"%d" % number}))
        for number in range(2)
    ]
    _load(machine, images[0])
    reference = puller.push(images[1])
    (fetched,) = puller.pull(reference)
    blob = subprocess.run(
        [*machine.ctr, "content", "get", fetched], capture_output=True, check=True
    )
    assert gzip.decompress(blob.stdout) == images[1].layers[1]
    machine.run(reference, "next", *has("/top", "1"))


def test_a_loaded_layer_is_known_on_a_base_it_never_had(machine: Machine, puller: Puller) -> None:
    own = layer_tar({"top": b"moved", "own": payload(2, 300_000)})
    patch = layer_tar({"etc/patch": payload(3, 100_000)})
    _load(machine, busybox_image("test/old:1", own), busybox_image("test/new-base:1", patch))
    moved = puller.push(busybox_image("test/moved:1", patch, own))
    assert puller.pull(moved) == set()
    machine.run(moved, "moved", *has("/top", "moved"))
