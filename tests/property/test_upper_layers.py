"""What a mounted snapshot shows is what its layers show, whatever was done to it."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.snapshots import Snapshots, StoreLowers
from layerstore.snapshots.mounting import mounted
from layerstore.snapshots.specs import MountSpec
from tests.support.snapshots import seen_through_mount, seen_through_view, unmount_below

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = ["a", "b", "c", "é", "long" * 30]


def _any_path(rng: random.Random, top: Path) -> Path:
    path = top
    for _ in range(rng.randrange(1, 4)):
        path = path / rng.choice(NAMES)
    return path


def _put(path: Path, flags: int, data: bytes) -> None:
    """Write to a file; what is a fifo fails and does not wait."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | flags)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _write(rng: random.Random, path: Path) -> None:
    _put(path, os.O_TRUNC, rng.randbytes(rng.choice([0, 1, 600, 70_000])))


def _append(rng: random.Random, path: Path) -> None:
    _put(path, os.O_APPEND, rng.randbytes(100))


def _make_folders(rng: random.Random, path: Path) -> None:
    path.mkdir(parents=True, mode=rng.choice([0o755, 0o700, 0o1777]))


def _remove(rng: random.Random, path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _replace(rng: random.Random, path: Path) -> None:
    was_folder = path.is_dir() and not path.is_symlink()
    _remove(rng, path)
    if was_folder:
        _write(rng, path)
    else:
        path.mkdir()
        _write(rng, path / "a")


def _rename(rng: random.Random, path: Path) -> None:
    path.rename(path.with_name(rng.choice(NAMES)))


def _link(rng: random.Random, path: Path) -> None:
    os.link(path, path.with_name(rng.choice(NAMES)), follow_symlinks=False)


def _attributes(rng: random.Random, path: Path) -> None:
    path.chmod(rng.choice([0o600, 0o4755, 0o2711]))
    os.chown(path, rng.randrange(3), 1 << 31, follow_symlinks=False)
    os.setxattr(path, "user.note", rng.randbytes(3))
    os.setxattr(
        path, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000")
    )


def _special(rng: random.Random, path: Path) -> None:
    kind = rng.choice(["symlink", "fifo", "device"])
    if kind == "symlink":
        path.symlink_to(rng.choice(["a", "b", "not/there"]))
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.mknod(path, 0o020600, os.makedev(1, 3))  # /dev/null: may be written to


def _set_time(rng: random.Random, path: Path) -> None:
    os.utime(path, ns=(0, rng.randrange(-(10**18), 10**18)), follow_symlinks=False)


CHANGES: list[Callable[[random.Random, Path], None]] = [
    *(_write, _write, _append, _make_folders, _make_folders, _remove, _replace),
    *(_rename, _link, _attributes, _special, _set_time),
]


@pytest.mark.root
@pytest.mark.parametrize("lean", [False, True], ids=["copies", "references"])
@pytest.mark.parametrize("seed", range(6))
def test_layers_show_what_the_mount_showed(tmp_path: Path, seed: int, lean: bool) -> None:
    rng = random.Random(seed)
    top = tmp_path / "m"
    top.mkdir()
    try:
        with open_store(tmp_path / "store") as store:
            snapshots = Snapshots(store.store, StoreLowers(store.store))
            parent = ""
            for generation in range(4):
                snapshots.prepare("work", parent)
                (spec,) = snapshots.mounts("work")
                if lean and spec.type == "overlay":
                    kept = [o for o in spec.options if not o.startswith(("metacopy", "redirect"))]
                    spec = MountSpec(
                        "overlay", "overlay", (*kept, "metacopy=on", "redirect_dir=on")
                    )
                with mounted([spec], top):
                    for _ in range(60):
                        # Whatever the kernel refuses (a folder over a file, a name of a folder) is no change.
                        with suppress(OSError):
                            path = _any_path(rng, top)
                            assert os.path.realpath(path).startswith(f"{os.path.realpath(top)}/")
                            rng.choice(CHANGES)(rng, path)
                    shown = seen_through_mount(top)
                parent = f"c{generation}"
                snapshots.commit(parent, "work")
                stored = seen_through_view(store.store, snapshots.stack(parent))
                assert stored == shown
                assert len(stored) > 3
    finally:
        unmount_below(tmp_path)
