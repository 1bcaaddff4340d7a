"""All mount drivers show the same: what the Tree says, what the View reads."""

from __future__ import annotations

import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.digest import DiffID, digest_of
from layerstore.formats.erofs import read_image
from layerstore.formats.erofs.ondisk import Feature
from layerstore.mount import mounter
from layerstore.mount.mounter import (
    DRIVERS,
    MountOptions,
    list_mounts,
    mount_stack,
)
from layerstore.mount.objects import ObjectsDriver
from layerstore.mount.places import Places
from layerstore.view import open_view
from tests.support.lacking import lacking
from tests.support.layers import put
from tests.support.mounts import (
    OVERLAYS,
    WRITABLE,
    add_entry,
    differences,
    layer_with,
    loop_devices,
    mounts_below,
    names_in,
    put_simple,
    put_torture,
)

if TYPE_CHECKING:
    from layerstore.store.store import Store


pytestmark = pytest.mark.root


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_driver_shows_the_tree(store: Store, target: Path, driver: str) -> None:
    diff_ids = put_torture(store)
    view = open_view(store, diff_ids)
    with mount_stack(store, diff_ids, target, MountOptions(driver=driver)) as mount:
        assert mount.info.driver == driver
        assert [one.target for one in list_mounts(store)] == [target]
        assert differences(view, target, is_shared=driver == "hardlinks") == []
    assert list_mounts(store) == []
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("driver", WRITABLE)
def test_a_writable_mount_starts_as_the_tree(store: Store, target: Path, driver: str) -> None:
    diff_ids = put_torture(store)
    with mount_stack(store, diff_ids, target, MountOptions(rw=True, driver=driver)):
        assert differences(open_view(store, diff_ids), target) == []


def test_objects_need_nothing_that_linux_6_6_lacks(
    store: Store, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No EROFS image from a file (6.12), no option for each layer (6.8), no 48-bit feature (6.15)."""
    if not Path("/dev/loop-control").exists():
        lacking("there are no loop devices")
    driver = ObjectsDriver(as_before_6_8=True)
    monkeypatch.setitem(mounter.DRIVERS, "objects", driver)
    diff_ids = put_torture(store)
    view = open_view(store, diff_ids)
    places = Places.of(store.layout.root)
    places.make()
    assert driver.probe(store, places, rw=False).ok
    for rw in (False, True):
        with mount_stack(store, diff_ids, target, MountOptions(rw=rw, driver="objects")):
            sources = [entry.source for entry in mounts_below(target.parent)]
            assert [source.startswith("/dev/loop") for source in sources] == [True, False]
            assert len(loop_devices(target.parent)) == 1
            assert differences(view, target) == []
        assert loop_devices(target.parent) == []
    for path in (store.layout.root / "images").glob("meta-*.erofs"):
        assert Feature.BIG_ADDRESSES not in read_image(path.read_bytes()).features


@pytest.mark.parametrize("driver", [*OVERLAYS, "fuse"])
def test_a_read_only_mount_refuses_writes(store: Store, target: Path, driver: str) -> None:
    diff_ids = put_simple(store)
    with mount_stack(store, diff_ids, target, MountOptions(driver=driver)):
        for attempt in (
            lambda: (target / "new").write_bytes(b""),
            lambda: (target / "own").write_bytes(b""),
            lambda: (target / "own").unlink(),
            lambda: (target / "own").chmod(0o777),
        ):
            with pytest.raises(OSError, match="Read-only"):
                attempt()


def test_an_empty_image_is_an_empty_folder(store: Store, target: Path) -> None:
    layer = layer_with(lambda tar: add_entry(tar, "./", type_=tarfile.DIRTYPE, mode=0o700))
    put(store, layer)
    for driver in DRIVERS:
        with mount_stack(store, [DiffID(digest_of(layer))], target, MountOptions(driver=driver)):
            assert names_in(target) == []
            assert stat.S_IMODE(target.stat().st_mode) == 0o700
