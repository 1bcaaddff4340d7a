"""The contract of containerd's snapshotters, case by case: the names are those of its own test suite where it has one.

What can be said without mounting is said without; cases that mount are marked `root`.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LayerstoreError,
    NotFound,
)
from layerstore.snapshots import Info, SnapshotKind, Snapshots, StoreLowers, Usage
from layerstore.snapshots.mounting import mounted
from layerstore.snapshots.plainfiles import PlainLowers
from tests.support.snapshots import (
    changed,
    open_snapshots,
    seen_through_mount,
    seen_through_view,
    unmount_below,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ACTIVE, VIEW, COMMITTED = SnapshotKind.ACTIVE, SnapshotKind.VIEW, SnapshotKind.COMMITTED
EMPTY_LAYER = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"


@pytest.fixture
def snapshots(tmp_path: Path) -> Iterator[Snapshots]:
    with open_snapshots(tmp_path / "store") as opened:
        yield opened


@pytest.fixture(params=[PlainLowers, StoreLowers])
def mountable(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Snapshots]:
    """Snapshots on plain files, and on what the store mounts in place."""
    with open_store(tmp_path / "store") as store:
        yield Snapshots(store.store, request.param(store.store))
    unmount_below(tmp_path)


def _upper(snapshots: Snapshots, key: str) -> Path:
    """Where the changes of a parentless snapshot go."""
    return Path(snapshots.mounts(key)[0].source)


def _committed(snapshots: Snapshots, name: str, parent: str = "") -> Info:
    snapshots.prepare(f"{name}-tmp", parent)
    return snapshots.commit(name, f"{name}-tmp")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_stat_active(snapshots: Snapshots) -> None:
    before = time.time_ns()
    made = snapshots.prepare("/some/very/long/path/" + "x" * 60)
    assert made == snapshots.stat(made.name)
    assert (made.parent, made.kind) == ("", ACTIVE)
    assert before <= made.created_ns == made.updated_ns <= time.time_ns()


def test_stat_committed(snapshots: Snapshots) -> None:
    snapshots.prepare("active", labels={"gone": "yes"})
    info = snapshots.commit("name", "active", {"kept": "yes"})
    assert info == snapshots.stat("name")
    assert (info.kind, info.parent, info.labels) == (COMMITTED, "", {"kept": "yes"})
    assert info.created_ns == info.updated_ns
    with pytest.raises(NotFound, match=r": not found$"):
        snapshots.stat("active")


def test_transitivity(snapshots: Snapshots) -> None:
    _committed(snapshots, "a")
    _committed(snapshots, "b", "a")
    assert (snapshots.stat("b").parent, snapshots.stat("a").parent) == ("a", "")


@pytest.mark.parametrize("first", ["prepare", "view"])
@pytest.mark.parametrize("second", ["prepare", "view"])
def test_prepare_view_failing(snapshots: Snapshots, first: str, second: str) -> None:
    _committed(snapshots, "base")
    getattr(snapshots, first)("key", "base")
    with pytest.raises(AlreadyExists, match=r": already exists$"):
        getattr(snapshots, second)("key", "base")


def test_update(snapshots: Snapshots) -> None:
    _committed(snapshots, "c1")
    _committed(snapshots, "c2", "c1")
    snapshots.prepare("a1", "c2")
    snapshots.prepare("a2")
    snapshots.view("v1", "c2")
    snapshots.view("v2")
    for key, parent, kind in (
        ("c1", "", COMMITTED),
        ("c2", "c1", COMMITTED),
        ("a1", "c2", ACTIVE),
        ("a2", "", ACTIVE),
        ("v1", "c2", VIEW),
        ("v2", "", VIEW),
    ):
        old = snapshots.stat(key)
        assert (old.parent, old.kind) == (parent, kind)
        before = time.time_ns()
        wish = Info(key, "doesnotexist", kind, {"l1": "v1", "l2": "v2", "l3": "v3"}, 0, 0)
        info = snapshots.update(wish)
        assert (info.parent, info.created_ns, info.labels) == (parent, old.created_ns, wish.labels)
        assert before <= info.updated_ns <= time.time_ns()
        wish = Info(key, "", kind, {"l1": "updated", "l4": "v4"}, 0, 0)
        info = snapshots.update(wish, ["labels.l1", "labels.l2"])
        assert info.labels == {"l1": "updated", "l3": "v3"}
        assert snapshots.update(wish, ["labels"]).labels == wish.labels
        empty = Info(key, "", kind, {"l4": ""}, 0, 0)
        assert snapshots.update(empty, ["labels.l4"]).labels == {"l1": "updated"}
        assert snapshots.stat(key).labels == {"l1": "updated"}
        for path in ("parent", "kind", "created", "name", "labels.", "nothing"):
            with pytest.raises(InvalidArgument, match=r": invalid argument$"):
                snapshots.update(wish, ["labels.l1", path])
        assert snapshots.stat(key).labels == {"l1": "updated"}


def test_remove(snapshots: Snapshots) -> None:
    _committed(snapshots, "base")
    for _ in range(2):
        snapshots.prepare("key", "base")
        snapshots.remove("key")
        snapshots.view("key", "base")
        snapshots.remove("key")
    snapshots.remove("base")
    _committed(snapshots, "base")
    assert [info.name for info in snapshots.walk()] == ["base"]


@pytest.mark.parametrize("child", ["prepare", "view", "commit"])
def test_remove_intermediate_snapshot(snapshots: Snapshots, child: str) -> None:
    _committed(snapshots, "base")
    _committed(snapshots, "inter", "base")
    if child == "commit":
        _committed(snapshots, "top", "inter")
    else:
        getattr(snapshots, child)("top", "inter")
    for name in ("inter", "base"):
        with pytest.raises(FailedPrecondition, match=r"remove.*: failed precondition$"):
            snapshots.remove(name)
    for name in ("top", "inter", "base"):
        snapshots.remove(name)
    assert list(snapshots.walk()) == []


def test_walk(snapshots: Snapshots) -> None:
    labels = {"containerd.io/gc.root": "check-walk"}
    snapshots.prepare("a-np", labels=labels)
    snapshots.prepare("p-tmp")
    snapshots.commit("p", "p-tmp", labels)
    snapshots.prepare("a", "p", labels)
    snapshots.view("v", "p", labels)
    snapshots.prepare("p-wl-tmp")
    snapshots.commit("p-wl", "p-wl-tmp", {"l": "1", **labels})
    snapshots.prepare("a-wl", "p-wl", {"l": "2", **labels})
    snapshots.view("v-wl", "p-wl", {"l": "3", **labels})
    snapshots.prepare("a-np-wl", labels={"l": "2", **labels})
    snapshots.prepare("unlabelled")
    root = 'labels."containerd.io/gc.root"==check-walk'

    def names(*filters: str) -> set[str]:
        return {info.name for info in snapshots.walk(filters)}

    everything = {"a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"}
    assert names(root) == everything
    assert names() == names("") == everything | {"unlabelled"}
    assert names(f"{root},kind==active") == {"a-np", "a", "a-wl", "a-np-wl"}
    assert names(f"{root},kind==view") == {"v", "v-wl"}
    assert names(f"{root},kind==committed") == {"p", "p-wl"}
    assert names(f"{root},name==p") == {"p"}
    assert names(f"{root},labels.l") == {"p-wl", "a-wl", "v-wl", "a-np-wl"}
    assert names(f"{root},labels.l==2") == {"a-wl", "a-np-wl"}
    assert names(f"{root},parent==p") == {"a", "v"}
    assert names(f'{root},parent!=""') == {"a", "v", "a-wl", "v-wl"}
    assert names("name==a", "name==v") == {"a", "v"}


def test_stat_in_walk(snapshots: Snapshots) -> None:
    for number in range(5):
        _committed(snapshots, f"stats-in-walk-{number}")
    for info in snapshots.walk():
        assert snapshots.stat(info.name) == info
        snapshots.remove(info.name)


def test_what_is_missing_is_not_found(snapshots: Snapshots) -> None:
    calls: list[Callable[[], object]] = [
        lambda: snapshots.stat("nothing"),
        lambda: snapshots.mounts("nothing"),
        lambda: snapshots.usage("nothing"),
        lambda: snapshots.remove("nothing"),
        lambda: snapshots.commit("name", "nothing"),
        lambda: snapshots.update(Info("nothing", "", ACTIVE, {}, 0, 0)),
        lambda: snapshots.prepare("key", "nothing"),
        lambda: snapshots.view("key", "nothing"),
        lambda: snapshots.fork(["sha256:" + "0" * 64], ["key"]),  # type: ignore[list-item]  # a DiffID at run time
    ]
    for call in calls:
        with pytest.raises(NotFound, match=r": not found$"):
            call()
    assert list(snapshots.walk()) == []


def test_only_committed_snapshots_are_parents(snapshots: Snapshots) -> None:
    snapshots.prepare("active")
    snapshots.view("view")
    for parent in ("active", "view"):
        for make in (snapshots.prepare, snapshots.view):
            with pytest.raises(InvalidArgument, match=r": invalid argument$"):
                make("key", parent)


def test_commit_fails_and_the_key_stays_active(snapshots: Snapshots) -> None:
    _committed(snapshots, "taken")
    snapshots.view("view")
    snapshots.prepare("a")
    for name in ("taken", "a", "view"):
        with pytest.raises(AlreadyExists):
            snapshots.commit(name, "a")
    for key in ("taken", "view"):
        with pytest.raises(FailedPrecondition, match=r": failed precondition$"):
            snapshots.commit("new", key)
    assert snapshots.stat("a").kind is ACTIVE
    with pytest.raises(FailedPrecondition):
        snapshots.mounts("taken")


def test_keys_may_be_any_text(snapshots: Snapshots) -> None:
    keys = [
        "default/2/sha256:" + "a" * 64,
        "x" * 4096,
        "y" * 401,
        "ü/ n\n",
        "\udcff",
        "k",
        "h",
        "c",
    ]
    for key in keys:
        snapshots.prepare(key)
    assert {info.name for info in snapshots.walk()} == set(keys)
    for key in keys:
        snapshots.remove(key)
    for key in ("", "x" * 4097, "nul\0"):
        with pytest.raises(InvalidArgument):
            snapshots.prepare(key)
    with pytest.raises(InvalidArgument):
        snapshots.prepare("key", labels={"l": "v" * 4096})


def test_mounts_of_each_kind(snapshots: Snapshots, tmp_path: Path) -> None:
    snapshots.prepare("a")
    _write(_upper(snapshots, "a") / "file", "x")
    (spec,) = snapshots.mounts("a")
    assert (spec.type, spec.options) == ("bind", ("rw", "rbind"))
    snapshots.view("v")
    (spec,) = snapshots.mounts("v")
    assert (spec.type, spec.options) == ("bind", ("ro", "rbind"))
    snapshots.commit("c", "a")
    snapshots.view("v1", "c")
    (spec,) = snapshots.mounts("v1")
    assert (spec.type, spec.options) == ("bind", ("ro", "rbind"))
    snapshots.prepare("a1", "c")
    assert snapshots.mounts("a1") == snapshots.mounts("a1")
    (spec,) = snapshots.mounts("a1")
    assert spec.type == "overlay"
    assert [option.partition("=")[0] for option in spec.options] == [
        "index", "workdir", "upperdir", "lowerdir",
    ]  # fmt: skip


def test_usage_counts_blocks_and_hard_links_once(snapshots: Snapshots) -> None:
    snapshots.prepare("a")
    top = _upper(snapshots, "a")
    (top / "big").write_bytes(os.urandom(1 << 20))
    os.link(top / "big", top / "link")
    (top / "dir").mkdir()
    (top / "sym").symlink_to("big")
    directory = (top / "dir").stat().st_blocks * 512
    want = Usage((1 << 20) + 2 * directory, 4)
    assert snapshots.usage("a") == want
    snapshots.view("v")
    assert snapshots.usage("v") == Usage(0, 0)
    snapshots.commit("c", "a")
    assert snapshots.usage("c") == want


def test_root_permission(snapshots: Snapshots) -> None:
    old = os.umask(0o077)
    try:
        snapshots.prepare("a")
    finally:
        os.umask(old)
    assert _upper(snapshots, "a").stat().st_mode & 0o7777 == 0o755


def test_no_change_is_the_empty_layer(snapshots: Snapshots) -> None:
    _committed(snapshots, "a")
    _committed(snapshots, "b", "a")
    assert snapshots.stack("b") == (EMPTY_LAYER, EMPTY_LAYER)


def test_fork_is_all_or_nothing(snapshots: Snapshots) -> None:
    _committed(snapshots, "a")
    stack = snapshots.stack("a")
    assert [info.name for info in snapshots.fork(stack, ["f1", "f2"])] == ["f1", "f2"]
    assert snapshots.stack("f1") == stack
    for keys in (["f3", "f2"], ["f3", "f3"]):
        with pytest.raises(AlreadyExists):
            snapshots.fork(stack, keys)
    assert {info.name for info in snapshots.walk()} == {"a", "f1", "f2"}
    assert snapshots.cleanup() == 0


def test_adopted_layers_are_a_parent(snapshots: Snapshots) -> None:
    _committed(snapshots, "a")
    layers = snapshots.stack("a")
    info = snapshots.adopt("image", layers, labels={"l": "1"})
    assert (info.kind, info.parent) == (COMMITTED, "")
    snapshots.adopt("top", layers, "image")
    assert snapshots.stack("top") == layers * 2
    snapshots.prepare("on", "top")
    with pytest.raises(FailedPrecondition):
        snapshots.remove("top")


def test_cleanup_deletes_only_what_nobody_has(snapshots: Snapshots, tmp_path: Path) -> None:
    snapshots.prepare("a")
    folder = tmp_path / "store" / "snapshots"
    (folder / "snap-77" / "fs" / "deep").mkdir(parents=True)
    (folder / "gone-00ff").mkdir()
    (folder / "of-somebody-else").mkdir()
    kept = _upper(snapshots, "a")
    assert snapshots.cleanup() == 2
    assert kept.is_dir()
    assert sorted(path.name for path in folder.iterdir()) == ["of-somebody-else", kept.parent.name]
    assert snapshots.cleanup() == 0


def test_a_left_over_directory_is_never_used_again(snapshots: Snapshots, tmp_path: Path) -> None:
    left = tmp_path / "store" / "snapshots" / "snap-1" / "fs"
    left.mkdir(parents=True)
    (left / "secret").touch()
    snapshots.prepare("a")
    assert list(_upper(snapshots, "a").iterdir()) == []
    assert snapshots.cleanup() == 1


def test_snapshots_survive_reopening(tmp_path: Path) -> None:
    with open_snapshots(tmp_path) as snapshots:
        snapshots.prepare("a", labels={"l": "v"})
        _write(_upper(snapshots, "a") / "f", "text")
        snapshots.commit("c", "a")
        infos = list(snapshots.walk())
    with open_snapshots(tmp_path) as snapshots:
        assert list(snapshots.walk()) == infos
        snapshots.view("v", "c")
        (spec,) = snapshots.mounts("v")
        assert (Path(spec.source) / "f").read_text() == "text"


def _no_change(top: Path) -> None:
    pass


def _base(top: Path) -> None:
    (top / "a").mkdir()
    (top / "a/b").mkdir()
    for name in ("a/one", "a/two", "a/b/three", "old", "moved"):
        _write(top / name, f"lower {name}")
    os.setxattr(top / "a/one", "user.note", b"\xff\0")
    os.link(top / "old", top / "a/linked")
    (top / "sym").symlink_to("a/one")
    os.mkfifo(top / "fifo")
    os.mknod(top / "device", 0o020600, os.makedev(1, 3))


def _change(top: Path) -> None:
    _write(top / "a/one", "upper, longer than it was")
    (top / "a/two").unlink()
    shutil.rmtree(top / "a/b")
    (top / "a/b").mkdir(mode=0o700)
    _write(top / "a/b/new", "new")
    (top / "moved").rename(top / "renamed")
    os.link(top / "renamed", top / "a/second name")
    (top / "old").chmod(0o4711)
    os.chown(top / "sym", 1, 2, follow_symlinks=False)
    (top / "fifo").unlink()
    (top / "fifo").mkdir()
    (top / ("long" * 60)).write_bytes(b"x" * 70_001)
    os.utime(top / "renamed", ns=(0, -1_500_000_001))
    with socket.socket(socket.AF_UNIX) as left_out:
        old = os.open(".", os.O_RDONLY)
        os.chdir(top)
        try:
            left_out.bind("s")
        finally:
            os.fchdir(old)
            os.close(old)
    top.chmod(0o711)


@pytest.mark.root
def test_basic(mountable: Snapshots, tmp_path: Path) -> None:
    """Commit what was mounted, mount what was committed: the same, at each of four generations."""
    snapshots = mountable
    parent = ""
    for number, change in enumerate((_base, _change, _no_change, _remove_directory)):
        snapshots.prepare("work", parent)
        shown = changed(snapshots, tmp_path / "m", "work", change)
        shown.pop("s", None)
        snapshots.commit(f"c{number}", "work")
        stored = seen_through_view(snapshots._store, snapshots.stack(f"c{number}"))
        assert stored == shown
        parent = f"c{number}"
        snapshots.view("v", parent)
        with mounted(snapshots.mounts("v"), tmp_path / "m"):
            assert seen_through_mount(tmp_path / "m") == shown
            with pytest.raises(OSError, match="Read-only"):
                (tmp_path / "m" / "x").touch()
        snapshots.remove("v")
    with pytest.raises(LayerstoreError, match="remove"):
        snapshots.remove("c0")


def _remove_directory(top: Path) -> None:
    shutil.rmtree(top / "a")
    (top / "a").mkdir()
    _write(top / "a/only", "this")


@pytest.mark.root
def test_commit_while_mounted(mountable: Snapshots, tmp_path: Path) -> None:
    snapshots = mountable
    (tmp_path / "m").mkdir()
    snapshots.prepare("p")
    with mounted(snapshots.mounts("p"), tmp_path / "m"):
        _write(tmp_path / "m" / "file", "text")
        snapshots.commit("c", "p")
        snapshots.prepare("on", "c")
    shown = changed(snapshots, tmp_path / "m", "on", _no_change)
    assert shown["file"].content == b"text"


@pytest.mark.root
def test_view_readonly(mountable: Snapshots, tmp_path: Path) -> None:
    snapshots = mountable
    _committed(snapshots, "c")
    snapshots.view("v", "c")
    (tmp_path / "m").mkdir()
    with mounted(snapshots.mounts("v"), tmp_path / "m"), pytest.raises(OSError, match="Read-only"):
        (tmp_path / "m" / "file").touch()


@pytest.mark.root
def test_many_layers_mount(mountable: Snapshots, tmp_path: Path) -> None:
    snapshots = mountable
    parent = ""
    for number in range(24):
        snapshots.prepare("work", parent)
        shown = changed(snapshots, tmp_path / "m", "work", lambda top, n=number: _layer(top, n))  # type: ignore[misc]
        parent = f"c{number}"
        snapshots.commit(parent, "work")
    snapshots.view("v", parent)
    with mounted(snapshots.mounts("v"), tmp_path / "m"):
        assert seen_through_mount(tmp_path / "m") == shown
    assert len(snapshots.stack(parent)) == 24


def _layer(top: Path, number: int) -> None:
    _write(top / "bottom", f"{number}")
    shutil.rmtree(top / "dir", ignore_errors=True)
    (top / "dir").mkdir()
    _write(top / "dir" / f"{number}", "x")
    _write(top / f"own{number}", "y")


@pytest.mark.root
def test_metacopy_and_redirects_are_resolved(tmp_path: Path) -> None:
    """What overlayfs keeps by reference (metadata-only copies, renamed directories) is whole in the layer."""
    with open_snapshots(tmp_path / "store") as snapshots:
        snapshots.prepare("p")
        _base(_upper(snapshots, "p"))
        snapshots.commit("c", "p")
        snapshots.prepare("work", "c")
        (spec,) = snapshots.mounts("work")
        lean = [type(spec)("overlay", "overlay", (*spec.options, "metacopy=on", "redirect_dir=on"))]
        (tmp_path / "m").mkdir()
        with mounted(lean, tmp_path / "m"):
            (tmp_path / "m/old").chmod(0o600)
            (tmp_path / "m/a").rename(tmp_path / "m/z")
            (tmp_path / "m/z/two").unlink()
            shown = seen_through_mount(tmp_path / "m")
        snapshots.commit("c2", "work")
        stored = seen_through_view(snapshots._store, snapshots.stack("c2"))
        assert stored == shown
        assert PlainLowers(snapshots._store).lower(snapshots.stack("c2")).data == ()
