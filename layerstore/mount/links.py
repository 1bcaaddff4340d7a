"""Files that checkouts share as hard links: an inode has a content and its metadata, so each pair of them is there once.

    ROOT/links/ab/cdef…            name = BLAKE3(content name | size | metadata | which of several)
    ROOT/run/links-<any>/abcdef…   written by a checkout that is not finished

An image that has two such files keeps two, numbered in the order of its inodes: programs would take one for a hard link.
A file that was written to through a checkout has another size or time. It stays in the checkouts that have it, and is not
given out again.

Nobody holds them but checkouts: a file with one name is in none, and may be deleted; one with more costs nothing to keep.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from layerstore import kernels
from layerstore.store import files
from layerstore.tree import Kind, pack_xattrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerstore.tree import Tree

__all__ = ["LinkPool", "Metadata", "idle_links"]

_EVERYBODY = b"user."  # attributes that need no root
_KERNEL = b"security."  # attributes that the kernel gives files by itself


class Metadata(NamedTuple):
    """What an inode has beside its content, as far as the caller may set it; the owner is None if he may not."""

    mode: int
    owner: tuple[int, int] | None
    mtime_ns: int
    xattrs: dict[bytes, bytes]

    @classmethod
    def of(cls, tree: Tree, inode: int, *, is_root: bool) -> Self:
        """That of an inode of a tree."""
        row = tree.inodes[inode]
        xattrs = tree.xattrs_of(inode)
        return cls(
            int(row["mode"]),
            (int(row["uid"]), int(row["gid"])) if is_root else None,
            int(row["mtime"]) * 10**9 + int(row["nsec"]),
            {key: xattrs[key] for key in sorted(xattrs) if is_root or key.startswith(_EVERYBODY)},
        )

    def pack(self) -> bytes:
        """As bytes, another string for another value."""
        return f"{self.mode} {self.owner} {self.mtime_ns} ".encode() + pack_xattrs(self.xattrs)

    def is_of(self, path: Path, status: os.stat_result) -> bool:
        """Whether a file has it; `status` is the file's."""
        if (stat.S_IMODE(status.st_mode), status.st_mtime_ns) != (self.mode, self.mtime_ns):
            return False
        if self.owner not in (None, (status.st_uid, status.st_gid)):
            return False
        names = map(os.fsencode, os.listxattr(path))
        mine = {name for name in names if name in self.xattrs or not name.startswith(_KERNEL)}
        return {name: os.getxattr(path, name) for name in mine} == self.xattrs


class LinkPool:
    """The shared files of one checkout: those that are there, and those that it adds. Call it under the lock of mounts."""

    def __init__(
        self, folder: Path, staging: Path, tree: Tree, names: Sequence[bytes | None]
    ) -> None:
        """Look for the files of a tree, with the names of its contents, in `folder`; new ones stay in `staging` at first."""
        self._folder, self._staging, self._tree = folder, staging, tree
        self._most_names = os.pathconf(folder, "PC_LINK_MAX")
        self._added: list[str] = []
        self._names: dict[int, str] = {}
        self._paths: dict[int, Path] = {}
        self.present: set[int] = set()
        for inode, metadata, name in _name_files(tree, names):
            self._names[inode] = name
            self._paths[inode] = _place(folder, name)
            if self._is_there(inode, metadata):
                self.present.add(inode)

    def _is_there(self, inode: int, metadata: Metadata) -> bool:
        """Whether a file is there; one that was written to, or has all the names that it may have, is let go."""
        path, row = self._paths[inode], self._tree.inodes[inode]
        try:
            status = path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        if (
            status.st_size == int(row["size"])
            and status.st_nlink + int(row["nlink"]) <= self._most_names
            and metadata.is_of(path, status)
        ):
            return True
        path.unlink()
        return False

    def take(self, inode: int, name: bytes, folder: int) -> bool:
        """Give a file that is there a name in the directory `folder` of a checkout; False if it is not."""
        if inode not in self.present:
            return False
        os.link(self._paths[inode], name, dst_dir_fd=folder, follow_symlinks=False)
        return True

    def add(self, inode: int, file: int) -> None:
        """Share a file that a checkout has written, and has open, from `publish` on."""
        # By the descriptor, as its name may be another file's by now; a directory makes Python follow the link of /proc.
        os.link(f"/proc/self/fd/{file}", self._staging / self._names[inode], src_dir_fd=file)
        self._added.append(self._names[inode])

    def publish(self) -> int:
        """Make what was added durable, and then show it; returns how many files."""
        if self._added:
            files.sync_filesystem(self._staging)
        for name in self._added:
            path = _place(self._folder, name)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            (self._staging / name).replace(path)
        return len(self._added)


def idle_links(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The files that no checkout has; they changed last when the last one let go of them."""
    for path in folder.glob("??/*"):
        status = path.stat()
        if status.st_nlink == 1:
            yield path, status


def _place(folder: Path, name: str) -> Path:
    return Path(f"{folder}/{name[:2]}/{name[2:]}")  # at once: each `/` takes longer than a stat


def _name_files(tree: Tree, names: Sequence[bytes | None]) -> Iterator[tuple[int, Metadata, str]]:
    is_root = os.geteuid() == 0
    seen = Counter[bytes]()
    for inode in (tree.inodes["kind"] == Kind.FILE).nonzero()[0].tolist():
        size = int(tree.inodes["size"][inode])
        metadata = Metadata.of(tree, inode, is_root=is_root)
        file = (names[inode] or bytes(32)) + size.to_bytes(8, "little") + metadata.pack()
        yield inode, metadata, kernels.blake3(seen[file].to_bytes(8, "little") + file).hex()
        seen[file] += 1
