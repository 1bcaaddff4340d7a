"""Contents are there once: on disk, in data images, in the page cache; objects within their budget."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.formats.erofs import read_image
from layerstore.mount.mounter import (
    MountOptions,
    mount_stack,
)
from layerstore.mount.places import Places
from layerstore.mount.sysfs import sysfs_name
from layerstore.tree import Kind
from tests.support.lacking import lacking
from tests.support.mounts import (
    OVERLAYS,
    put_simple,
    resident_share,
)
from tests.support.stores import payload

if TYPE_CHECKING:
    from layerstore.store.store import Store


pytestmark = pytest.mark.root


def test_contents_go_into_one_data_image_only(store: Store, target: Path) -> None:
    for seed in (1, 2):
        with mount_stack(store, put_simple(store, seed), target, MountOptions(driver="erofs")):
            pass
    images = sorted(path.name for path in (store.layout.root / "images").glob("data-*.erofs"))
    assert images == ["data-1.erofs", "data-2.erofs"]
    names = []
    for name in images:
        image = read_image((store.layout.root / "images" / name).read_bytes())
        names.append({path for path, node in image.walk() if node.kind is Kind.FILE})
    assert len(names[0]) == 5
    assert len(names[1]) == 1  # its own
    assert names[0].isdisjoint(names[1])


@pytest.mark.parametrize("driver", OVERLAYS)
def test_images_share_the_page_cache(store: Store, tmp_path: Path, driver: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    options = MountOptions(driver=driver)
    stacks = put_simple(store, 1), put_simple(store, 2)
    with mount_stack(store, stacks[0], one, options), mount_stack(store, stacks[1], two, options):
        for name in ("shared", "own"):
            fd = os.open(two / name, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        os.sync()
        if driver == "erofs":
            assert resident_share(two / "shared") == 0
            assert resident_share(two / "own") == 0
            (one / "own").read_bytes()
            assert resident_share(two / "own") == 0
        (one / "shared").read_bytes()
        assert resident_share(two / "shared") == 1


def test_frames_are_read_past_the_page_cache_and_far_ahead(store: Store, target: Path) -> None:
    with mount_stack(store, put_simple(store), target, MountOptions(driver="erofs")):
        (shown,) = [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if f"{store.layout.root}/run/data/1 " in line
        ]  # fmt: skip
        assert {"directio", "cache_strategy=disabled"} <= set(shown.split()[-1].split(","))
        os.sync()
        with store.layout.chunks.open("rb") as chunks:
            os.posix_fadvise(chunks.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        (target / "shared").read_bytes()
        assert resident_share(store.layout.chunks) == 0
        if not os.access("/sys/class/bdi", os.W_OK):
            lacking("a writable sysfs is not there")
        kind, name = sysfs_name(Places.of(store.layout.root).data_mount(1))
        assert kind == "erofs"
        assert Path(f"/sys/class/bdi/{name}/read_ahead_kb").read_text() == "1024\n"
        assert Path(f"/sys/fs/erofs/{name}/sync_decompress").read_text() == "2\n"


def test_objects_that_no_mount_needs_go_over_budget(store: Store, tmp_path: Path) -> None:
    from layerstore.mount.objects import evict_objects

    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    options = MountOptions(driver="objects")
    places = Places.of(store.layout.root)
    with mount_stack(store, put_simple(store, 1), one, options):
        with mount_stack(store, put_simple(store, 2), two, options):
            assert evict_objects(store, places, 0) == 0
        freed = evict_objects(store, places, 0)
        assert 200_000 <= freed < 400_000  # `own` of the second
        assert (one / "own").read_bytes() == payload(1, 200_000)
        assert (one / "shared").read_bytes() == payload(99, 400_000)
    assert evict_objects(store, places, 1 << 30) == 0
    evict_objects(store, places, 0)
    assert [path for path in places.objects.rglob("*") if path.is_file()] == []
