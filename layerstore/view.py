"""A read-only filesystem object: the merged tree of an image and the contents of its files, with no mount.

    view = open_view(store, diff_ids)
    with view.open("/etc/os-release") as file: ...

Paths go in as `os` takes them (str, bytes, PathLike) and come out as str, in which bytes that are no UTF-8 are
surrogates. They begin at the image's root, with or without a slash; neither `..` nor a symbolic link leads out of it.

Source: path_resolution(7), with the image's root as the process's root.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import weakref
from collections import deque
from dataclasses import dataclass
from fnmatch import translate
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np

from layerstore.cache import cached_reader
from layerstore.errors import CorruptStore, InvalidArgument, NotFound
from layerstore.merge import merge
from layerstore.tree import EXTENT, HOLE, ROOT, Kind, LayerTree, Tree, concat_entries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from layerstore.digest import DiffID
    from layerstore.store.store import Store

__all__ = [
    "ChunkContents",
    "DirEntry",
    "IsADirectory",
    "LinkLoop",
    "NoSuchPath",
    "NotADirectory",
    "Path",
    "Stat",
    "View",
    "ViewFile",
    "layer_tree",
    "open_view",
]

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_MAX_LINKS = 40  # symbolic links in one look-up, as Linux
_BATCH = 4 << 20  # bytes that are decoded at once
_FEW = 16  # extents that are decoded at once without a count: at most 2 MiB
_BUFFER = 128 << 10  # of an open file: the largest chunk
_TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}


class NoSuchPath(FileNotFoundError, NotFound):
    """No such file or directory in the image."""


class NotADirectory(NotADirectoryError, InvalidArgument):
    """Something on the way is no directory."""


class IsADirectory(IsADirectoryError, InvalidArgument):
    """A directory where a file is needed."""


class LinkLoop(OSError, InvalidArgument):
    """More than 40 symbolic links on the way."""


class ChunkContents(Protocol):
    """Where contents come from: a `CachedReader`, or a `ChunkReader` itself."""

    def read(self, numbers: npt.NDArray[np.uint64], /) -> Sequence[bytes | memoryview]:
        """The contents of these chunks, in the order asked; none is the hole."""
        ...


@dataclass(frozen=True, slots=True)
class Stat:
    """What `os.stat_result` says, as far as an image knows it. There is no atime or ctime."""

    st_mode: int
    st_ino: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_mtime_ns: int
    st_rdev: int

    @property
    def st_mtime(self) -> float:
        """Seconds, rounded."""
        return self.st_mtime_ns / 1e9


@dataclass(frozen=True, slots=True)
class DirEntry:
    """What `View.scandir` gives; it answers without a look-up unless it is a symbolic link that is followed."""

    name: str
    path: str
    inode: int
    _view: View

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return self._view.tree.kind(self.inode) is Kind.SYMLINK

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a directory, or leads to one."""
        return self._is(Kind.DIRECTORY, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a regular file, or leads to one."""
        return self._is(Kind.FILE, follow_symlinks)

    def stat(self, *, follow_symlinks: bool = True) -> Stat:
        """Raises: NoSuchPath, LinkLoop: a symbolic link that leads nowhere."""
        return self._view.stat(self.path, follow_symlinks=follow_symlinks)

    def _is(self, kind: Kind, follow_symlinks: bool) -> bool:
        if follow_symlinks and self.is_symlink():
            return self._view.is_kind(self.path, kind)
        return self._view.tree.kind(self.inode) is kind


class View:
    """An image's root filesystem. It has nothing to close, but is of no use once its store is closed.

    Errors are also those of `os`: NoSuchPath is a FileNotFoundError, and so on. Reading a file that is damaged on disk
    raises CorruptStore; wrong bytes never come out.
    Thread safety: all methods, from any thread; an open file belongs to one thread at a time.

    Attributes:
        tree: inodes and names.
        contents: the bytes of chunks.
    """

    def __init__(self, tree: Tree, contents: ChunkContents) -> None:
        """Show a tree, whose chunks `contents` has."""
        self.tree, self.contents = tree, contents
        # Where each extent begins if all files stood one behind another; a file's own begin at its first.
        self._bounds = np.concatenate([[0], np.cumsum(tree.extents["length"], dtype="i8")])

    def open(self, path: Path) -> io.BufferedReader:
        """A regular file for reading, seekable.

        Raises: NoSuchPath, NotADirectory, IsADirectory, LinkLoop; InvalidArgument: a device or fifo.
        """
        return io.BufferedReader(ViewFile(self, self._file(path), os.fsdecode(path)), _BUFFER)

    def read_bytes(self, path: Path) -> bytes:
        """All of a file. Raises as `open`."""
        inode = self._file(path)
        return self.read_inode(inode, 0, int(self.tree.inodes["size"][inode]))

    def read_at(self, path: Path, offset: int, size: int) -> bytes:
        """At most `size` bytes of a file from an offset; fewer at its end only. Raises as `open`."""
        return self.read_inode(self._file(path), offset, size)

    def read_inode(self, inode: int, offset: int, size: int) -> bytes:
        """As `read_at`, for callers that hold inode numbers of `tree`.

        Raises: InvalidArgument: a negative offset or size.
        """
        return b"".join(self.iter_inode(inode, offset, size))

    def iter_inode(
        self, inode: int, offset: int = 0, size: int | None = None
    ) -> Iterator[bytes | memoryview]:
        """The bytes of a file in pieces; a few MiB are decoded at once, whatever its size."""
        if offset < 0 or (size is not None and size < 0):
            raise InvalidArgument("a negative offset or size")
        row = self.tree.inodes[inode]
        length = int(row["size"]) if int(row["kind"]) == Kind.FILE else 0
        end = length if size is None else min(length, offset + size)
        if offset >= end:
            return
        first = int(row["extent"])
        bounds = self._bounds[first : first + int(row["extents"]) + 1]
        base = int(bounds[0])
        at = int(np.searchsorted(bounds, base + offset, "right")) - 1
        last = int(np.searchsorted(bounds, base + end, "left"))
        start = int(bounds[at]) - base
        for hole, content in self._read(self.tree.extents[first + at : first + last]):
            low, high = max(offset - start, 0), min(end - start, hole + len(content))
            start += hole + len(content)
            if hole:
                yield from _zeros(high - low)
            else:
                yield content if high - low == len(content) else content[low:high]

    def iter_inodes(self, inodes: Sequence[int]) -> Iterator[bytes | memoryview]:
        """The bytes of these files, one behind another; no piece is of two of them.

        Faster than one by one, since chunks of many small files are read and decoded together.
        """
        rows = self.tree.inodes[np.array(inodes, "i8")]
        rows = rows[rows["kind"] == Kind.FILE]
        counts = rows["extents"].astype("i8")
        shifts = rows["extent"].astype("i8") - (np.cumsum(counts) - counts)
        extents = self.tree.extents[np.repeat(shifts, counts) + np.arange(counts.sum())]
        for hole, content in self._read(extents):
            yield from _zeros(hole) if hole else (content,)

    def exists(self, path: Path, *, follow_symlinks: bool = True) -> bool:
        """Whether a path leads to anything."""
        return self._try(path, follow_symlinks) is not None

    def is_kind(self, path: Path, kind: Kind) -> bool:
        """Whether a path leads to something of this kind."""
        inode = self._try(path, kind is not Kind.SYMLINK)
        return inode is not None and self.tree.kind(inode) is kind

    def is_dir(self, path: Path) -> bool:
        """Whether a path leads to a directory."""
        return self.is_kind(path, Kind.DIRECTORY)

    def is_file(self, path: Path) -> bool:
        """Whether a path leads to a regular file."""
        return self.is_kind(path, Kind.FILE)

    def is_symlink(self, path: Path) -> bool:
        """Whether a path is a symbolic link."""
        return self.is_kind(path, Kind.SYMLINK)

    def stat(self, path: Path, *, follow_symlinks: bool = True) -> Stat:
        """Metadata of a path. Raises: NoSuchPath, NotADirectory, LinkLoop."""
        return self.stat_inode(self.resolve(path, follow_symlinks=follow_symlinks))

    def lstat(self, path: Path) -> Stat:
        """As `stat`, of a symbolic link itself."""
        return self.stat(path, follow_symlinks=False)

    def stat_inode(self, inode: int) -> Stat:
        """Metadata of an inode; `st_ino` is its number plus 1."""
        kind, mode, uid, gid, mtime, nsec, size, nlink, major, minor, *_ = self.tree.inodes[
            inode
        ].item()
        is_device = kind in (Kind.CHARACTER, Kind.BLOCK)
        return Stat(
            _TYPES[kind] | mode,
            inode + 1,
            nlink,
            uid,
            gid,
            size,
            mtime * 10**9 + nsec,
            os.makedev(major, minor) if is_device else 0,
        )

    def xattrs(self, path: Path, *, follow_symlinks: bool = True) -> dict[str, bytes]:
        """Extended attributes, by name. Raises as `stat`."""
        found = self.tree.xattrs_of(self.resolve(path, follow_symlinks=follow_symlinks))
        return {os.fsdecode(name): found[name] for name in sorted(found)}

    def readlink(self, path: Path) -> str:
        """The target of a symbolic link. Raises as `stat`; InvalidArgument: it is none."""
        return os.fsdecode(self.tree.target_of(self.resolve(path, follow_symlinks=False)))

    def listdir(self, path: Path = "/") -> list[str]:
        """The names in a directory, in the order of their bytes. Raises as `stat`."""
        return [os.fsdecode(name) for name, _ in self.tree.iter_dir(self._directory(path))]

    def scandir(self, path: Path = "/") -> Iterator[DirEntry]:
        """The entries of a directory, in the order of their bytes. Raises as `stat`."""
        prefix = _prefix(os.fsdecode(path))
        return (
            DirEntry(name, prefix + name, inode, self)
            for name, inode in self._entries(self._directory(path))
        )

    def walk(self, top: Path = "/") -> Iterator[tuple[str, list[str], list[str]]]:
        """As `os.walk`, top down: symbolic links are not followed, names can be taken out of the lists.

        Raises as `stat`, for the top.
        """
        stack = [(os.fsdecode(top), self._directory(top))]
        while stack:
            path, inode = stack.pop()
            folders: dict[str, int] = {}
            others: list[str] = []
            for name, child in self._entries(inode):
                if self.tree.kind(child) is Kind.DIRECTORY:
                    folders[name] = child
                else:
                    others.append(name)
            names = list(folders)
            yield path, names, others
            prefix = _prefix(path)
            stack += [(prefix + name, folders[name]) for name in reversed(names) if name in folders]

    def glob(self, pattern: str) -> Iterator[str]:
        """Paths that match, with `*`, `?` and `[…]` in a name and `**` for any number of directories.

        As in a shell, paths begin with a slash if the pattern does; names with a leading dot match as all others.
        Symbolic links are followed, except by `**`. Each path comes once.
        """
        names = [name for name in pattern.split("/") if name not in ("", ".")]
        matches = [re.compile(translate(name)).fullmatch for name in names]
        root = "/" if pattern.startswith("/") else ""
        stack = [(ROOT, root, 0)]  # an inode, its path, and how many of the names led to it
        seen = {stack[0][1:]}
        while stack:
            inode, path, at = stack.pop()
            if at == len(names):
                if path:
                    yield path
                continue
            is_last, prefix = at + 1 == len(names), _prefix(path)
            found = [(inode, path, at + 1)] if names[at] == "**" else []
            for name, child in self._entries(inode):
                if names[at] == "**":
                    if self.tree.kind(child) is Kind.DIRECTORY:
                        found.append((child, prefix + name, at))
                    elif is_last:
                        found.append((child, prefix + name, at + 1))
                elif matches[at](name) and (is_last or self.is_dir(prefix + name)):
                    below = child if is_last else self.resolve(prefix + name)
                    found.append((below, prefix + name, at + 1))
            fresh = [each for each in found if each[1:] not in seen]
            seen.update(each[1:] for each in fresh)
            stack += reversed(fresh)

    def resolve(self, path: Path, *, follow_symlinks: bool = True) -> int:
        """The inode that a path leads to, as the kernel would find it in a container.

        Raises: NoSuchPath, NotADirectory, LinkLoop.
        """
        wanted = os.fsencode(path)
        names = deque(wanted.split(b"/"))
        inode, links = ROOT, 0
        while names:
            name = names.popleft()
            if self.tree.kind(inode) is not Kind.DIRECTORY:
                raise NotADirectory(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fsdecode(path))
            if name in (b"", b"."):
                continue
            if name == b"..":
                inode = self.tree.parent_of(inode)
                continue
            child = self.tree.child(inode, name)
            if child is None:
                raise NoSuchPath(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(path))
            if self.tree.kind(child) is not Kind.SYMLINK or not (names or follow_symlinks):
                inode = child
                continue
            links += 1
            if links > _MAX_LINKS:
                raise LinkLoop(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))
            target = self.tree.target_of(child)
            names.extendleft(reversed(target.split(b"/")))
            if target.startswith(b"/"):
                inode = ROOT
        return inode

    def _try(self, path: Path, follow_symlinks: bool) -> int | None:
        try:
            return self.resolve(path, follow_symlinks=follow_symlinks)
        except (NoSuchPath, NotADirectory, LinkLoop):
            return None

    def _directory(self, path: Path) -> int:
        inode = self.resolve(path)
        if self.tree.kind(inode) is not Kind.DIRECTORY:
            raise NotADirectory(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fsdecode(path))
        return inode

    def _file(self, path: Path) -> int:
        inode = self.resolve(path)
        kind = self.tree.kind(inode)
        if kind is Kind.DIRECTORY:
            raise IsADirectory(errno.EISDIR, os.strerror(errno.EISDIR), os.fsdecode(path))
        if kind is not Kind.FILE:
            raise InvalidArgument(f"{os.fsdecode(path)!r} is a {kind.name.lower()}, not a file")
        return inode

    def _entries(self, inode: int) -> Iterator[tuple[str, int]]:
        return ((os.fsdecode(name), child) for name, child in self.tree.iter_dir(inode))

    def _read(self, extents: npt.NDArray[np.void]) -> Iterator[tuple[int, bytes | memoryview]]:
        """Of each extent the length of the hole, or 0 and its content; a few MiB are decoded at once."""
        cuts: list[int] = []
        if len(extents) > _FEW:
            stored = np.where(extents["number"] == HOLE, 0, extents["length"])
            batches = np.cumsum(stored, dtype="i8") // _BATCH
            cuts = (np.flatnonzero(np.diff(batches)) + 1).tolist()
        for first, end in pairwise([0, *cuts, len(extents)]):
            numbers = extents["number"][first:end]
            contents = iter(self.contents.read(numbers[numbers != HOLE]))
            for number, length in extents[first:end].tolist():
                if number == HOLE:
                    yield length, b""
                    continue
                content = next(contents)
                if len(content) != length:
                    raise CorruptStore(
                        f"chunk {number} has {len(content)} bytes where a file says {length}"
                    )
                yield 0, content


class ViewFile(io.RawIOBase):
    """A file of a view, unbuffered; `View.open` gives it with a buffer. Thread safety: one thread at a time."""

    def __init__(self, view: View, inode: int, name: str) -> None:
        self._view, self._inode, self._at = view, inode, 0
        self._size = int(view.tree.inodes["size"][inode])
        self.name = name

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position, also past the end. Raises: InvalidArgument: to before the start."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}.get(whence)
        if base is None or base + offset < 0:
            raise InvalidArgument(f"cannot seek to {offset} from {whence}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # any writable buffer
        """Fill a buffer as far as the file goes; returns the number of bytes."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        at = 0
        target = memoryview(buffer).cast("B")
        for piece in self._view.iter_inode(self._inode, self._at, len(target)):
            target[at : at + len(piece)] = piece
            at += len(piece)
        self._at += at
        return at


def open_view(store: Store, diff_ids: Sequence[DiffID]) -> View:
    """The view of a stack of layers, bottom first; reads go through the process's cache.

    Raises: NotFound: a layer is not in this store. CorruptStore, MalformedInput: as `merge`.
    """
    hold = store.hold(*diff_ids)
    try:
        view = View(
            merge([layer_tree(store, diff_id) for diff_id in diff_ids]), cached_reader(store)
        )
    except BaseException:
        hold.close()
        raise
    # No transaction when it goes: that may be in the middle of one.
    weakref.finalize(view, hold.abandon)
    return view


def layer_tree(store: Store, diff_id: DiffID) -> LayerTree:
    """The entries and extents of one layer.

    Raises: NotFound: no such layer. CorruptStore.
    """
    with store.read() as txn:
        record = store.catalog.layer(txn, diff_id)
    if record is None:
        raise NotFound(f"no layer {diff_id} in this store")
    parts = [store.reader.part(stretch) for stretch in record.stretches if stretch.part]
    return LayerTree(
        concat_entries([part.entries for part in parts]),
        np.concatenate([np.empty(0, EXTENT), *(part.extents for part in parts)]),
    )


def _zeros(length: int) -> Iterator[bytes]:
    """A hole, in pieces."""
    block = bytes(min(length, _BATCH))
    for at in range(0, length, _BATCH):
        yield block[: length - at]


def _prefix(path: str) -> str:
    return path if not path or path.endswith("/") else path + "/"
