"""Snapshots in a real store: apply changes through real mounts, look at what a mounted root shows."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from layerstore.api import open_store
from layerstore.mount.linux import unmount
from layerstore.mount.mountinfo import read_mountinfo
from layerstore.snapshots import Snapshots
from layerstore.snapshots.mounting import mounted
from layerstore.snapshots.plainfiles import PlainLowers
from layerstore.tree import Kind
from layerstore.view import open_view

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerstore.digest import DiffID
    from layerstore.store.store import Store

__all__ = [
    "Seen",
    "changed",
    "open_snapshots",
    "seen_through_mount",
    "seen_through_view",
    "unmount_below",
]


class Seen(NamedTuple):
    """What a path shows; `group` is all names of a file that has several."""

    kind: int
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    device: int
    content: bytes
    xattrs: tuple[tuple[str, bytes], ...]
    group: tuple[str, ...]


@contextmanager
def open_snapshots(root: Path) -> Iterator[Snapshots]:
    with open_store(root) as store:
        yield Snapshots(store.store, PlainLowers(store.store))


def unmount_below(folder: Path) -> None:
    """Take away what a test has left mounted: the store's private mounts, which outlive processes."""
    for entry in reversed(read_mountinfo()):
        if entry.target.startswith(f"{folder}/"):
            unmount(Path(entry.target), lazy=True)


def changed(
    snapshots: Snapshots, folder: Path, key: str, change: Callable[[Path], object]
) -> dict[str, Seen]:
    """Mount an active snapshot, change it; returns what it shows afterwards."""
    folder.mkdir(exist_ok=True)
    with mounted(snapshots.mounts(key), folder):
        change(folder)
        return seen_through_mount(folder)


def seen_through_mount(top: Path) -> dict[str, Seen]:
    found: dict[str, Seen] = {}
    names: dict[int, list[str]] = {}
    pending = [""]
    while pending:
        name = pending.pop()
        path = top / name
        status = path.lstat()
        content = b""
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.fsencode(path.readlink())
        elif stat.S_ISDIR(status.st_mode):
            pending += [f"{name}/{child.name}".lstrip("/") for child in path.iterdir()]
        if not stat.S_ISDIR(status.st_mode):
            names.setdefault(status.st_ino, []).append(name)
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
            if not key.startswith("trusted.overlay.")
        }
        found[name] = Seen(
            stat.S_IFMT(status.st_mode),
            stat.S_IMODE(status.st_mode),
            (status.st_uid, status.st_gid),
            status.st_mtime_ns,
            status.st_rdev,
            content,
            tuple(sorted(xattrs.items())),
            (str(status.st_ino),),
        )
    return {
        name: seen._replace(group=tuple(sorted(names.get(int(seen.group[0]), ()))))
        for name, seen in found.items()
    }


_FORMATS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
}


def seen_through_view(store: Store, stack: tuple[DiffID, ...]) -> dict[str, Seen]:
    """The same, of a stack of layers, without any mount."""
    view = open_view(store, stack)
    tree = view.tree
    names: dict[int, list[str]] = {}
    for path, inode in tree.walk():
        names.setdefault(inode, []).append(os.fsdecode(path))
    found = {}
    for path, inode in tree.walk():
        row, kind = tree.inodes[inode], tree.kind(inode)
        content = b""
        if kind is Kind.FILE:
            content = b"".join(view.iter_inode(inode))
        elif kind is Kind.SYMLINK:
            content = tree.target_of(inode)
        xattrs = {os.fsdecode(k): v for k, v in tree.xattrs_of(inode).items()}
        found[os.fsdecode(path)] = Seen(
            _FORMATS[kind],
            int(row["mode"]),
            (int(row["uid"]), int(row["gid"])),
            int(row["mtime"]) * 10**9 + int(row["nsec"]),
            os.makedev(int(row["major"]), int(row["minor"])),
            content,
            tuple(sorted(xattrs.items())),
            () if kind is Kind.DIRECTORY else tuple(sorted(names[inode])),
        )
    return found
