"""Writable mounts take all that a filesystem takes; the store stays as it was."""

from __future__ import annotations

import mmap
import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from layerstore.mount.mounter import (
    MountOptions,
    mount_stack,
)
from layerstore.view import open_view
from tests.support.mounts import (
    OVERLAYS,
    WRITABLE,
    differences,
    names_in,
    put_simple,
)
from tests.support.stores import payload

if TYPE_CHECKING:
    from pathlib import Path

    from layerstore.store.store import Store


pytestmark = pytest.mark.root


@pytest.mark.parametrize("driver", WRITABLE)
def test_writes_do_what_they_do_elsewhere(store: Store, target: Path, driver: str) -> None:
    script = b"#!/bin/sh\necho ran\n"
    diff_ids = put_simple(store, 1, ("script", script))
    with mount_stack(store, diff_ids, target, MountOptions(rw=True, driver=driver)):
        (target / "new").write_bytes(b"new")
        with (target / "own").open("ab") as file:
            file.write(b"more")
        assert (target / "own").read_bytes() == payload(1, 200_000) + b"more"
        (target / "shared").chmod(0o4755)
        os.chown(target / "shared", 12, 34)
        os.setxattr(target / "shared", "user.x", b"y")
        os.utime(target / "shared", ns=(5, 7))
        status = (target / "shared").stat()
        assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (12, 34, 7)
        assert os.getxattr(target / "shared", "user.x") == b"y"
        assert (target / "shared").read_bytes() == payload(99, 400_000)
        os.link(target / "shared", target / "linked")
        assert (target / "linked").samefile(target / "shared")
        (target / "new").rename(target / "newer")
        (target / "folder").rename(target / "moved")
        assert names_in(target / "moved") == ["a", "b", "c"]
        assert (target / "moved" / "b").read_bytes() == b"bbb"
        (target / "moved" / "b").unlink()
        assert names_in(target / "moved") == ["a", "c"]
        shutil.rmtree(target / "moved")
        (target / "moved").mkdir()
        assert names_in(target / "moved") == []
        with (target / "own").open("r+b") as both, mmap.mmap(both.fileno(), 0) as window:
            window[:4] = b"mmap"
        assert (target / "own").read_bytes()[:5] == b"mmap" + payload(1, 200_000)[4:5]
        done = subprocess.run([target / "script"], capture_output=True, check=True)
        assert done.stdout == b"ran\n"
    # The store is as it was.
    with mount_stack(store, diff_ids, target, MountOptions(driver=driver)):
        assert differences(open_view(store, diff_ids), target) == []


@pytest.mark.parametrize("driver", OVERLAYS)
def test_changes_stay_in_the_callers_folder(store: Store, target: Path, driver: str) -> None:
    diff_ids = put_simple(store)
    upper = target.parent / "upper"
    upper.mkdir()
    options = MountOptions(rw=True, driver=driver, upper=upper)
    with mount_stack(store, diff_ids, target, options):
        (target / "new").write_bytes(b"kept")
        (target / "own").unlink()
        target.chmod(0o711)
    with mount_stack(store, diff_ids, target, options):
        assert (target / "new").read_bytes() == b"kept"
        assert not (target / "own").exists()
        assert stat.S_IMODE(target.stat().st_mode) == 0o711


def test_changes_without_a_folder_are_gone_with_the_mount(store: Store, target: Path) -> None:
    diff_ids = put_simple(store)
    for _ in range(2):
        with mount_stack(store, diff_ids, target, MountOptions(rw=True)):
            assert not (target / "new").exists()
            (target / "new").write_bytes(b"")
    assert list((store.layout.root / "uppers").iterdir()) == []
