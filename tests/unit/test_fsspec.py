"""Images through fsspec: what users of `layerstore://` get."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from layerstore.api import open_store
from layerstore.errors import InvalidArgument
from tests.support.archive_builders import Image, docker_archive_of
from tests.support.tars import END, entry, noise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

fsspec = pytest.importorskip("fsspec", reason="extra fsspec")

_LARGE = noise(100_000)
_LAYER = b"".join(
    (
        entry(b"etc/os-release", b"ID=test\n", mtime=1_000_000),
        entry(b"etc/link", typeflag=b"2", link=b"os-release"),
        entry(b"etc/dangling", typeflag=b"2", link=b"nothing"),
        entry(b"large", _LARGE, uid=5),
        entry(b"dev/null", typeflag=b"3", device=(1, 3)),
        END,
    )
)


@pytest.fixture
def filesystem(tmp_path: Path) -> Iterator[Any]:
    from layerstore.fsspec import LayerstoreFileSystem

    archive = tmp_path / "image.tar"
    archive.write_bytes(docker_archive_of([Image.of([_LAYER], "example/app:1", "plain:2")]))
    with open_store(tmp_path / "store") as store:
        store.load(archive)
    fsspec.register_implementation("layerstore", LayerstoreFileSystem, clobber=True)
    made = fsspec.filesystem("layerstore", store=tmp_path / "store", skip_instance_cache=True)
    yield made
    made.close()


@pytest.mark.parametrize("name", ["plain:2", "example/app:1", "docker.io/example/app:1"])
def test_a_file_is_found_below_every_name_of_its_image(filesystem: Any, name: str) -> None:
    assert filesystem.cat(f"layerstore://{name}/etc/os-release") == b"ID=test\n"
    with filesystem.open(f"{name}/large") as file:
        file.seek(70_000)
        assert file.read(100) == _LARGE[70_000:70_100]
    assert filesystem.cat_file(f"{name}/large", 10, -99_980) == _LARGE[10:20]
    assert filesystem.cat_file(f"{name}/large", -5) == _LARGE[-5:]
    with filesystem.open(f"{name}/etc/os-release", "r") as text:
        assert text.read() == "ID=test\n"


def test_directories_list_and_are_found(filesystem: Any) -> None:
    assert filesystem.ls("", detail=False) == [
        "docker.io/example/app:1",
        "docker.io/library/plain:2",
    ]
    assert filesystem.ls("plain:2", detail=False) == ["plain:2/dev", "plain:2/etc", "plain:2/large"]
    assert filesystem.ls("plain:2/large", detail=False) == ["plain:2/large"]
    assert filesystem.find("plain:2/etc") == [
        "plain:2/etc/dangling",
        "plain:2/etc/link",
        "plain:2/etc/os-release",
    ]
    assert filesystem.glob("plain:2/*/os-*") == ["plain:2/etc/os-release"]
    assert filesystem.isdir("plain:2/etc")
    assert filesystem.isdir("")
    assert filesystem.exists("plain:2")
    assert not filesystem.exists("plain:2/nothing")
    assert not filesystem.exists("other:1/etc")


def test_info_says_what_stat_says(filesystem: Any) -> None:
    info = filesystem.info("plain:2/large")
    assert (info["type"], info["size"], info["uid"], info["name"]) == (
        "file",
        100_000,
        5,
        "plain:2/large",
    )
    link = filesystem.info("plain:2/etc/link")
    assert (link["type"], link["islink"], link["destination"], link["size"]) == (
        "file",
        True,
        "os-release",
        8,
    )
    assert filesystem.info("plain:2/etc/dangling")["type"] == "link"
    assert filesystem.info("plain:2/dev/null")["type"] == "other"
    assert filesystem.info("plain:2")["type"] == "directory"
    assert filesystem.modified("plain:2/etc/os-release").timestamp() == 1_000_000


def test_nothing_can_be_written(filesystem: Any) -> None:
    writes: list[Callable[[], object]] = [
        lambda: filesystem.open("plain:2/new", "wb"),
        lambda: filesystem.mkdir("plain:2/new"),
        lambda: filesystem.makedirs("plain:2/new"),
        lambda: filesystem.rm("plain:2/large"),
        lambda: filesystem.rmdir("plain:2/etc"),
        lambda: filesystem.pipe_file("plain:2/new", b"x"),
        lambda: filesystem.cp_file("plain:2/large", "plain:2/copy"),
    ]
    for write in writes:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says which
            write()
        assert caught.value.errno == errno.EROFS


def test_a_missing_store_is_an_error(tmp_path: Path) -> None:
    from layerstore.errors import NotFound
    from layerstore.fsspec import LayerstoreFileSystem

    with pytest.raises(NotFound):
        LayerstoreFileSystem(tmp_path, skip_instance_cache=True)


def test_the_store_is_said_by_an_argument_or_by_fsspecs_configuration(
    filesystem: Any, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match="FSSPEC_LAYERSTORE_STORE"):
        fsspec.filesystem("layerstore", skip_instance_cache=True)
    code = "import fsspec; print(fsspec.open('layerstore://plain:2/etc/os-release', 'rt').open().read(), end='')"
    environment = {**os.environ, "FSSPEC_LAYERSTORE_STORE": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("ID=test\n", "")
