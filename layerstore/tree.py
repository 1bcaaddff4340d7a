"""What a layer changes, and what a root filesystem holds, as values.

    Entries     one row for each entry of a layer, in the order of its tar
    LayerTree   the entries of one layer, and the extents of its files
    Tree        a root filesystem: inodes, directory entries, extents; no whiteouts, nothing twice

A row is metadata only; the bytes of files are extents, (chunk number, length) pairs that stand in the same order.
Whiteouts and opaque marks are rows like any other. `layerstore.merge` makes a Tree of layers, `layerstore.treediff`
compares two.

Paths are bytes, relative to the root, without `.`, `..`, or slashes at either end; the root itself is empty.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

__all__ = [
    "EXTENT",
    "HOLE",
    "INODE",
    "ROOT",
    "ROW",
    "Dirent",
    "Entries",
    "Entry",
    "Kind",
    "LayerTree",
    "Tree",
    "concat_entries",
    "pack_xattrs",
    "unpack_xattrs",
]

HOLE = 0  # the chunk number of zeros


class Kind(IntEnum):
    """What an entry is; the values are part of the format."""

    OTHER = 0  # not part of the image's tree; its payload stands among the extents all the same
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    HARDLINK = 4
    CHARACTER = 5
    BLOCK = 6
    FIFO = 7
    WHITEOUT = 8
    OPAQUE = 9


# One entry. The last four columns are lengths in the heaps. Changing this is a change of format.
ROW = np.dtype(
    [
        ("kind", "u1"),
        ("mode", "<u2"),  # permission, setuid, setgid and sticky bits
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("mtime", "<i8"),  # seconds
        ("nsec", "<u4"),
        ("size", "<u8"),  # as stat() says
        ("stored", "<u8"),  # bytes of extents: less than size for sparse files only
        ("major", "<u4"),
        ("minor", "<u4"),
        ("path", "<u2"),
        ("link", "<u2"),
        ("xattrs", "<u4"),
        ("sparse", "<u4"),
    ]
)
EXTENT = np.dtype([("number", "<u8"), ("length", "<u4")])

# One inode of a Tree. Whiteouts, opaque marks, hard links and kind OTHER do not occur.
INODE = np.dtype(
    [
        ("kind", "u1"),
        ("mode", "<u2"),
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("mtime", "<i8"),
        ("nsec", "<u4"),
        ("size", "<u8"),  # of files, and of the targets of symbolic links
        ("nlink", "<u4"),  # names; of directories, 2 and the directories in them
        ("major", "<u4"),
        ("minor", "<u4"),
        ("extent", "<u8"),  # the first of its extents
        ("extents", "<u4"),  # how many
        ("target", "<i4"),  # index in Tree.targets, or -1
        ("xattrs", "<i4"),  # index in Tree.xattrs, or -1
    ]
)
ROOT = 0  # the inode of the root directory

_XATTR = struct.Struct("<HI")


@dataclass(frozen=True, slots=True)
class Entries:
    """The rows of a layer, or of a part of one. The heaps hold each row's bytes one after another.

    Attributes:
        rows: array of ROW.
        paths: heap of the paths.
        links: heap of symbolic link targets, and of hard link targets as paths.
        extras: heap of each row's packed extended attributes, then its sparse map.
    """

    rows: npt.NDArray[np.void]
    paths: bytes
    links: bytes
    extras: bytes

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Entry]:
        path = link = extra = 0
        for row in self.rows.tolist():
            kind, mode, uid, gid, mtime, nsec, size, stored, major, minor = row[:10]
            path_end, link_end = path + row[10], link + row[11]
            xattrs_end = extra + row[12]
            extra_end = xattrs_end + row[13]
            yield Entry(
                Kind(kind),
                self.paths[path:path_end],
                mode,
                uid,
                gid,
                mtime,
                nsec,
                size,
                stored,
                major,
                minor,
                self.links[link:link_end],
                unpack_xattrs(self.extras[extra:xattrs_end]),
                np.frombuffer(self.extras[xattrs_end:extra_end], "<u8").reshape(-1, 2).tolist(),
            )
            path, link, extra = path_end, link_end, extra_end


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, unpacked. `sparse` lists [offset, length] of the stored stretches of a sparse file."""

    kind: Kind
    path: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    nsec: int
    size: int
    stored: int
    major: int
    minor: int
    link: bytes
    xattrs: dict[bytes, bytes]
    sparse: list[list[int]]


def concat_entries(parts: Sequence[Entries]) -> Entries:
    """Join the parts of a layer, in order."""
    return Entries(
        np.concatenate([part.rows for part in parts]) if parts else np.empty(0, ROW),
        b"".join(part.paths for part in parts),
        b"".join(part.links for part in parts),
        b"".join(part.extras for part in parts),
    )


def pack_xattrs(xattrs: dict[bytes, bytes]) -> bytes:
    """Extended attributes as bytes, sorted by name: u16 name length, u32 value length, name, value."""
    return b"".join(
        _XATTR.pack(len(name), len(xattrs[name])) + name + xattrs[name] for name in sorted(xattrs)
    )


def unpack_xattrs(data: bytes) -> dict[bytes, bytes]:
    """The inverse of `pack_xattrs`."""
    xattrs, at = {}, 0
    while at < len(data):
        name_length, value_length = _XATTR.unpack_from(data, at)
        value_at = at + _XATTR.size + name_length
        xattrs[data[at + _XATTR.size : value_at]] = data[value_at : value_at + value_length]
        at = value_at + value_length
    return xattrs


@dataclass(frozen=True, slots=True)
class LayerTree:
    """One layer's own tree, all parts joined.

    Attributes:
        entries: in the order of the layer's tar; of a path that occurs twice, the later one counts.
        extents: array of EXTENT; the bytes of all rows' `stored`, in order, and perhaps what stands behind the last.
    """

    entries: Entries
    extents: npt.NDArray[np.void]


class Dirent(NamedTuple):
    """A name in a directory."""

    name: bytes
    inode: int


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A root filesystem, metadata only. Never changed once made.

    Directory entries are sorted by (parent, name bytes). Inodes are numbered as they are met by a walk level by level
    in that order, so that a directory has a lower number than what is in it, and siblings are neighbours.

    Thread safety: a value; all methods from any thread.

    Attributes:
        inodes: array of INODE; number 0 is the root directory.
        parents: of each directory entry, the directory's inode (u4, ascending).
        children: of each directory entry, the inode it names (u4). Every directory but the root is named once.
        names: of each directory entry, the name.
        extents: array of EXTENT in the order of the inodes, holes included: the lengths of a file's sum to its size.
        targets: of symbolic links.
        xattrs: distinct sets of extended attributes.
        warnings: entries that were left out of the layers, and why; at most 100, then how many more.
    """

    inodes: npt.NDArray[np.void]
    parents: npt.NDArray[np.uint32]
    children: npt.NDArray[np.uint32]
    names: list[bytes]
    extents: npt.NDArray[np.void]
    targets: list[bytes]
    xattrs: list[dict[bytes, bytes]]
    warnings: tuple[str, ...] = ()
    _starts: npt.NDArray[np.int64] = field(init=False, repr=False)  # of each inode, in `names`
    _entries: npt.NDArray[np.int64] = field(init=False, repr=False)  # of each inode, its first name

    def __post_init__(self) -> None:
        numbers = np.arange(len(self.inodes) + 1, dtype="u4")
        entries = np.full(len(self.inodes), -1, "i8")
        entries[self.children[::-1]] = np.arange(len(self.children) - 1, -1, -1)
        object.__setattr__(self, "_starts", np.searchsorted(self.parents, numbers))
        object.__setattr__(self, "_entries", entries)

    def __len__(self) -> int:
        return len(self.inodes)

    def kind(self, inode: int) -> Kind:
        """What an inode is."""
        return Kind(int(self.inodes["kind"][inode]))

    def lookup(self, path: bytes) -> int:
        """The inode of a path. Symbolic links are not followed; names must be exact (no `.`, `..`, empty ones).

        Raises: NotFound: no such path.
        """
        inode = ROOT
        for name in path.split(b"/") if path else ():
            child = self.child(inode, name)
            if child is None:
                raise NotFound(f"no {_text(path)!r} in the image")
            inode = child
        return inode

    def child(self, inode: int, name: bytes) -> int | None:
        """What a directory has under a name; None for no such name, and for what is no directory."""
        first, end = int(self._starts[inode]), int(self._starts[inode + 1])
        at = bisect_left(self.names, name, first, end)
        return int(self.children[at]) if at < end and self.names[at] == name else None

    def iter_dir(self, inode: int) -> Iterator[Dirent]:
        """The entries of a directory, by name; none for what is no directory."""
        first, end = int(self._starts[inode]), int(self._starts[inode + 1])
        return map(Dirent, self.names[first:end], self.children[first:end].tolist())

    def parent_of(self, inode: int) -> int:
        """The directory that has the inode's first name; the root's is the root."""
        return int(self.parents[self._entries[inode]]) if inode else ROOT

    def path_of(self, inode: int) -> bytes:
        """The path of an inode; of several names, the first in the order of `names`."""
        parts: list[bytes] = []
        while inode != ROOT:
            at = int(self._entries[inode])
            parts.append(self.names[at])
            inode = int(self.parents[at])
        return b"/".join(reversed(parts))

    def extents_of(self, inode: int) -> npt.NDArray[np.void]:
        """The extents of a file, in order; none for what is no file."""
        row = self.inodes[inode]
        first = int(row["extent"])
        return self.extents[first : first + int(row["extents"])]

    def target_of(self, inode: int) -> bytes:
        """The target of a symbolic link.

        Raises: InvalidArgument: it is none.
        """
        index = int(self.inodes["target"][inode])
        if index < 0:
            raise InvalidArgument(f"inode {inode} is not a symbolic link")
        return self.targets[index]

    def xattrs_of(self, inode: int) -> dict[bytes, bytes]:
        """Extended attributes; not to be changed."""
        index = int(self.inodes["xattrs"][inode])
        return self.xattrs[index] if index >= 0 else {}

    def walk(self) -> Iterator[tuple[bytes, int]]:
        """(path, inode) of every name, the root first, directories before what is in them, siblings by name."""
        yield b"", ROOT
        stack = [(b"", self.iter_dir(ROOT))]
        while stack:
            prefix, entries = stack[-1]
            for name, inode in entries:
                path = prefix + name
                yield path, inode
                if self._starts[inode] != self._starts[inode + 1]:
                    stack.append((path + b"/", self.iter_dir(inode)))
                    break
            else:
                stack.pop()


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
