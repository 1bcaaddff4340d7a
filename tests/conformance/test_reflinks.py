"""Checkouts share the blocks of ROOT/objects where the filesystem can: xfs and btrfs, made for the test."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from tests.support.archive_builders import Image, docker_archive_of, layer_tar
from tests.support.lacking import lacking
from tests.support.snapshots import unmount_below
from tests.support.stores import payload

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

IMAGE = "test/reflinks:1"
FILES = {"large": payload(1, 3 << 20), "other": payload(2, 1 << 20)}
MAKERS = {"xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"], "ext4": ["mkfs.ext4", "-q"]}


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A filesystem of the kind that the test asks for."""
    maker = MAKERS[request.param]
    if shutil.which(maker[0]) is None:
        lacking(f"{maker[0]} is not installed")
    if request.param not in Path("/proc/filesystems").read_text().split():
        lacking(f"this kernel has no {request.param}")
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(512 << 20)
    place.mkdir()
    subprocess.run([*maker, image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        unmount_below(place)
        subprocess.run(["umount", place], check=True)


def _is_shared(path: Path) -> bool:
    """Whether all extents of a file are of another one, too."""
    command = ["filefrag", "-v", str(path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    extents = [line for line in said.splitlines() if line.strip()[:1].isdigit()]
    return bool(extents) and all("shared" in line for line in extents)


@pytest.mark.parametrize(("disk", "can"), [("xfs", True), ("btrfs", True), ("ext4", False)], indirect=["disk"])  # fmt: skip
def test_a_checkout_is_cloned_where_that_can_be_done(disk: Path, can: bool) -> None:
    (disk / "archive.tar").write_bytes(docker_archive_of([Image.of([layer_tar(FILES)], IMAGE)]))
    target = disk / "target"
    target.mkdir()
    with open_store(disk / "store") as store:
        store.load(disk / "archive.tar")
        with store.mount(IMAGE, target, driver="objects"):
            pass
        subprocess.run(["sync", "-f", disk], check=True)
        with store.mount(IMAGE, target, rw=True, driver="checkout"):
            subprocess.run(["sync", "-f", disk], check=True)
            assert {name: (target / name).read_bytes() for name in FILES} == FILES
            assert [_is_shared(target / name) for name in FILES] == [can, can]
            # A write is nobody else's.
            with (target / "large").open("r+b") as file:
                file.write(b"changed")
        with store.mount(IMAGE, target, driver="objects"):
            assert {name: (target / name).read_bytes() for name in FILES} == FILES
