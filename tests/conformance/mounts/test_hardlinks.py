"""Checkouts of hard links: exact as all others, and the second one costs no bytes of files."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.errors import InvalidArgument, NotFound, Unsupported
from layerstore.mount import mounter
from layerstore.mount.hardlinks import HardlinksDriver
from layerstore.mount.leftovers import sweep_leftovers
from layerstore.mount.mounter import (
    MountOptions,
    choose_driver,
    list_mounts,
    mount_stack,
    umount_target,
)
from layerstore.mount.objects import evict_objects
from layerstore.mount.places import Places
from layerstore.view import open_view
from tests.support.mounts import differences, mount_records, names_in, put_simple, put_torture
from tests.support.stores import payload

if TYPE_CHECKING:
    from layerstore.store.store import Store

pytestmark = pytest.mark.root

_OPTIONS = MountOptions(driver="hardlinks")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    path = tmp_path / "second"
    path.mkdir()
    return path


def _files(folder: Path) -> dict[int, int]:
    """Inodes of the regular files below, with the bytes that they take."""
    paths = [Path(top, name) for top, _, names in os.walk(folder) for name in names]
    found = [path.stat(follow_symlinks=False) for path in paths]
    return {one.st_ino: one.st_blocks * 512 for one in found if stat.S_ISREG(one.st_mode)}


def _pool(store: Store) -> list[Path]:
    return [*Places.of(store.layout.root).links.glob("??/*")]


def test_a_second_checkout_costs_no_bytes_of_files_and_is_exact(
    store: Store, target: Path, second: Path
) -> None:
    diff_ids = put_torture(store)
    view = open_view(store, diff_ids)
    mount_stack(store, diff_ids, target, _OPTIONS)
    first = _files(target)
    assert sum(first.values()) > 9 << 20
    with mount_stack(store, diff_ids, second, _OPTIONS):
        assert _files(second) == first
        assert len(_pool(store)) == len(first)
        for folder in (target, second):
            assert differences(view, folder, is_shared=True) == []
    # One is gone, the other is as it was.
    assert differences(view, target, is_shared=True) == []


def test_equal_contents_with_other_metadata_are_other_files(
    store: Store, target: Path, second: Path
) -> None:
    """`a` of both has the same bytes; the mode differs, so no inode can be both."""
    one = put_simple(store, 1)
    two = put_simple(store, 1, ("folder/a", b"aaa"))  # 0755 where the other has 0644
    mount_stack(store, one, target, _OPTIONS)
    mount_stack(store, two, second, _OPTIONS)
    assert (target / "own").samefile(second / "own")
    assert not (target / "folder/a").samefile(second / "folder/a")
    for diff_ids, folder in ((one, target), (two, second)):
        assert differences(open_view(store, diff_ids), folder, is_shared=True) == []


@pytest.mark.parametrize("change", ["content", "mode", "attribute", "owner"])
def test_a_file_that_was_changed_is_not_given_out_again(
    store: Store, target: Path, second: Path, change: str
) -> None:
    diff_ids = put_simple(store)
    mount_stack(store, diff_ids, target, _OPTIONS)
    match change:
        case "content":
            (target / "own").write_bytes(payload(1, 200_000))
        case "mode":
            (target / "own").chmod(0o600)
        case "attribute":
            os.setxattr(target / "own", "user.new", b"x")
        case _:
            os.chown(target / "own", 7, 7)
    with mount_stack(store, diff_ids, second, _OPTIONS):
        assert differences(open_view(store, diff_ids), second, is_shared=True) == []
        assert not (target / "own").samefile(second / "own")
        assert (target / "shared").samefile(second / "shared")


def test_files_of_a_checkout_outlive_their_place_in_the_pool(
    store: Store, target: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mounter.DRIVERS, "hardlinks", HardlinksDriver(budget=0))
    one, two = put_simple(store, 1), put_simple(store, 2)
    places = Places.of(store.layout.root)
    mount_stack(store, one, target, _OPTIONS)
    with mount_stack(store, two, second, _OPTIONS):
        assert evict_objects(store, places, 0) == 0, "all are in use, and would free nothing"
    assert 200_000 <= evict_objects(store, places, 0) < 300_000  # `own` of the second
    for path in _pool(store):
        path.unlink()
    assert differences(open_view(store, one), target, is_shared=True) == []
    with mount_stack(store, one, second, _OPTIONS):
        assert not (target / "own").samefile(second / "own")


def test_a_prune_takes_what_no_checkout_has(store: Store, target: Path, second: Path) -> None:
    mount_stack(store, put_simple(store, 1), target, _OPTIONS)
    with mount_stack(store, put_simple(store, 2), second, _OPTIONS):
        assert sweep_leftovers(store) == 0
    assert sweep_leftovers(store) >= 200_000
    assert {path.stat().st_ino for path in _pool(store)} == set(_files(target))


def test_it_is_for_reading_and_needs_one_filesystem(store: Store, target: Path) -> None:
    diff_ids = put_simple(store)
    with pytest.raises(Unsupported, match="must not be written to"):
        mount_stack(store, diff_ids, target, MountOptions(rw=True, driver="hardlinks"))
    with pytest.raises(InvalidArgument):
        mount_stack(
            store, diff_ids, target, MountOptions(rw=True, driver="hardlinks", upper=target)
        )
    elsewhere = Path("/dev/shm", f"layerstore-{os.getpid()}")
    elsewhere.mkdir()
    try:
        with pytest.raises(Unsupported, match="same filesystem"):
            mount_stack(store, diff_ids, elsewhere, _OPTIONS)
        assert names_in(elsewhere) == []
    finally:
        elsewhere.rmdir()
    assert mount_records(store) == []
    assert choose_driver(store, MountOptions())[0].name != "hardlinks"


@pytest.mark.parametrize("driver", ["hardlinks", "objects"])
def test_what_a_killed_process_was_writing_goes_with_a_prune(
    store: Store, target: Path, driver: str
) -> None:
    """It dies before its files are shown: they have no name but the one aside, and nobody else looks there."""
    diff_ids = put_simple(store)
    code = (
        "import os, sys; from pathlib import Path; from layerstore.api import open_store;"
        "from layerstore.mount.mounter import MountOptions, mount_stack;"
        "from layerstore.store import files; files.sync_filesystem = lambda folder: os._exit(9);"
        "mount_stack(open_store(sys.argv[1]).store, sys.argv[4:], Path(sys.argv[2]),"
        " MountOptions(driver=sys.argv[3]))"
    )
    words = [sys.executable, "-c", code, str(store.layout.root), str(target), driver, *diff_ids]
    assert subprocess.run(words, check=False, cwd=Path(__file__).parents[3]).returncode == 9
    aside = [path for path in Places.of(store.layout.root).run.rglob("*") if path.is_file()]
    assert len([path for path in aside if path.stat().st_size]) >= 5
    list_mounts(store)
    with pytest.raises(NotFound):
        umount_target(store, target)  # tidies
    assert names_in(target) == []
    assert sweep_leftovers(store) >= 600_000
    assert [path for path in aside if path.exists() and path.stat().st_size > 500] == []
    assert _pool(store) == []
    with mount_stack(store, diff_ids, target, MountOptions(driver=driver)):
        is_shared = driver == "hardlinks"
        assert differences(open_view(store, diff_ids), target, is_shared=is_shared) == []
