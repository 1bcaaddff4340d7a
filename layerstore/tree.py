"""What a layer changes, as values: one row for each entry, in the order of the layer's tar.

A row is metadata only; the bytes of files are extents, (chunk number, length) pairs that stand in the same order.
Whiteouts and opaque marks are rows like any other, so what a layer hides never depends on where in the tar it says
so (image-spec `layer.md`: the result is the same "regardless of the ordering").

Paths are bytes, relative to the root, without `.`, `..`, or slashes at either end; the root itself is empty.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

__all__ = [
    "EXTENT",
    "HOLE",
    "ROW",
    "Entries",
    "Entry",
    "Kind",
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
