"""A merged root as plain files: a lower directory that needs no mount, and takes the disk space of the whole image.

    ROOT/lowers/<boot ID>/<BLAKE3 of the diff IDs>/   the tree; its name is there only once it is whole

A cache: nothing is synced, so what an earlier boot has written counts for nothing, and goes when the next one is made.

For machines where the store cannot be mounted in place. The tree has no paths below symbolic links and nothing twice
(`tree.merge`), and goes into a new directory of ours, so that no name in it can lead out.

Source: docs/snapshots.md.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import blake3

from layerstore.mount.upper import RootAttributes
from layerstore.snapshots.lower import Lower
from layerstore.store import files
from layerstore.tree import Kind
from layerstore.view import open_view

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from layerstore.digest import DiffID
    from layerstore.mount.mounter import NeededLowers
    from layerstore.store.database import Transaction
    from layerstore.store.store import Store
    from layerstore.view import View

__all__ = ["PlainLowers"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DEVICES = {Kind.CHARACTER: 0o020000, Kind.BLOCK: 0o060000}


class PlainLowers:
    """Lower directories of plain files, made once for each stack. Thread safety: all methods, from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._root = store.layout.root / "lowers"
        self._boot = self._root / _BOOT_ID.read_text().strip()

    def lower(self, diff_ids: Sequence[DiffID], *, in_one: bool = False) -> Lower:
        """The merged root of a stack, always one directory.

        Raises: NotFound, CorruptStore, StoreFull: nothing stays behind.
        """
        del in_one
        final = self._boot / blake3.blake3("\n".join(diff_ids).encode()).hexdigest()
        if final.is_dir():
            return Lower(final, RootAttributes.read(final))
        self._boot.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._forget_earlier_boots()
        building = self._boot / f"new-{secrets.token_hex(8)}"
        try:
            with files.no_room("write the files of an image"):
                building.mkdir()
                _write(open_view(self._store, diff_ids), building)
                _rename(building, final)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return Lower(final, RootAttributes.read(final))

    def release(self, is_needed: Callable[[Transaction], NeededLowers]) -> None:
        """Nothing: they are files, and go with the next boot."""
        del is_needed

    def _forget_earlier_boots(self) -> None:
        for folder in self._root.iterdir():
            if folder != self._boot:
                shutil.rmtree(folder, ignore_errors=True)


def _rename(building: Path, final: Path) -> None:
    try:
        building.rename(final)
    except OSError:
        if not final.is_dir():  # else somebody else was quicker
            raise


def _write(view: View, top: Path) -> None:
    """Write a tree; attributes of directories come last, as writing into them changes their times."""
    tree = view.tree
    first: dict[int, Path] = {}
    directories = []
    for path, inode in tree.walk():
        place = top / os.fsdecode(path)
        kind = tree.kind(inode)
        if kind is Kind.DIRECTORY:
            place.mkdir(exist_ok=not path)
            directories.append((place, inode))
        elif inode in first:
            os.link(first[inode], place, follow_symlinks=False)
        else:
            first[inode] = place
            _write_leaf(view, place, inode)
            _set_attributes(view, place, inode)
    for place, inode in reversed(directories):
        _set_attributes(view, place, inode)


def _write_leaf(view: View, place: Path, inode: int) -> None:
    tree = view.tree
    kind, row = tree.kind(inode), tree.inodes[inode]
    if kind is Kind.SYMLINK:
        place.symlink_to(os.fsdecode(tree.target_of(inode)))
    elif kind is Kind.FIFO:
        os.mkfifo(place)
    elif kind in _DEVICES:
        device = os.makedev(int(row["major"]), int(row["minor"]))
        os.mknod(place, _DEVICES[kind] | 0o600, device)
    else:
        with place.open("xb") as target:
            target.writelines(view.iter_inode(inode))


def _set_attributes(view: View, place: Path, inode: int) -> None:
    tree = view.tree
    row = tree.inodes[inode]
    if os.geteuid() == 0:
        os.chown(place, int(row["uid"]), int(row["gid"]), follow_symlinks=False)
    if tree.kind(inode) is not Kind.SYMLINK:
        place.chmod(int(row["mode"]))
    for name, value in tree.xattrs_of(inode).items():
        os.setxattr(place, name, value, follow_symlinks=False)
    mtime_ns = int(row["mtime"]) * 10**9 + int(row["nsec"])
    os.utime(place, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
