"""Damaged chunks are errors, damaged images are made anew: no mount shows wrong bytes as right ones."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from layerstore.errors import (
    CorruptStore,
)
from layerstore.mount.mounter import (
    DRIVERS,
    MountOptions,
    mount_stack,
)
from layerstore.view import open_view
from tests.support.mounts import (
    OVERLAYS,
    differences,
    mount_records,
    mounts_below,
    names_in,
    put_simple,
)
from tests.support.stores import payload

if TYPE_CHECKING:
    from pathlib import Path

    from layerstore.store.store import Store


pytestmark = pytest.mark.root


def _assert_pages_are_right_or_refused(path: Path, want: bytes) -> None:
    """Page by page. Not asked of `erofs`: docs/adr/0005."""
    good = 0
    fd = os.open(path, os.O_RDONLY)
    try:
        for at in range(0, len(want), 4096):
            try:
                piece = os.pread(fd, 4096, at)
            except OSError:
                continue
            assert piece == want[at : at + 4096]
            good += 1
    finally:
        os.close(fd)
    assert 0 < good < -(-len(want) // 4096)


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_reading_a_damaged_file_is_an_error(store: Store, target: Path, driver: str) -> None:
    diff_ids = put_simple(store, 5)
    view = open_view(store, diff_ids)
    want = view.read_bytes("own")
    numbers = view.tree.extents_of(view.resolve("own"))["number"]
    with store.read() as txn:
        place = store.index.places(txn, numbers)[len(numbers) // 2]
    with store.layout.chunks.open("r+b") as chunks:
        chunks.seek(int(place["address"]) + int(place["encoded"]) // 2)
        byte = chunks.read(1)
        chunks.seek(-1, os.SEEK_CUR)
        chunks.write(bytes([byte[0] ^ 1]))
    from layerstore.cache import process_cache

    process_cache().clear()
    with mount_stack(store, diff_ids, target, MountOptions(driver=driver)):
        with pytest.raises(OSError, match=r"(?i)error|clean"):
            (target / "own").read_bytes()
        if driver == "fuse":
            _assert_pages_are_right_or_refused(target / "own", want)
        assert (target / "shared").read_bytes() == payload(99, 400_000)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_mount_that_is_verified_shows_no_damaged_file(
    store: Store, target: Path, driver: str
) -> None:
    diff_ids = put_simple(store, 5)
    options = MountOptions(driver=driver, verify=True)
    with mount_stack(store, diff_ids, target, options):
        assert (target / "own").read_bytes() == payload(5, 200_000)
    if driver == "objects":
        shutil.rmtree(store.layout.root / "objects")
    view = open_view(store, diff_ids)
    number = view.tree.extents_of(view.resolve("own"))["number"][:1]
    with store.read() as txn:
        place = store.index.places(txn, number)[0]
    with store.layout.chunks.open("r+b") as chunks:
        chunks.seek(int(place["address"]) + int(place["encoded"]) // 2)
        byte = chunks.read(1)
        chunks.seek(-1, os.SEEK_CUR)
        chunks.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CorruptStore, match="damaged on disk: '/own'"):
        mount_stack(store, diff_ids, target, options)
    assert mounts_below(target.parent) == []
    assert mount_records(store) == []
    assert names_in(target) == []


@pytest.mark.parametrize("driver", OVERLAYS)
def test_an_image_file_that_is_damaged_or_missing_is_made_anew(
    store: Store, target: Path, driver: str
) -> None:
    diff_ids = put_simple(store)
    options = MountOptions(driver=driver)
    view = open_view(store, diff_ids)
    for damage in ("flip", "remove", "cut"):
        with mount_stack(store, diff_ids, target, options):
            pass
        for path in (store.layout.root / "images").glob("*-*"):
            data = bytearray(path.read_bytes())
            if damage == "flip":
                data[len(data) // 2] ^= 1
                path.write_bytes(data)
            elif damage == "cut":
                path.write_bytes(data[: len(data) // 2])
            else:
                path.unlink()
        with mount_stack(store, diff_ids, target, options):
            assert differences(view, target) == []
