"""The root filesystem of a view as one tar: what `docker export` gives.

    ./   etc/   etc/hosts   usr/ ...   two blocks of zeros     a pax header before what ustar cannot say

Equal trees give equal bytes: entries stand in the order of `Tree.walk`, and only what the tree says is in them.

Source: POSIX.1-2017 pax; extended attributes are `SCHILY.xattr` records, which all container tools read.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.errors import Unsupported
from layerstore.tree import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.view import View

__all__ = ["export_tar"]

_BATCH = 4 << 20  # bytes of a block, about
_BLOCK = 512
_TYPEFLAGS = {
    Kind.FILE: b"0",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
_HARD_LINK = b"1"
_MAX_ID = 0o7777777  # what the octal columns hold
_MAX_SIZE = _MAX_TIME = 0o77777777777
_MAX_TEXT = 100


def export_tar(view: View) -> Iterator[bytes]:
    """The root filesystem as one tar, in blocks: equal trees give equal bytes.

    Entries stand in the order of `Tree.walk`, the root first as `./`. The first name of an inode is the file, others are
    hard links to it. Holes of sparse files are zeros.

    Raises: CorruptStore, within the tar. Unsupported: an extended attribute with "=" in its name, which pax cannot say.
    """
    entries = list(view.tree.walk())
    first: dict[int, bytes] = {}
    for path, inode in entries:
        first.setdefault(inode, path)
    pieces = view.iter_inodes(list(first))
    sizes = np.where(view.tree.inodes["kind"] == Kind.FILE, view.tree.inodes["size"], 0).tolist()
    pending: list[bytes | memoryview] = []
    weight = 0
    for path, inode in entries:
        link = first[inode]
        pending.append(_header(view, inode, path, link if link != path else None))
        weight += len(pending[-1])
        left = sizes[inode] if link == path else 0
        padding = -left % _BLOCK
        while left:
            piece = next(pieces)
            pending.append(piece)
            left -= len(piece)
            weight += len(piece)
            if weight >= _BATCH:
                yield b"".join(pending)
                pending, weight = [], 0
        pending.append(bytes(padding))
    yield b"".join((*pending, bytes(2 * _BLOCK)))


class _Columns(NamedTuple):
    """The columns of a header."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    typeflag: bytes
    link: bytes
    major: int
    minor: int


def _header(view: View, inode: int, path: bytes, link: bytes | None) -> bytes:
    """The header blocks of an entry: a pax header for what ustar cannot say, then the header itself."""
    tree = view.tree
    kind_value, mode, uid, gid, mtime, nsec, size, _, major, minor, *_ = tree.inodes[inode].item()
    kind = Kind(kind_value)
    name = path + b"/" if kind is Kind.DIRECTORY and path else path or b"./"
    if link is None:
        target = tree.target_of(inode) if kind is Kind.SYMLINK else b""
        typeflag = _TYPEFLAGS[kind]
        xattrs = tree.xattrs_of(inode)
    else:
        target, typeflag, xattrs = link, _HARD_LINK, {}
    size = size if typeflag == b"0" else 0
    records = {b"SCHILY.xattr." + key: value for key, value in xattrs.items()}
    if any(b"=" in key for key in records):
        raise Unsupported(f"{os.fsdecode(path)!r} has an extended attribute with = in its name")
    if len(name) > _MAX_TEXT:
        records[b"path"] = name
    if len(target) > _MAX_TEXT:
        records[b"linkpath"] = target
    if nsec or not 0 <= mtime <= _MAX_TIME:
        records[b"mtime"] = _decimal(mtime, nsec)
    for key, value, limit in (
        (b"uid", uid, _MAX_ID),
        (b"gid", gid, _MAX_ID),
        (b"size", size, _MAX_SIZE),
    ):
        if value > limit:
            records[key] = b"%d" % value
    columns = _Columns(
        name[:_MAX_TEXT],
        mode,
        uid if uid <= _MAX_ID else 0,
        gid if gid <= _MAX_ID else 0,
        size if size <= _MAX_SIZE else 0,
        min(max(mtime, 0), _MAX_TIME),
        typeflag,
        target[:_MAX_TEXT],
        major,
        minor,
    )
    return (_pax(records) if records else b"") + _ustar(columns)


def _pax(records: dict[bytes, bytes]) -> bytes:
    body = b"".join(_record(key, records[key]) for key in sorted(records))
    columns = _Columns(b"PaxHeaders/0", 0o644, 0, 0, len(body), 0, b"x", b"", 0, 0)
    return _ustar(columns) + body + bytes(-len(body) % _BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))  # the length's own digits may have become one more
    return b"%d %s=%s\n" % (length, key, value)


def _ustar(columns: _Columns) -> bytes:
    numbers = (columns.mode, columns.uid, columns.gid)
    block = b"".join(
        (
            columns.name.ljust(100, b"\0"),
            *(b"%07o\0" % number for number in numbers),
            b"%011o\0%011o\0" % (columns.size, columns.mtime),
            b" " * 8,
            columns.typeflag,
            columns.link.ljust(100, b"\0"),
            b"ustar\x0000".ljust(72, b"\0"),
            _device(columns.major),
            _device(columns.minor),
        )
    ).ljust(_BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _device(number: int) -> bytes:
    """Octal, or base 256 where that is too small."""
    return b"%07o\0" % number if number <= _MAX_ID else b"\x80" + number.to_bytes(7, "big")


def _decimal(mtime: int, nsec: int) -> bytes:
    """Seconds as pax writes them; nanoseconds count forward from `mtime` also before 1970."""
    total = mtime * 10**9 + nsec
    seconds, rest = divmod(abs(total), 10**9)
    text = b"%s%d.%09d" % (b"-" if total < 0 else b"", seconds, rest)
    return text.rstrip(b"0").rstrip(b".")
