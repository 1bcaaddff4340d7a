"""Through the service, as containerd would: marks that a client writes itself, filters, an unpacking that a crash interrupts."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.snapshots.mounting import mounted
from layerstore.snapshots.specs import MountSpec
from tests.clients.servers import snapshotter
from tests.support.snapshots import seen_through_mount
from tests.support.snapshots_client import SnapshotsClient, snapshots_client
from tests.support.stores import assert_clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.serve._proto import snapshots_pb2 as pb

pytestmark = pytest.mark.root


@contextmanager
def _at(target: Path, mounts: list[pb.Mount]) -> Iterator[Path]:
    target.mkdir(exist_ok=True)
    specs = [MountSpec(mount.type, mount.source, tuple(mount.options)) for mount in mounts]
    with mounted(specs, target):
        yield target


def _fill(top: Path) -> None:
    """One of everything that a filesystem can hold."""
    (top / "folder").mkdir(mode=0o750)
    (top / "folder/file").write_bytes(os.urandom(200_000))
    os.link(top / "folder/file", top / "other name")
    (top / "link").symlink_to("folder/nowhere")
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    (top / "setuid").write_bytes(b"#!")
    (top / "setuid").chmod(0o6755)
    (top / "owned").write_bytes(b"")
    os.chown(top / "owned", 2**32 - 3, 7)
    os.setxattr(top / "owned", "user.note", bytes(range(256)))
    os.setxattr(top / "folder", "trusted.mark", b"root's")
    capability = bytes.fromhex("0100000202040000000000000000000000000000")  # cap_net_raw+ep
    os.setxattr(top / "setuid", "security.capability", capability)
    with (top / "sparse").open("wb") as file:
        file.truncate(10_000_000)
        file.seek(5_000_000)
        file.write(b"middle")
    for number, name in enumerate(("owned", "folder/file", "folder")):
        os.utime(top / name, ns=(1, (number - 1) * 10**18 + 123_456_789))


def _change(top: Path) -> None:
    """Whatever leaves a mark of its own in an upper directory."""
    (top / "other name").unlink()
    (top / "null").unlink()
    os.setxattr(top / "owned", "user.note", b"changed")
    os.removexattr(top / "folder", "trusted.mark")
    (top / "fifo").chmod(0o600)
    for path in (top / "folder").iterdir():
        path.unlink()
    (top / "folder").rmdir()
    (top / "folder").mkdir()
    (top / "folder/new").write_text("an opaque folder")
    (top / "link").unlink()
    (top / "link").mkdir()
    (top / "setuid").rename(top / "renamed")


def test_whiteouts_and_opaque_folders_of_a_client_are_understood(
    client: SnapshotsClient, tmp_path: Path
) -> None:
    """containerd writes the marks of overlayfs itself, into the upper directory, with nothing mounted."""
    (mount,) = client.prepare("base")
    base = Path(mount.source)
    for name in ("kept", "gone", "folder/hidden"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(name)
    client.commit("base-done", "base")
    (mount,) = client.prepare("default/9/extract-1-x sha256:" + "0" * 64, "base-done")
    upper = Path(next(o.partition("=")[2] for o in mount.options if o.startswith("upperdir=")))
    os.mknod(upper / "gone", stat.S_IFCHR, 0)
    (upper / "folder").mkdir()
    os.setxattr(upper / "folder", "trusted.overlay.opaque", b"y")
    (upper / "folder/seen").write_text("seen")
    client.commit("done", "default/9/extract-1-x sha256:" + "0" * 64)
    with _at(tmp_path / "after", client.view("after", "done")) as top:
        assert {str(path.relative_to(top)) for path in top.rglob("*")} == {
            "kept", "folder", "folder/seen",
        }  # fmt: skip


def test_filters_of_a_list(client: SnapshotsClient) -> None:
    root = {"containerd.io/gc.root": "check"}
    client.prepare("tmp")
    client.commit("p", "tmp", root)
    client.prepare("a", "p", {"l": "2", **root})
    client.view("v", "p", root)
    client.prepare("alone", "", {"l": "1"})

    def names(*filters: str) -> list[str]:
        return sorted(info.name for info in client.list(*filters))

    marked = 'labels."containerd.io/gc.root"==check'
    assert names(marked) == ["a", "p", "v"]
    assert names(f"{marked},kind==view") == ["v"]
    assert names("kind==Active") == []
    assert names("labels.l") == ["a", "alone"]
    assert names("labels.l==2", "name==p") == ["a", "p"]
    assert names('parent==""') == ["alone", "p"], "how containerd looks for a bottom layer"
    assert names('parent!=""') == ["a", "v"]
    assert names("name~=^al") == ["alone"]
    assert names("no.such.field") == []
    assert names("") == names() == ["a", "alone", "p", "v"]


def test_an_unpacking_goes_on_over_a_crash_of_the_service(tmp_path: Path) -> None:
    """Its mount stays, what was written stays, and the next service commits all of it."""
    path = tmp_path / "s.sock"
    with snapshotter(tmp_path / "store", path) as service, snapshots_client(path) as client:
        with _at(tmp_path / "base", client.prepare("base")) as top:
            _fill(top)
        client.commit("base-done", "base")
        with _at(tmp_path / "m", client.prepare("key", "base-done")) as top:
            (top / "before").write_text("before")
            service.kill()
            service.wait()
            with snapshotter(tmp_path / "store", path), snapshots_client(path) as again:
                _change(top)
                before = seen_through_mount(top)
                assert again.usage("key").inodes > 5
                again.commit("done", "key")
                with _at(tmp_path / "after", again.view("after", "done")) as after:
                    assert seen_through_mount(after) == before
    with open_store(tmp_path / "store") as store:
        assert_clean(store)
