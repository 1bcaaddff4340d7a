"""What is asked of mounts, by functions and by the command: refusals, lists, what `auto` says."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.digest import DiffID, digest_of
from layerstore.errors import (
    AlreadyExists,
    Busy,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unsupported,
)
from layerstore.mount.mounter import (
    DRIVERS,
    MountOptions,
    choose_driver,
    hold_lower,
    list_mounts,
    mount_stack,
    release_lowers,
)
from tests.support.mounts import (
    OVERLAYS,
    layer_with,
    mount_records,
    names_in,
    put_simple,
    torture_lower,
)
from tests.support.stores import payload

if TYPE_CHECKING:
    from layerstore.store.store import Store


pytestmark = pytest.mark.root


def test_requests_that_cannot_be_met_say_so(store: Store, target: Path, tmp_path: Path) -> None:
    diff_ids = put_simple(store)
    with pytest.raises(NotFound):
        mount_stack(store, diff_ids, tmp_path / "absent", MountOptions())
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InvalidArgument):
        mount_stack(store, diff_ids, file, MountOptions())
    with pytest.raises(InvalidArgument):
        mount_stack(store, diff_ids, store.layout.tmp, MountOptions())
    with pytest.raises(InvalidArgument):
        mount_stack(store, diff_ids, target, MountOptions(driver="nfs"))
    with pytest.raises(InvalidArgument):
        mount_stack(store, diff_ids, target, MountOptions(upper=tmp_path))
    with pytest.raises(Unsupported):
        mount_stack(store, diff_ids, target, MountOptions(driver="fuse", rw=True))
    with pytest.raises(NotFound):
        mount_stack(store, [DiffID(digest_of(b"absent"))], target, MountOptions())
    (target / "mine").touch()
    with pytest.raises(FailedPrecondition):
        mount_stack(store, diff_ids, target, MountOptions(driver="checkout"))
    assert names_in(target) == ["mine"]
    assert mount_records(store) == []
    with mount_stack(store, diff_ids, target, MountOptions()), pytest.raises(AlreadyExists):
        mount_stack(store, diff_ids, target, MountOptions())


@pytest.mark.parametrize("driver", [*OVERLAYS, "fuse"])
def test_a_mount_in_use_is_busy_and_stays(store: Store, target: Path, driver: str) -> None:
    mount = mount_stack(store, put_simple(store), target, MountOptions(driver=driver))
    with (target / "own").open("rb") as file:
        with pytest.raises(Busy):
            mount.umount()
        assert hashlib.sha256(file.read()).digest() == hashlib.sha256(payload(0, 200_000)).digest()
    mount.umount()


def test_auto_takes_the_best_and_says_why(store: Store) -> None:
    driver, reason = choose_driver(store, MountOptions())
    assert driver.name == "erofs"
    assert reason


def test_held_layers_serve_an_overlay_of_somebody_else(store: Store, target: Path) -> None:
    diff_ids = put_simple(store)
    held = hold_lower(store, diff_ids)
    assert hold_lower(store, diff_ids) == held
    assert len(mount_records(store)) == 1
    assert list_mounts(store) == []
    lower = "::".join(map(str, (held.root, *held.data)))
    options = f"ro,metacopy=on,redirect_dir=follow,lowerdir={lower}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", target], check=True)
    assert (target / "own").read_bytes() == payload(0, 200_000)
    release_lowers(store)
    assert (target / "shared").read_bytes() == payload(99, 400_000)
    subprocess.run(["umount", target], check=True)


def test_a_mount_is_a_path_and_needs_no_folder_of_yours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    archive = tmp_path / "root.tar"
    archive.write_bytes(layer_with(torture_lower))
    with open_store(tmp_path / "store") as store:
        store.import_rootfs(archive, "test:1")
        for driver in DRIVERS:
            with store.mount("test:1", driver=driver) as path:
                assert Path(path, "etc/motd").read_bytes() == b"hello\n"
                assert "motd" in os.listdir(f"{os.fspath(path)}/etc")  # noqa: PTH208  # as users do
            assert list(temporary.iterdir()) == []
        with pytest.raises(InvalidArgument):
            store.mount("test:1", driver="nfs")
        assert list(temporary.iterdir()) == []


def test_the_command_mounts_lists_and_unmounts(tmp_path: Path, target: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "layerstore", "--root", str(tmp_path / "store"), *words]
        return subprocess.run(
            argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
        )

    archive = tmp_path / "root.tar"
    archive.write_bytes(layer_with(torture_lower))
    assert run("import", str(archive), "test:1").returncode == 0
    assert run("mount", "test:1", str(target)).stdout == f"Mounted: {target} (erofs)\n"
    assert (target / "etc" / "motd").read_bytes() == b"hello\n"
    assert run("mount", "test:1", str(target)).returncode == 4
    listed = json.loads(run("mounts", "--format", "json").stdout)
    assert [(one["target"], one["driver"]) for one in listed] == [(str(target), "erofs")]
    done = run("umount", "--format", "json", str(tmp_path), str(target))
    assert json.loads(done.stdout)["unmounted"] == [str(target)]
    assert done.returncode == 3
    assert list(target.iterdir()) == []
