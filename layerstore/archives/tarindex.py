"""Where the members of an uncompressed tar are: one pass over its headers, then random access.

    header[512] data[size] padding  header[512] ...  zeros[512]         as in `layerstore.formats.tarheader`

Made for archives of images from anybody: the pass keeps nothing but names and places, follows extended headers in a
loop and not by recursion, reads no body above 1 MiB, and stops at a limit. Names are compared without `./` and `/` in
front; a name that climbs out with `..` is not indexed. The last member of a name wins, as it does when unpacking.
Hard and symbolic links between members are followed inside the archive; `docker save` used them for equal layers.

Source: POSIX.1-2017 pax; header blocks are decoded by the standard library's `TarInfo`, PAX records by `tarheader`.
"""

from __future__ import annotations

import enum
import posixpath
import tarfile
from typing import TYPE_CHECKING, NamedTuple

from layerstore.archives.member import MemberReader
from layerstore.errors import MalformedInput, NotFound
from layerstore.formats.tarheader import BLOCK, parse_pax

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.archives.member import SharedFile
    from layerstore.limits import Limits

__all__ = ["TarIndex"]

_MAX_EXTENSION = 1 << 20  # bytes of one PAX or GNU long-name body
_MAX_NAME = 4096  # characters; nothing in an image archive is longer, and the index keeps them all
_MAX_HOPS = 8
_ZEROS = bytes(BLOCK)
_GNU_MORE_AT, _GNU_EXTENSION_MORE_AT = 482, 504  # flags: another block of the sparse map follows
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_NO_DATA = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
)  # fmt: skip


class _Kind(enum.Enum):
    FILE = "regular file"
    HARD_LINK = "hard link"
    SYMLINK = "symbolic link"
    SPARSE = "sparse file"
    OTHER = "special file"


class _Member(NamedTuple):
    kind: _Kind
    offset: int
    size: int
    target: str


class TarIndex:
    """The members of a tar by name. Thread safety: everything but `close`, from any thread.

    Raises: MalformedInput: no tar, a broken header, a truncated member. LimitExceeded: too many headers.
    """

    def __init__(self, file: SharedFile, limits: Limits) -> None:
        self._file = file
        self._members: dict[str, _Member] = {}
        for name, member in _scan(file, limits):
            if (normal := _normal(name)) is not None:
                self._members[normal] = member

    @property
    def source(self) -> str:
        """What errors call the archive."""
        return self._file.source

    def names(self) -> Iterator[str]:
        """All indexed names, in the order of their first appearance; directories are not among them."""
        return iter(self._members)

    def size(self, name: str) -> int | None:
        """Bytes of a regular file, links followed; None when there is none of that name."""
        found = self._find(name)
        return None if found is None else found.size

    def open(self, name: str) -> MemberReader:
        """Open a regular file, links followed.

        Raises:
            NotFound: no such member.
            MalformedInput: it is sparse, special or a link to nowhere.
        """
        found = self._find(name)
        if found is None:
            raise NotFound(f"{self.source}: no {name}")
        return MemberReader(self._file, found.offset, found.size, name)

    def close(self) -> None:
        """Close the archive's file; open readers fail from now on."""
        self._file.close()

    def _find(self, name: str) -> _Member | None:
        normal = _normal(name)
        member = None if normal is None else self._members.get(normal)
        if normal is None or member is None:
            return None
        for _ in range(_MAX_HOPS):
            if member.kind is _Kind.FILE:
                return member
            if member.kind not in {_Kind.HARD_LINK, _Kind.SYMLINK}:
                break
            symbolic = member.kind is _Kind.SYMLINK
            if symbolic and member.target.startswith("/"):
                normal = None
            else:
                normal = _normal(member.target, posixpath.dirname(normal) if symbolic else "")
            following = None if normal is None else self._members.get(normal)
            if normal is None or following is None:
                raise self._bad(
                    name, f"a link to {member.target[:200]!r}, which is not in the archive"
                )
            member = following
        if member.kind is _Kind.SPARSE or member.kind is _Kind.OTHER:
            raise self._bad(name, f"a {member.kind.value}, where a regular file is expected")
        raise self._bad(name, "too many links")

    def _bad(self, name: str, problem: str) -> MalformedInput:
        return MalformedInput(problem, source=self.source, entry=name)


def _scan(file: SharedFile, limits: Limits) -> Iterator[tuple[str, _Member]]:
    at = headers = 0
    longname: str | None = None
    longlink: str | None = None
    records: dict[bytes, bytes] = {}
    while (found := _header(file, at)) is not None:
        block, info = found
        headers += 1
        limits.check("members", headers, source=file.source, offset=at)
        start = at + BLOCK
        if info.type in {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}:
            text = _text(_body(file, start, info.size).partition(b"\0")[0])
            longname, longlink = (
                (text, longlink) if info.type == tarfile.GNUTYPE_LONGNAME else (longname, text)
            )
            at = _end(start, info.size)
            continue
        if info.type in {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}:
            body = _body(file, start, info.size)
            if (
                info.type != tarfile.XGLTYPE
            ):  # Go's reader, which the container tools share, applies no global ones
                records = _records(body, file, at)
            at = _end(start, info.size)
            continue
        if info.type == tarfile.GNUTYPE_SPARSE:
            start = _behind_sparse_map(file, block, start)
        size = _size(records, info, file, at)
        stored = 0 if info.type in _NO_DATA else size
        if start + stored > file.size:
            raise MalformedInput(
                f"truncated: {start + stored - file.size} bytes are missing",
                source=file.source, entry=info.name, offset=file.size,
            )  # fmt: skip
        name = _text(records[b"path"]) if b"path" in records else longname or info.name
        target = (
            _text(records[b"linkpath"]) if b"linkpath" in records else longlink or info.linkname
        )
        if info.type != tarfile.DIRTYPE and len(name) <= _MAX_NAME and len(target) <= _MAX_NAME:
            yield name, _Member(_kind(info, records), start, stored, target)
        at = _end(start, stored)
        longname = longlink = None
        records = {}


def _header(file: SharedFile, at: int) -> tuple[bytes, tarfile.TarInfo] | None:
    block = file.pread(BLOCK, at)
    if not block and not at:
        raise MalformedInput("empty, where a tar archive is expected", source=file.source)
    # Some writers leave the end marker out. One zero block ends a tar, as for GNU tar; what follows is padding.
    if not block or block == _ZEROS:
        return None
    try:
        return block, tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        problem = f"broken tar header: {error}" if at else f"not a tar archive: {error}"
        raise MalformedInput(problem, source=file.source, offset=at) from None


def _body(file: SharedFile, start: int, size: int) -> bytes:
    if not 0 <= size <= _MAX_EXTENSION:
        raise MalformedInput(
            f"an extended header of {size} bytes", source=file.source, offset=start
        )
    body = file.pread(size, start)
    if len(body) < size:
        raise MalformedInput("truncated extended header", source=file.source, offset=file.size)
    return body


def _records(body: bytes, file: SharedFile, at: int) -> dict[bytes, bytes]:
    try:
        return parse_pax(body)
    except MalformedInput as error:
        raise MalformedInput(error.problem, source=file.source, offset=at) from None


def _behind_sparse_map(file: SharedFile, block: bytes, start: int) -> int:
    more = block[_GNU_MORE_AT]
    while more:
        extension = file.pread(BLOCK, start)
        if len(extension) < BLOCK:
            raise MalformedInput("truncated sparse map", source=file.source, offset=file.size)
        more = extension[_GNU_EXTENSION_MORE_AT]
        start += BLOCK
    return start


def _size(records: dict[bytes, bytes], info: tarfile.TarInfo, file: SharedFile, at: int) -> int:
    text = records.get(b"size")
    if text and (not text.isdigit() or len(text) > 19):
        raise MalformedInput(
            "a size that is no number", source=file.source, entry=info.name, offset=at
        )
    size = int(text) if text else info.size
    if size < 0:
        raise MalformedInput("a negative size", source=file.source, entry=info.name, offset=at)
    return size


def _kind(info: tarfile.TarInfo, records: dict[bytes, bytes]) -> _Kind:
    if info.type == tarfile.GNUTYPE_SPARSE or any(
        key.startswith(b"GNU.sparse.") for key in records
    ):
        return _Kind.SPARSE
    if info.type in _FILES:
        return _Kind.FILE
    if info.type == tarfile.LNKTYPE:
        return _Kind.HARD_LINK
    return _Kind.SYMLINK if info.type == tarfile.SYMTYPE else _Kind.OTHER


def _normal(name: str, folder: str = "") -> str | None:
    """The name's parts below the archive's root, `..` resolved; None when it climbs out or is empty."""
    parts: list[str] = []
    for part in f"{folder}/{name}".split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts) or None


def _end(start: int, size: int) -> int:
    return start + -(-size // BLOCK) * BLOCK


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
