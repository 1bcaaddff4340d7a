"""containerd unpacks and runs images with layerstore as its snapshotter, while the service comes, goes and dies."""

from __future__ import annotations

import io
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.images.prune import PruneOptions
from tests.clients.images import awkward_image, busybox_image, tree_of
from tests.clients.machine import has, wait
from tests.clients.servers import run
from tests.support.archive_builders import docker_archive_of, layer_tar
from tests.support.stores import assert_clean, assert_tight, payload

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.clients.machine import Machine

pytestmark = [pytest.mark.client("containerd", "ctr", "runc"), pytest.mark.root, pytest.mark.slow]

_MANY = 1500  # files of a layer that takes long enough to be interrupted


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _page(port: int, name: str) -> bytes:
    """A page of the web server in a container."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=20) as answer:
        return bytes(answer.read())


def _answers(port: int) -> bool:
    with socket.socket() as caller:
        return not caller.connect_ex(("127.0.0.1", port))


def test_containers_outlive_the_service_and_leave_nothing_behind(machine: Machine) -> None:
    pages = {f"www/{number}": payload(number, 300_000) for number in range(3)}
    images = [
        machine.load(busybox_image(f"test/web:{number}", layer_tar(pages), layer_tar(own)))
        for number, own in enumerate({"etc/number": b"%d" % n} for n in range(3))
    ]
    port = _free_port()
    serve = ("/bin/httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", "/www")
    machine.start_container(images[0], "web", *serve)
    names = [f"c{number}" for number in range(6)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(machine.start_container, images * 2, names))
    for number, name in enumerate(names):
        machine.exec(name, *has("/etc/number", str(number % 3)))
        machine.exec(name, "/bin/sh", "-c", f"echo {name} > /own; echo more >> /www/1")
    wait(lambda: _answers(port))
    assert _page(port, "0") == pages["www/0"]

    machine.kill()
    assert _page(port, "1") == pages["www/1"], "what was not read before, and nobody's changes"
    machine.exec("c1", *has("/own", "c1"))
    machine.exec("c1", "/bin/sh", "-c", "echo alone > /own")
    machine.start_again()
    assert _page(port, "2") == pages["www/2"]
    machine.exec("c1", *has("/own", "alone"))
    machine.run(images[1], "new", *has("/etc/number", "1"))
    with pytest.raises(AssertionError, match="'test "):
        machine.run(images[1], "new", *has("/etc/number", "2"))

    for name in ["web", *names]:
        machine.remove_container(name)
    machine.remove_images()
    assert machine.snapshots() == []
    assert list((machine.store / "snapshots").iterdir()) == []
    assert machine.mounted() == []
    with open_store(machine.store) as store:
        store.prune(PruneOptions(everything=True))
        assert_tight(store)
        assert store.store.chunkfile.allocated_bytes() == 0


def _is_unpacking(machine: Machine) -> bool:
    return any((machine.store / "snapshots").glob("*/fs/files/*"))


def _is_committing(machine: Machine) -> bool:
    return _is_unpacking(machine) and any((machine.store / "tmp").glob("session-*.lock"))


@pytest.mark.parametrize("moment", [_is_unpacking, _is_committing])
def test_an_import_can_be_repeated_after_the_service_was_killed_in_it(
    machine: Machine, moment: Callable[[Machine], bool]
) -> None:
    files = {f"files/{number}": payload(number, 8000) for number in range(_MANY)}
    image = busybox_image("test/killed:1", layer_tar(files), layer_tar({"top": b"whole"}))
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(machine.load, image)
        wait(lambda: moment(machine) or loading.done())
        machine.kill()
        with pytest.raises(AssertionError, match="unavailable"):
            loading.result()
    machine.start_again()
    name = machine.load(image)
    machine.run(name, "again", *has("/top", "whole"))
    machine.remove_images()
    assert machine.snapshots() == []
    with open_store(machine.store) as store:
        assert_clean(store)
        store.prune(PruneOptions(everything=True))
        assert_tight(store)


def test_what_is_unpacked_is_what_containerds_own_snapshotter_shows(machine: Machine) -> None:
    """Whiteouts, opaque folders, hard links, devices, owners, times and extended attributes, through overlayfs and us."""
    since_ns = time.time_ns()
    image = awkward_image("test/awkward:1")
    seen = {}
    for by in ("overlayfs", "layerstore"):
        name = machine.load(image, by)
        target = machine.folder / by
        target.mkdir()
        run(*machine.ctr, "images", "mount", "--snapshotter", by, name, target)
        seen[by] = tree_of(target, since_ns)
        run(*machine.ctr, "images", "unmount", "--snapshotter", by, "--rm", target)
    assert len(seen["overlayfs"]) > 40
    assert seen["layerstore"] == seen["overlayfs"]


def test_an_image_of_the_store_is_only_named(machine: Machine) -> None:
    """Loaded, and then imported by containerd: nothing of it is in the store twice."""
    image = busybox_image(
        "test/twice:1", layer_tar({"file": payload(5, 5_000_000), "top": b"here"})
    )
    with open_store(machine.store) as store:
        store.load(io.BytesIO(docker_archive_of([image])))
        before = store.store.chunkfile.allocated_bytes()
        name = machine.load(image)
        after = store.store.chunkfile.allocated_bytes()
    assert after - before < 200_000, (before, after)
    machine.run(name, "run", *has("/top", "here"))
