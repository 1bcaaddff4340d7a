"""Tar members as tree entries: names made safe, `.wh.` names made values.

Names are read as relative to the image's root, however they are written: `./a//b/`, `/a/b` and `../../a/b` are all
`a/b`. `.wh.NAME` hides NAME below, `.wh..wh..opq` hides all that lies below its directory; other names that start
with `.wh..wh.` are private to AUFS and name nothing.

Source: OCI image-spec `layer.md` (whiteouts); Go archive/tar (which types have a payload).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerstore.errors import MalformedInput
from layerstore.tree import ROW, Entries, Kind, pack_xattrs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from layerstore.formats.tarsplit import Member

__all__ = ["entries_of", "normal_path"]

MAX_NAME = 255  # NAME_MAX: what Linux can show
MAX_PATH = 4096  # PATH_MAX

_KINDS = {
    ord("\0"): Kind.FILE,
    ord("0"): Kind.FILE,
    ord("7"): Kind.FILE,
    ord("S"): Kind.FILE,
    ord("1"): Kind.HARDLINK,
    ord("2"): Kind.SYMLINK,
    ord("3"): Kind.CHARACTER,
    ord("4"): Kind.BLOCK,
    ord("5"): Kind.DIRECTORY,
    ord("6"): Kind.FIFO,
}
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_OVERFLOW_ID = 65534  # how Linux shows an owner that does not fit
_MAX_ID = (1 << 32) - 2
_MAX_XATTR = 64 << 10  # XATTR_SIZE_MAX


def entries_of(members: Iterable[Member]) -> Entries:
    """The rows of these members, in their order.

    A member of a type that images do not have, and AUFS's private files, keep a row of kind OTHER: their payload
    stands among the extents.

    Raises: MalformedInput: a name or attribute that no Linux filesystem could show, or a whiteout of nothing.
    """
    rows, paths, links, extras = [], [], [], []
    for member in members:
        header = member.header
        kind, path = _kind_and_path(member)
        link = b""
        if kind is Kind.SYMLINK:
            link = member.link
            if not 0 < len(link) <= MAX_PATH or b"\0" in link:
                raise _malformed(
                    member, "a symbolic link whose target is empty, too long or has a NUL"
                )
        elif kind is Kind.HARDLINK:
            link = normal_path(member.link, member)
        xattrs = _pack_xattrs(member, member.xattrs) if member.xattrs else b""
        sparse = np.array(member.sparse, "<u8").tobytes() if member.sparse else b""
        rows.append(
            (
                kind,
                header.mode & 0o7777,
                header.uid if header.uid <= _MAX_ID else _OVERFLOW_ID,
                header.gid if header.gid <= _MAX_ID else _OVERFLOW_ID,
                header.mtime,
                member.nsec,
                member.size,
                header.size,
                header.major,
                header.minor,
                len(path),
                len(link),
                len(xattrs),
                len(sparse),
            )
        )
        paths.append(path)
        links.append(link)
        extras.append(xattrs + sparse)
    return Entries(np.array(rows, ROW), b"".join(paths), b"".join(links), b"".join(extras))


def normal_path(name: bytes, member: Member) -> bytes:
    """A name as a path below the root: no empty, `.` or `..` components; the root is the empty path.

    Raises: MalformedInput: NUL bytes, a component over 255 bytes, a path over 4096.
    """
    path = name[2:] if name.startswith(b"./") else name
    path = path.rstrip(b"/")
    if b"/." in path or b"//" in path or path[:1] in (b"/", b"."):
        parts: list[bytes] = []
        for part in path.split(b"/"):
            if part == b"..":
                del parts[-1:]
            elif part not in (b"", b"."):
                parts.append(part)
        path = b"/".join(parts)
    if len(path) > MAX_NAME and (
        len(path) > MAX_PATH or max(map(len, path.split(b"/"))) > MAX_NAME
    ):
        raise _malformed(
            member, f"a name of {len(path)} bytes, or a component of more than {MAX_NAME}"
        )
    if b"\0" in path:
        raise _malformed(member, "a NUL byte in a name")
    return path


def _kind_and_path(member: Member) -> tuple[Kind, bytes]:
    path = normal_path(member.name, member)
    directory, _, name = path.rpartition(b"/")
    if path.startswith(_AUFS) and path != _OPAQUE:
        return Kind.OTHER, path
    if not name.startswith(_WHITEOUT):
        kind = _KINDS.get(member.header.typeflag, Kind.OTHER)
        if kind is Kind.FILE and member.name.endswith(b"/"):
            kind = Kind.DIRECTORY  # as tar wrote it before it had types
        if not path and kind is not Kind.DIRECTORY:
            return Kind.OTHER, path  # a root filesystem's root is a directory, whatever a tar says
        return kind, path
    if name == _OPAQUE:
        return Kind.OPAQUE, directory
    if name.startswith(_AUFS):
        return Kind.OTHER, path
    hidden = name[len(_WHITEOUT) :]
    if hidden in (b"", b".", b".."):
        raise _malformed(member, "a whiteout that names nothing")
    return Kind.WHITEOUT, directory + b"/" + hidden if directory else hidden


def _pack_xattrs(member: Member, xattrs: dict[bytes, bytes]) -> bytes:
    for name, value in xattrs.items():
        if not 0 < len(name) <= MAX_NAME or b"\0" in name or len(value) > _MAX_XATTR:
            raise _malformed(
                member, "an extended attribute whose name or value is too long or empty"
            )
    return pack_xattrs(xattrs)


def _malformed(member: Member, problem: str) -> MalformedInput:
    entry = member.name[:200].decode("utf-8", "backslashreplace")
    return MalformedInput(problem, entry=entry, offset=member.header.offset)
