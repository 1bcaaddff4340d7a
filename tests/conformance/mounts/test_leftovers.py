"""Crashes, kills and crowds: mounts leave nothing behind that the next call does not clean up."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.errors import (
    NotFound,
)
from layerstore.mount import mounter
from layerstore.mount.mounter import (
    DRIVERS,
    MountOptions,
    list_mounts,
    mount_stack,
    umount_target,
)
from layerstore.mount.places import Places
from layerstore.store.mountstate import MountTable
from layerstore.store.snapstate import SnapshotTable
from tests.support.mounts import (
    OVERLAYS,
    loop_devices,
    mount_record,
    mount_records,
    mounts_below,
    open_descriptors,
    put_simple,
)
from tests.support.stores import payload

if TYPE_CHECKING:
    from layerstore.store.store import Store


pytestmark = pytest.mark.root


def _files_below(root: Path) -> set[str]:
    return {os.path.relpath(path, root) for path in root.rglob("*")}


def test_two_hundred_mounts_end_in_any_order_and_leave_nothing(
    store: Store, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # shown when it fails
    rng = random.Random(seed)
    stacks = [put_simple(store, seed) for seed in range(10)]
    targets = [tmp_path / f"mnt{number:03}" for number in range(200)]

    def begin(number: int) -> None:
        targets[number].mkdir()
        driver = OVERLAYS[number // 10 % 2]
        options = MountOptions(rw=number % 3 == 0, driver=driver)
        mount_stack(store, stacks[number % 10], targets[number], options)

    def end(number: int) -> None:
        assert (targets[number] / "shared").read_bytes() == payload(99, 400_000)
        assert (targets[number] / "own").read_bytes() == payload(number % 10, 200_000)
        umount_target(store, targets[number])

    for number in range(20):  # everything that stays is made: images, objects
        begin(number)
        end(number)
        targets[number].rmdir()
    kept, descriptors = _files_below(store.layout.root), open_descriptors()
    order = list(range(200))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(begin, rng.sample(order, 200)))
        entries = mounts_below(tmp_path)
        # 200 overlays, 10 metadata images, and one data image for each stack: the shared file is in the first only
        assert len(entries) == 200 + 10 + 10
        assert len({entry.target for entry in entries}) == len(entries)
        assert len(list_mounts(store)) == 200
        list(threads.map(end, rng.sample(order, 200)))
    assert list_mounts(store) == []
    assert mounts_below(tmp_path) == []
    assert loop_devices(tmp_path) == []
    assert open_descriptors() == descriptors
    assert mount_records(store) == []
    assert _files_below(store.layout.root) == kept
    assert [*(store.layout.root / "run" / "meta").iterdir()] == []
    assert [*(store.layout.root / "run" / "data").iterdir()] == []
    assert [*(store.layout.root / "uppers").iterdir()] == []
    with store.read() as txn:
        assert list(SnapshotTable(store.database).records(txn)) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_crash_between_record_and_mount_is_cleaned_up(
    store: Store, target: Path, driver: str
) -> None:
    places = Places.of(store.layout.root)
    places.make()
    upper = places.upper("00crash")
    (upper / "fs").mkdir(parents=True)
    (target / "mine").write_bytes(b"not of a mount")
    record = mount_record(target, driver, rw=True, upper=str(upper), owns_upper=True)
    with store.write() as txn:
        MountTable(store.database).add(txn, record)
    assert list_mounts(store) == []
    with pytest.raises(NotFound):
        umount_target(store, target)
    assert mount_records(store) == []
    assert not upper.exists()
    assert (target / "mine").exists()


def test_a_crash_between_private_mounts_and_overlay_is_cleaned_up(
    store: Store, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diff_ids = put_simple(store)
    with monkeypatch.context() as patch:
        patch.setattr(mounter, "_forget", lambda *_: None)  # as if the process died here
        patch.setattr("layerstore.mount.erofs.mount_overlay", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mount_stack(store, diff_ids, target, MountOptions(driver="erofs"))
    assert len(mounts_below(target.parent)) == 2
    assert len(mount_records(store)) == 1
    with pytest.raises(NotFound):
        umount_target(store, target)
    assert mounts_below(target.parent) == []
    assert mount_records(store) == []


def test_an_unfinished_checkout_is_removed_as_far_as_it_is_marked(
    store: Store, target: Path
) -> None:
    (target / ".layerstore-00crash").touch()
    (target / "half").mkdir()
    with store.write() as txn:
        MountTable(store.database).add(txn, mount_record(target, "checkout"))
    with mount_stack(store, put_simple(store), target, MountOptions(driver="checkout")):
        assert not (target / "half").exists()


def test_records_of_an_earlier_boot_go_and_those_of_another_namespace_stay(
    store: Store, target: Path
) -> None:
    earlier = mount_record(target, "erofs", boot="another")
    elsewhere = mount_record(target, "erofs", namespace=1)
    with store.write() as txn:
        MountTable(store.database).add(txn, earlier)
        MountTable(store.database).add(txn, elsewhere)
    with mount_stack(store, put_simple(store), target, MountOptions()):
        pass
    assert mount_records(store) == [elsewhere]


_MOUNT_OFTEN = """
import sys
from pathlib import Path
from layerstore.api import open_store
from layerstore.mount.mounter import MountOptions, mount_stack
root, target, *diff_ids = sys.argv[1:]
with open_store(root) as opened:
    for _ in range(10):
        with mount_stack(opened.store, diff_ids, Path(target), MountOptions(driver="erofs")):
            assert (Path(target) / "shared").stat().st_size == 400_000
            assert len((Path(target) / "shared").read_bytes()) == 400_000
"""


def test_processes_mount_at_once(store: Store, tmp_path: Path) -> None:
    stacks = [put_simple(store, seed) for seed in range(2)]
    workers = []
    for number in range(4):
        target = tmp_path / f"mnt{number}"
        target.mkdir()
        argv = [sys.executable, "-c", _MOUNT_OFTEN, str(store.layout.root), str(target)]
        workers.append(
            subprocess.Popen([*argv, *stacks[number % 2]], cwd=Path(__file__).parents[2])
        )
    assert [worker.wait() for worker in workers] == [0] * 4
    assert list_mounts(store) == []
    assert mount_records(store) == []


def test_a_killed_fuse_server_can_be_unmounted(store: Store, target: Path) -> None:
    diff_ids = put_simple(store)
    mount = mount_stack(store, diff_ids, target, MountOptions(driver="fuse"))
    root = os.fsencode(store.layout.root)
    servers = [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and {root, os.fsencode(diff_ids[0])} <= {*_command_line(path)}
    ]
    assert len(servers) == 1
    os.kill(servers[0], signal.SIGKILL)
    with pytest.raises(OSError, match=r"(?i)connect|abort"):
        (target / "own").read_bytes()
    assert [one.target for one in list_mounts(store)] == [target]
    mount.umount()
    assert list_mounts(store) == []


def _command_line(process: Path) -> list[bytes]:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []
    return words
