"""The life of what is mounted for others' overlays: there as long as a snapshot may need it, and gone afterwards."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.mount import images
from layerstore.mount.mounter import release_lowers
from layerstore.mount.mountinfo import read_mountinfo
from layerstore.mount.overlay import sweep_shared
from layerstore.mount.places import Places
from layerstore.snapshots import Snapshots, StoreLowers, service
from layerstore.snapshots.mounting import mounted
from layerstore.snapshots.specs import options_length
from tests.support.snapshots import changed, unmount_below

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerstore.api import LayerStore
    from layerstore.digest import DiffID
    from layerstore.snapshots import Lower

pytestmark = pytest.mark.root

UNPACK = "ns/7/extract-123-abcd sha256:" + "0" * 64


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as opened:
        yield opened
    unmount_below(tmp_path)


@pytest.fixture
def snapshots(store: LayerStore) -> Snapshots:
    return store.snapshots


def _held(tmp_path: Path) -> list[str]:
    """The kinds of private mounts there are."""
    run = f"{tmp_path}/store/run/"
    places = [entry.target for entry in read_mountinfo() if entry.target.startswith(run)]
    return sorted(place.removeprefix(run).split("/")[0] for place in places)


def _commit(snapshots: Snapshots, tmp_path: Path, name: str, parent: str = "") -> None:
    def change(top: Path) -> None:
        (top / name).write_text(name * 1000)

    snapshots.prepare("work", parent)
    changed(snapshots, tmp_path / "m", "work", change)
    snapshots.commit(name, "work")


def test_an_image_stays_mounted_until_it_is_removed(snapshots: Snapshots, tmp_path: Path) -> None:
    _commit(snapshots, tmp_path, "image")
    assert _held(tmp_path) == [], "a layer on nothing needs nothing"
    snapshots.prepare("c1", "image")
    assert _held(tmp_path) == ["data", "meta"]
    snapshots.remove("c1")
    snapshots.cleanup()
    assert _held(tmp_path) == ["data", "meta"], "for the next container"
    snapshots.remove("image")
    assert _held(tmp_path) == []


def test_what_only_an_unpacking_needed_goes_with_it(snapshots: Snapshots, tmp_path: Path) -> None:
    _commit(snapshots, tmp_path, "base")
    snapshots.prepare(UNPACK, "base")
    assert _held(tmp_path) == ["data", "merged", "meta"]
    snapshots.commit("top", UNPACK)
    assert _held(tmp_path) == []


def test_a_snapshot_keeps_what_it_stands_on(snapshots: Snapshots, tmp_path: Path) -> None:
    _commit(snapshots, tmp_path, "base")
    snapshots.view("user", "base")
    _commit(snapshots, tmp_path, "top", "base")
    snapshots.cleanup()
    with mounted(snapshots.mounts("user"), tmp_path / "m"):
        assert (tmp_path / "m/base").read_text() == "base" * 1000
    snapshots.remove("user")
    snapshots.cleanup()
    assert _held(tmp_path) == []


def test_running_overlays_go_on_when_their_lowers_are_let_go(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    _commit(snapshots, tmp_path, "image")
    snapshots.prepare("c", "image")
    with mounted(snapshots.mounts("c"), tmp_path / "m"):
        snapshots.remove("c")
        snapshots.remove("image")
        assert _held(tmp_path) == []
        assert (tmp_path / "m/image").read_text() == "image" * 1000


def test_forks_hold_and_let_go(store: LayerStore, snapshots: Snapshots, tmp_path: Path) -> None:
    _commit(snapshots, tmp_path, "image")
    stack = snapshots.stack("image")
    snapshots.remove("image")
    snapshots.fork(stack, ["f1", "f2"])
    snapshots.remove("f1")
    assert _held(tmp_path) == ["data", "meta"]
    snapshots.remove("f2")
    assert _held(tmp_path) == []


def test_the_next_start_lets_go_of_what_a_crash_has_left(
    store: LayerStore, snapshots: Snapshots, tmp_path: Path
) -> None:
    _commit(snapshots, tmp_path, "base")
    snapshots.prepare(UNPACK, "base")
    snapshots._release_lowers = lambda: None  # type: ignore[method-assign]  # killed before it
    snapshots.commit("top", UNPACK)
    assert _held(tmp_path) == ["data", "merged", "meta"]
    Snapshots(store.store, StoreLowers(store.store)).cleanup()
    assert _held(tmp_path) == []


def test_mounts_come_back_after_a_reboot(snapshots: Snapshots, tmp_path: Path) -> None:
    """A reboot keeps the records and loses the mounts; so does somebody who unmounts."""
    _commit(snapshots, tmp_path, "image")
    snapshots.prepare("c", "image")
    specs = snapshots.mounts("c")
    sweep_shared(Places.of(tmp_path / "store"), [])
    assert _held(tmp_path) == []
    assert snapshots.mounts("c") == specs
    with mounted(specs, tmp_path / "m"):
        assert (tmp_path / "m/image").read_text() == "image" * 1000


def test_another_user_of_the_store_that_lets_go_is_noticed(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    _commit(snapshots, tmp_path, "base")
    _commit(snapshots, tmp_path, "top", "base")
    snapshots.view("v", "base")
    snapshots.remove("v")
    with open_store(tmp_path / "store") as other:
        other.snapshots.cleanup()
    assert _held(tmp_path) == []
    snapshots.view("v", "base")
    with mounted(snapshots.mounts("v"), tmp_path / "m"):
        assert (tmp_path / "m/base").read_text() == "base" * 1000


def test_who_unpacks_a_layer_is_shown_no_folder_of_the_host(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    """containerd splits `lowerdir` at colons, and takes an empty part for the host's root."""
    _commit(snapshots, tmp_path, "base")
    snapshots.prepare(UNPACK, "base")
    (spec,) = snapshots.mounts(UNPACK)
    (lower,) = [option[9:] for option in spec.options if option.startswith("lowerdir=")]
    assert ":" not in lower
    assert Path(lower, "base").read_text() == "base" * 1000
    with mounted([spec], tmp_path / "m"):
        assert (tmp_path / "m/base").read_text() == "base" * 1000


@pytest.fixture
def deep(snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshots:
    """A snapshot `c` on ten layers, each of which has brought a data image; at most four are for one stack."""
    monkeypatch.setattr(images, "_MOST_DATA", 4)
    parent = ""
    for number in range(10):
        _commit(snapshots, tmp_path, f"c{number}", parent)
        parent = f"c{number}"
    snapshots.prepare("run", parent)
    return snapshots


def _shows_all(snapshots: Snapshots, tmp_path: Path) -> None:
    with mounted(snapshots.mounts("run"), tmp_path / "m"):
        for number in range(10):
            assert (tmp_path / f"m/c{number}").read_text() == f"c{number}" * 1000


def test_data_layers_of_a_stack_are_bounded(deep: Snapshots, tmp_path: Path) -> None:
    (spec,) = deep.mounts("run")
    assert 1 < spec.options[-1].count("::") <= 4
    _shows_all(deep, tmp_path)


def test_options_that_are_too_long_give_way_to_one_folder(
    deep: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (spec,) = deep.mounts("run")
    monkeypatch.setattr(service, "MAX_OPTIONS", options_length([spec]) - 1)
    (shorter,) = deep.mounts("run")
    assert "::" not in shorter.options[-1]
    assert options_length([shorter]) < options_length([spec])
    _shows_all(deep, tmp_path)


def test_bug_lower_let_go_while_a_snapshot_is_made_of_it(
    store: LayerStore, snapshots: Snapshots, tmp_path: Path
) -> None:
    class LetGo(StoreLowers):
        """Somebody else's release comes at the worst moment."""

        def lower(self, diff_ids: Sequence[DiffID], *, in_one: bool = False) -> Lower:
            lower = super().lower(diff_ids, in_one=in_one)
            release_lowers(store.store)
            return lower

    snapshots.prepare("work")
    changed(snapshots, tmp_path / "m", "work", lambda top: top.chmod(0o751))
    snapshots.commit("base", "work")
    Snapshots(store.store, LetGo(store.store)).prepare("new", "base")
    with mounted(snapshots.mounts("new"), tmp_path / "m"):
        assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o751
