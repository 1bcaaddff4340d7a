"""Writable mounts do what any filesystem does, and what was written becomes an image that shows the same."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from layerstore.api import LayerStore, open_store
from tests.support.archive_builders import Image, docker_archive_of, layer_tar
from tests.support.snapshots import seen_through_mount, seen_through_view, unmount_below
from tests.support.stores import payload
from tests.support.stress import Stress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.snapshots import Seen

pytestmark = pytest.mark.root

OVERLAYS = ("erofs", "objects")
BASE, RESULT = "test/base:1", "test/result:1"
GIB = 1 << 30
ISLANDS = (0, 300 << 20, GIB - 100_000)  # where the large file is not zeros
ISLAND = payload(7, 100_000)
SCRIPT = b"#!/bin/sh\necho ran $1\n"
FIXED_SEEDS = (1, 2)
STEPS = 500


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as opened:
        yield opened
    unmount_below(tmp_path)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def _load(store: LayerStore, folder: Path, *layers: bytes) -> None:
    archive = folder / "base.tar"
    archive.write_bytes(docker_archive_of([Image.of(list(layers), BASE)]))
    store.load(archive)
    archive.unlink()


def _lower() -> bytes:
    files = {f"dir/sub/{name}": name.encode() * 1000 for name in "abc"}
    files |= {f"opaque/{name}": name.encode() for name in "xyz"}
    files |= {f"whited/{name}": name.encode() for name in "pqr"}
    files |= {name: payload(seed, 200_000) for seed, name in enumerate(("append", "mapped", "own"))}
    return layer_tar({**files, "moved": b"moved", "linked": b"linked", "script": SCRIPT})


def _write(top: Path) -> None:
    """One of everything that a program does to files, on files that come from below."""
    (top / "new").write_bytes(b"new")
    with (top / "append").open("ab") as file:
        file.write(b"more")
    os.chown(top / "own", 12, 34)
    (top / "own").chmod(0o4711)
    os.setxattr(top / "own", "user.note", b"value")
    os.setxattr(top / "own", "trusted.note", b"value")
    (top / "moved").rename(top / "dir" / "renamed")
    (top / "dir").rename(top / "folder")
    os.link(top / "linked", top / "folder" / "link")
    os.link(top / "folder" / "sub" / "c", top / "a name before")
    os.link(top / "folder" / "sub" / "c", top / "folder" / "sub" / "d")
    (top / "whited" / "p").unlink()
    shutil.rmtree(top / "opaque")
    (top / "opaque").mkdir(mode=0o711)
    (top / "opaque" / "only").write_bytes(b"only this")
    with (top / "mapped").open("r+b") as both, mmap.mmap(both.fileno(), 0) as window:
        window[100_000:100_006] = b"mapped"
        window.flush()
    (top / "folder" / "sub" / "b").unlink()
    (top / "folder" / "sub" / "b").mkdir()  # a folder where a file was
    (top / "folder" / "symlink").symlink_to("../own")
    os.mkfifo(top / "pipe", 0o640)
    (top / "script").chmod(0o755)
    done = subprocess.run([top / "script", "it"], capture_output=True, check=True)
    assert done.stdout == b"ran it\n"


def _assert_written(seen: dict[str, Seen]) -> None:
    """The names and bytes that `_write` leaves, said once more, independently of any mount."""
    whole = payload(1, 200_000)
    assert seen["new"].content == b"new"
    assert seen["append"].content == payload(0, 200_000) + b"more"
    assert seen["mapped"].content == whole[:100_000] + b"mapped" + whole[100_006:]
    assert (seen["own"].mode, seen["own"].owner) == (0o4711, (12, 34))
    assert dict(seen["own"].xattrs) == {"user.note": b"value", "trusted.note": b"value"}
    assert seen["own"].content == payload(2, 200_000)
    assert seen["linked"].group == seen["folder/link"].group == ("folder/link", "linked")
    assert seen["folder/sub/c"].group == ("a name before", "folder/sub/c", "folder/sub/d")
    assert "moved" not in seen
    assert seen["folder/renamed"].content == b"moved"
    assert not any(path == "dir" or path.startswith("dir/") for path in seen)
    assert seen["folder/sub/a"].content == b"a" * 1000
    assert [path for path in seen if path.startswith("opaque/")] == ["opaque/only"]
    assert sorted(path for path in seen if path.startswith("whited/")) == ["whited/q", "whited/r"]


@pytest.mark.parametrize("driver", OVERLAYS)
def test_what_was_written_is_what_the_new_image_shows(
    store: LayerStore, tmp_path: Path, target: Path, driver: str
) -> None:
    _load(store, tmp_path, _lower())
    with store.mount(BASE, target, rw=True, driver=driver):
        _write(target)
        written = seen_through_mount(target)
        _assert_written(written)
        store.commit(str(target), RESULT)
    stack = tuple(layer.diff_id for layer in store.inspect(RESULT).layers)
    assert len(stack) == 2
    assert seen_through_view(store.store, stack) == written
    for other in OVERLAYS:
        with store.mount(RESULT, target, driver=other):
            assert seen_through_mount(target) == written
    assert store.verify().damages == ()


@pytest.mark.slow
def test_a_file_of_one_gib_is_copied_up_and_committed(
    store: LayerStore, tmp_path: Path, target: Path
) -> None:
    with (tmp_path / "big").open("wb") as file:
        for at in ISLANDS:
            file.seek(at)
            file.write(ISLAND)
    command = ["tar", "--sparse", "--format=posix", "-C", str(tmp_path), "-cf", "-", "big"]
    _load(store, tmp_path, subprocess.run(command, capture_output=True, check=True).stdout)
    with (tmp_path / "big").open("ab") as file:
        file.write(b"more")
    with store.mount(BASE, target, rw=True, driver="erofs"):
        with (target / "big").open("ab") as file:
            file.write(b"more")
        store.commit(str(target), RESULT)
    with store.mount(RESULT, target, driver="erofs"):
        subprocess.run(["cmp", target / "big", tmp_path / "big"], check=True)


@pytest.mark.parametrize("seed", [*FIXED_SEEDS, None])
def test_random_writes_are_what_a_model_says(
    store: LayerStore, tmp_path: Path, target: Path, seed: int | None
) -> None:
    """As `fsx` does: reads, writes, maps and truncates of files from below, each read compared with plain bytes."""
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # shown when it fails
    files = {f"file{number}": payload(number, 150_000 * number) for number in range(3)}
    _load(store, tmp_path, layer_tar(files))
    with store.mount(BASE, target, rw=True, driver="erofs"):
        stress = Stress(target, files, random.Random(seed))
        for _ in range(STEPS):
            stress.step()
        stress.compare()
        store.commit(str(target), RESULT)
    with store.mount(RESULT, target, driver="erofs"):
        stress.compare()
