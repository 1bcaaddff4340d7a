"""What a container writes comes back from a committed snapshot: through the service's socket and real mounts."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from layerstore.snapshots import MountSpec
from layerstore.snapshots.mounting import mounted
from tests.clients.images import tree_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.snapshots_client import SnapshotsClient

pytestmark = pytest.mark.root

_NEVER = 2**63  # all times are compared


@contextmanager
def _seen(client: SnapshotsClient, key: str, place: Path) -> Iterator[Path]:
    """What a client of containerd sees: it mounts what the service says."""
    place.mkdir(exist_ok=True)
    specs = [MountSpec(one.type, one.source, tuple(one.options)) for one in client.mounts(key)]
    with mounted(specs, place):
        yield place


def _write_all_kinds(root: Path) -> None:
    (root / "folder").mkdir(mode=0o2750)
    (root / "file").write_bytes(os.urandom(70_000))
    os.setxattr(root / "file", "user.note", b"bytes \x00\xff")
    os.setxattr(root / "folder", "trusted.other", b"kept")
    # cap_net_raw+ep of version 2, as setcap(8) writes it
    os.setxattr(
        root / "file",
        "security.capability",
        bytes.fromhex("01000002002000000000000000000000 00000000"),
    )
    os.link(root / "file", root / "folder/other name")
    os.chown(root / "file", 2**31 + 5, 7)
    (root / "file").chmod(0o4711)
    (root / "dangling").symlink_to("../no/such")
    os.mkfifo(root / "pipe", 0o600)
    os.mknod(root / "character", stat.S_IFCHR | 0o620, os.makedev(5, 1))
    os.mknod(root / "block", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    for name in ("file", "pipe", "folder"):
        os.utime(root / name, ns=(1, 1_234_567_890_123_456_789))


def test_every_kind_of_file_comes_back(client: SnapshotsClient, tmp_path: Path) -> None:
    client.prepare("base-tmp")
    with _seen(client, "base-tmp", tmp_path / "m") as root:
        _write_all_kinds(root)
        written = tree_of(root, _NEVER)
    client.commit("base", "base-tmp")
    client.view("view", "base")
    with _seen(client, "view", tmp_path / "m") as root:
        assert tree_of(root, _NEVER) == written


def test_what_a_container_changes_comes_back(client: SnapshotsClient, tmp_path: Path) -> None:
    client.prepare("base-tmp")
    with _seen(client, "base-tmp", tmp_path / "m") as root:
        _write_all_kinds(root)
        for name in ("removed", "remade", "kept"):
            (root / name).mkdir()
            (root / name / "below").write_text(name)
    client.commit("base", "base-tmp")
    client.prepare("change", "base")
    with _seen(client, "change", tmp_path / "m") as root:
        for name in ("removed", "remade"):
            (root / name / "below").unlink()
            (root / name).rmdir()
        (root / "remade").mkdir()  # opaque: what was below stays hidden
        (root / "kept").rename(root / "renamed")  # by reference
        (root / "pipe").unlink()
        (root / "character").unlink()
        (root / "character").write_text("a file in place of a device")
        os.removexattr(root / "file", "user.note")
        (root / "folder/other name").chmod(0o600)  # of one name of two
        changed = tree_of(root, _NEVER)
    client.commit("changed", "change")
    client.view("view", "changed")
    with _seen(client, "view", tmp_path / "m") as root:
        assert tree_of(root, _NEVER) == changed
        assert not (root / "removed").exists()
        assert not list((root / "remade").iterdir())
        assert (root / "renamed/below").read_text() == "kept"


def test_usage_is_the_same_before_and_after_a_commit(
    client: SnapshotsClient, tmp_path: Path
) -> None:
    """As containerd's own counts: blocks, each inode once, the root and whiteouts among them."""
    client.prepare("base-tmp")
    empty = client.usage("base-tmp")
    with _seen(client, "base-tmp", tmp_path / "m") as root:
        (root / "file").write_bytes(os.urandom(1 << 20))
        os.link(root / "file", root / "hard link")
        (root / "soft").symlink_to("file")
        (root / "folder").mkdir()
        os.sync()
    used = client.usage("base-tmp")
    assert (empty.inodes, used.inodes) == (1, 4)
    assert used.size - empty.size >= 1 << 20
    client.commit("base", "base-tmp")
    assert client.usage("base") == used
    client.prepare("change", "base")
    with _seen(client, "change", tmp_path / "m") as root:
        (root / "file").unlink()
    assert client.usage("change").inodes == 2, "a whiteout is one"
    client.view("view", "base")
    assert (client.usage("view").size, client.usage("view").inodes) == (0, 0)


def test_a_view_cannot_be_written(client: SnapshotsClient, tmp_path: Path) -> None:
    client.prepare("base-tmp")
    client.commit("base", "base-tmp")
    client.view("view", "base")
    with _seen(client, "view", tmp_path / "m") as root, pytest.raises(OSError, match="Read-only"):
        (root / "file").write_text("x")
    with pytest.raises(grpc.RpcError, match="not active"):
        client.commit("other", "view")
