"""A full filesystem at several fill levels: StoreFull, nothing acknowledged lost, and work goes on when there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.errors import StoreFull
from tests.support.lacking import lacking
from tests.support.stores import (
    assert_clean,
    assert_holds,
    assert_tight,
    sample_images,
    write_archive,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_MIB = 1 << 20
_PIECE = 64 << 10  # of a file that fills a disk


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


# kind -> MiB of its image, and how it is made; XFS makes none that are smaller.
_DISKS = {
    "tmpfs": (24, ()),
    "ext4": (24, ("mkfs.ext4", "-q", "-m", "0")),
    "xfs": (300, ("mkfs.xfs", "-q")),
    "btrfs": (256, ("mkfs.btrfs", "-q")),
}
# Bytes that a prune needs: pages for the tables, a session's lock file; XFS and btrfs keep some for themselves.
_ROOM = {"tmpfs": 64 << 10, "ext4": 64 << 10, "xfs": 2 << 20, "btrfs": 2 << 20}


@contextmanager
def _mounted(kind: str, folder: Path) -> Iterator[Path]:
    """A small filesystem with nothing in it."""
    size, words = _DISKS[kind]
    if words and shutil.which(words[0]) is None:
        lacking(f"{words[0]} is not installed")
    if kind not in Path("/proc/filesystems").read_text().split():
        lacking(f"this kernel has no {kind}")
    mounted = folder / "disk"
    mounted.mkdir()
    if words:
        image = folder / "disk.img"
        with image.open("wb") as file:
            file.truncate(size * _MIB)
        _run(*words, image)
        _run("mount", "-o", "loop", image, mounted)
    else:
        _run("mount", "-t", kind, "-o", f"size={size}m", "layerstore-test", mounted)
    try:
        yield mounted
    finally:
        _run("umount", mounted)


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small filesystem that can be filled to the last block."""
    with _mounted(request.param, tmp_path) as disk:
        yield disk


def _fill(disk: Path, leave: int) -> Path:
    """Take all room but `leave` bytes, to the last block where that is none."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        with suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(_room(disk) - leave, 1))
        file.seek(0, os.SEEK_END)
        with suppress(OSError):  # what is left is less than a piece
            while _room(disk) > leave and file.write(bytes(_PIECE if leave else 4096)):
                os.fsync(file.fileno())  # room is counted late
    return filler


def _room(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


@pytest.mark.root
@pytest.mark.slow
def test_load_into_a_full_filesystem_says_so_and_harms_nothing(
    small_disk: Path, tmp_path: Path
) -> None:
    first, second = sample_images(11, count=2, layer_size=2 * _MIB, layers=3)
    archive = write_archive(tmp_path, second)
    root = small_disk / "store"
    with open_store(root) as store:
        store.load(write_archive(tmp_path, first))
    refused = 0
    for leave in (0, 4096, 16 << 10, 64 << 10, 128 << 10, 256 << 10, 600 << 10, 2 * _MIB, 3 * _MIB):
        filler = _fill(small_disk, leave)
        try:
            with open_store(root) as store:
                store.load(archive)
        except StoreFull:
            refused += 1
        with open_store(root) as store:  # still full
            assert store.verify().damages == ()
            assert_holds(store, first)
        filler.unlink()
        with open_store(root) as store:
            assert_clean(store)
            assert_holds(store, first)
    assert refused >= 6
    with open_store(root) as store:
        store.load(archive)
        assert_clean(store)
        assert_holds(store, second)


@pytest.mark.root
def test_the_same_store_object_works_on_when_there_is_room_again(
    small_disk: Path, tmp_path: Path
) -> None:
    first, second = sample_images(12, count=2, layer_size=2 * _MIB)
    archive = write_archive(tmp_path, second)
    with open_store(small_disk / "store") as store:
        store.load(write_archive(tmp_path, first))
        for leave in (0, 8192, 100 << 10, 1 * _MIB):
            filler = _fill(small_disk, leave)
            with pytest.raises(StoreFull):
                store.load(archive)
            assert_holds(store, first)
            filler.unlink()
        store.load(archive)
        assert_holds(store, second)
    with open_store(small_disk / "store") as store:
        assert_clean(store)


@pytest.mark.root
@pytest.mark.parametrize("kind", _DISKS)
def test_a_full_disk_is_pruned_and_the_filesystem_has_the_space_back(
    kind: str, tmp_path: Path
) -> None:
    first, second, third = sample_images(16, count=3, layer_size=6 * _MIB)
    archive = write_archive(tmp_path, third)
    with _mounted(kind, tmp_path) as disk, open_store(disk / "store") as store:
        for image in (first, second):
            store.load(write_archive(tmp_path, image))
        store.remove(second.tags[0])
        _fill(disk, _ROOM[kind])
        with pytest.raises(StoreFull):
            store.load(archive)
        assert_holds(store, first)
        before = _free_bytes(disk)
        freed = store.prune().bytes
        assert freed > 3 * _MIB
        assert_tight(store)
        # A filesystem may take some of it to say where its own blocks are.
        assert _free_bytes(disk) - before > freed * 0.9
        store.load(archive)
        assert_holds(store, first)
        assert_holds(store, third)


def _free_bytes(disk: Path) -> int:
    """What can be written; what was freed counts once it is durable."""
    _run("sync", "--file-system", disk)
    return _room(disk)


@pytest.mark.root
def test_names_on_a_full_filesystem_are_refused_and_not_half_given(
    small_disk: Path, tmp_path: Path
) -> None:
    (image,) = sample_images(13, count=1, layer_size=_MIB)
    with open_store(small_disk / "store") as store:
        store.load(write_archive(tmp_path, image))
        filler = _fill(small_disk, 0)
        given = []
        with pytest.raises(StoreFull):  # noqa: PT012  # the pages at hand last for a while
            for number in range(5000):
                store.tag(image.tags[0], f"test/tagged:{number}-{'x' * 60}")
                given.append(number)
        filler.unlink()
        assert len(store.images()[0].names) == len(given) + 1
        store.tag(image.tags[0], "test/tagged:after")
    with open_store(small_disk / "store") as store:
        assert_clean(store)
        assert len(store.images()[0].names) == len(given) + 2


@pytest.mark.root
def test_tables_that_cannot_grow_are_a_full_store(tmp_path: Path) -> None:
    images = sample_images(14, count=4, layer_size=2 * _MIB)
    archives = [write_archive(tmp_path, image) for image in images]
    meta = tmp_path / "store" / "meta"
    meta.mkdir(parents=True)
    _run("mount", "-t", "tmpfs", "-o", "size=1m", "layerstore-test", meta)
    try:
        with open_store(tmp_path / "store") as store:
            store.load(archives[0])
            filler = _fill(meta, 0)
            with pytest.raises(StoreFull):  # noqa: PT012  # the pages at hand last for a while
                for archive in archives[1:]:
                    store.load(archive)
            assert_holds(store, images[0])
        with open_store(tmp_path / "store") as store:
            assert store.verify().damages == ()
            filler.unlink()
        with open_store(tmp_path / "store") as store:
            assert_clean(store)
            store.load(archives[1])
            assert_holds(store, images[1])
    finally:
        _run("umount", meta)


_LIMITED = """
import resource, sys
from layerstore.api import open_store
from layerstore.errors import StoreFull
root, action, what, limit = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
with open_store(root) as store:
    try:
        if action == "load":
            store.load(what)
        else:
            for number in range(5000):
                store.tag(what, f"test/limited:{number}-" + 60 * "x")
    except StoreFull as error:
        print("full:", error)
        sys.exit(10)
"""


@pytest.mark.parametrize("action", ["load", "tag"])
def test_limit_on_the_size_of_files_is_a_full_store(tmp_path: Path, action: str) -> None:
    first, second = sample_images(15, count=2, layer_size=_MIB)
    root = tmp_path / "store"
    with open_store(root) as store:
        store.load(write_archive(tmp_path, first))
    what = write_archive(tmp_path, second) if action == "load" else first.tags[0]
    # The new image does not fit below 1 MiB of the chunk file; the tables may grow by a few pages only.
    limit = _MIB if action == "load" else (root / "meta" / "data.mdb").stat().st_size + (32 << 10)
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(root), action, str(what), str(limit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 10, done.stderr
    with open_store(root) as store:
        assert_clean(store)
        assert_holds(store, first)
        store.load(write_archive(tmp_path, second))
        assert_holds(store, second)
