"""An overlayfs upper directory, as the tar of a layer: what a container changed, in OCI's words.

    in the upper directory                          in the tar
    character device 0/0, or xattr …overlay.whiteout   an empty file `.wh.NAME`
    directory with …overlay.opaque = "y"            the directory, then `.wh..wh..opq` in it
    directory with …overlay.redirect (renamed)      the directory, opaque, with all that the overlay shows in it
    file with …overlay.metacopy (only its metadata)   the file, its content from where the overlay shows it
    names of one inode                              the first one, and hard links to it (not to names that only a
                                                    lower layer has: a file of a renamed directory is one of its own)
    socket                                          nothing

The same directory always gives the same bytes: a directory comes before what is in it, siblings in the order of their
names; PAX records carry nanoseconds and extended attributes, all but overlayfs' own and SELinux' labels, which belong
to the host. The root has an entry only if it is not as the root below, so that no change at all is the empty
layer that all builders make (1,024 zero bytes).

Directories are opened one below another, symbolic links never followed, and devices never opened: whoever still writes
to the directory can make the walk fail, but not lead it out.

Source: Linux, Documentation/filesystems/overlayfs.rst; OCI image-spec `layer.md`; POSIX.1-2017 pax.
"""

from __future__ import annotations

import os
import stat
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from layerstore.errors import FailedPrecondition
from layerstore.formats.ustar import plain_header
from layerstore.store import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = ["BlockReader", "RootAttributes", "iter_upper_tar"]

_BLOCK = 512
_READ = 1 << 20
_END = bytes(2 * _BLOCK)
_OVERLAY = "trusted.overlay."
_HOST_XATTR = "security.selinux"
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


@dataclass(frozen=True, slots=True)
class RootAttributes:
    """What is known of a root directory: it has no name, so it is not in every layer."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: tuple[tuple[str, bytes], ...]

    @classmethod
    def implied(cls) -> Self:
        """The root of an image that says nothing of it."""
        return cls(0o755, 0, 0, 0, ())

    @classmethod
    def read(cls, root: Path) -> Self:
        """The attributes of a directory."""
        status = root.stat()
        xattrs = _xattrs(root, follow=True)
        return cls(
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            tuple(_kept(xattrs).items()),
        )

    def apply(self, root: Path) -> None:
        """Give a new upper directory these attributes: an overlay shows those of its upper root."""
        status = root.stat()
        if (status.st_uid, status.st_gid) != (self.uid, self.gid) and os.geteuid() == 0:
            os.chown(root, self.uid, self.gid)
        root.chmod(self.mode)
        for name, value in self.xattrs:
            os.setxattr(root, name, value)
        os.utime(root, ns=(self.mtime_ns, self.mtime_ns))


class BlockReader:
    """Blocks as a source to read from; a read gives what was asked for, or less at the end."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        """The next bytes."""
        parts, have = [self._rest], len(self._rest)
        while have < size and (block := next(self._blocks, b"")):
            parts.append(block)
            have += len(block)
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]


def iter_upper_tar(
    upper: Path, below: RootAttributes, merged: Callable[[], Path]
) -> Iterator[bytes]:
    """The tar, block by block; no block is empty.

    `merged` is asked, only if it is needed, for a directory that shows the upper over the lower one.

    Raises:
        FailedPrecondition: a file changed while it was read, or has a name or device number that no layer can hold.
        OSError: a file cannot be read.
    """
    walk = _Walk(merged)
    try:
        if RootAttributes.read(upper) != below:
            root = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                yield from walk.header(".", os.fstat(root), _xattrs(root))
            finally:
                os.close(root)
        yield from walk.directory(upper)
    finally:
        walk.close()
    yield _END


@dataclass(slots=True)
class _Level:
    """A directory of which some names are still to come; they are in reverse order."""

    fd: int
    prefix: str
    names: list[str]
    is_merged: bool


@dataclass(slots=True)
class _Walk:
    """The way through an upper directory.

    Attributes:
        links: (device, inode) -> first path, of files in the upper directory with several names.
        merged_links: the same as the overlay shows them; kept from the first redirected directory on, as a file may
            have names in it and outside of it, and only the overlay tells that they are one.
    """

    merged: Callable[[], Path]
    levels: list[_Level] = field(default_factory=list)
    links: dict[tuple[int, int], str] = field(default_factory=dict)
    merged_links: dict[tuple[int, int], str] | None = None

    def directory(self, top: Path) -> Iterator[bytes]:
        """All that is below a directory, not itself. Its depth is bounded by the number of open files."""
        self._enter(os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), "", is_merged=False)
        while self.levels:
            level = self.levels[-1]
            if level.names:
                yield from self._entry(level, level.names.pop())
            else:
                os.close(self.levels.pop().fd)

    def close(self) -> None:
        """Close what is open after an error."""
        while self.levels:
            os.close(self.levels.pop().fd)

    def header(
        self,
        path: str,
        status: os.stat_result,
        xattrs: dict[str, bytes],
        *,
        link: str = "",
        target: str = "",
    ) -> Iterator[bytes]:
        """The header of an entry: a hard link to what is in the tar already, or a symbolic link to `target`."""
        info = tarfile.TarInfo(path)
        info.mode = stat.S_IMODE(status.st_mode)
        info.uid, info.gid = status.st_uid, status.st_gid
        info.mtime = status.st_mtime_ns // 10**9
        info.type = tarfile.LNKTYPE if link else _TYPES[stat.S_IFMT(status.st_mode)]
        info.linkname = link or target
        records = {}
        if status.st_mtime_ns % 10**9:
            records["mtime"] = _decimal(status.st_mtime_ns)
        if not link:
            if stat.S_ISREG(status.st_mode):
                info.size = status.st_size
            if info.ischr() or info.isblk():
                info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
            for name, value in sorted(_kept(xattrs).items()):
                records[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
        yield self._encode(info, records)

    def _encode(self, info: tarfile.TarInfo, records: dict[str, str]) -> bytes:
        if not records and (plain := plain_header(info)) is not None:
            return plain
        info.pax_headers = records
        try:
            return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        except ValueError as error:
            raise FailedPrecondition(
                f"{_shown(info.name)}: no tar can hold its attributes ({error}): failed precondition"
            ) from error

    def _enter(self, fd: int, prefix: str, *, is_merged: bool) -> None:
        names = sorted(os.listdir(fd), key=os.fsencode, reverse=True)
        self.levels.append(_Level(fd, prefix, names, is_merged))

    def _entry(self, level: _Level, name: str) -> Iterator[bytes]:
        path = level.prefix + name
        status = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFSOCK:
            return
        xattrs = _xattrs(f"/proc/self/fd/{level.fd}/{name}")
        if not level.is_merged and _is_whiteout(status, xattrs):
            yield self._mark(f"{level.prefix}{_WHITEOUT}{name}")
            return
        if name.startswith(_WHITEOUT):
            raise FailedPrecondition(
                f"{_shown(path)}: layers keep names that start with {_WHITEOUT} for what was removed; "
                "rename it: failed precondition"
            )
        if kind == stat.S_IFDIR:
            yield from self._directory(level, name, status, xattrs)
            return
        if status.st_nlink > 1:
            first = self._first_name(path, status, is_merged=level.is_merged)
            if first != path:
                yield from self.header(path, status, xattrs, link=first)
                return
        if kind == stat.S_IFLNK:
            target = os.readlink(name, dir_fd=level.fd)
            yield from self.header(path, status, xattrs, target=target)
            return
        yield from self.header(path, status, xattrs)
        if kind == stat.S_IFREG and status.st_size:
            if f"{_OVERLAY}metacopy" in xattrs and not level.is_merged:
                fd = self._open_shown_file(path)
            else:
                fd = files.open_regular(name, dir_fd=level.fd)
            try:
                yield from _content(fd, status.st_size, path)
            finally:
                os.close(fd)

    def _first_name(self, path: str, status: os.stat_result, *, is_merged: bool) -> str:
        """The name under which a file is in the tar already, or this one."""
        if not is_merged:
            path = self.links.setdefault((status.st_dev, status.st_ino), path)
        if self.merged_links is None:
            return path
        return self.merged_links.setdefault(self._shown_inode(path), path)

    def _shown_inode(self, path: str) -> tuple[int, int]:
        """What tells a file from others in the overlay: neither device nor inode need be those of the upper."""
        fd = _open_below(self.merged(), path, _PATH)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return status.st_dev, status.st_ino

    def _open_shown_file(self, path: str) -> int:
        fd = _open_below(self.merged(), path, _PATH)
        try:
            return files.reopen_regular(fd, path)
        finally:
            os.close(fd)

    def _directory(
        self, level: _Level, name: str, status: os.stat_result, xattrs: dict[str, bytes]
    ) -> Iterator[bytes]:
        path = level.prefix + name
        yield from self.header(path, status, xattrs)
        is_redirected = not level.is_merged and f"{_OVERLAY}redirect" in xattrs
        is_opaque = not level.is_merged and xattrs.get(f"{_OVERLAY}opaque") == b"y"
        if is_opaque or is_redirected:
            yield self._mark(f"{path}/{_OPAQUE}")
        if is_redirected:
            if self.merged_links is None:
                self.merged_links = {self._shown_inode(one): one for one in self.links.values()}
            fd = _open_below(self.merged(), path, _DIRECTORY)
        else:
            fd = os.open(name, _DIRECTORY, dir_fd=level.fd)
        self._enter(fd, f"{path}/", is_merged=level.is_merged or is_redirected)

    def _mark(self, path: str) -> bytes:
        """An empty file whose name says what it means; it has no attributes."""
        info = tarfile.TarInfo(path)
        info.mode = 0
        return self._encode(info, {})


def _content(fd: int, size: int, path: str) -> Iterator[bytes]:
    """The bytes of a file, padded to a block."""
    left = size
    while left:
        data = os.read(fd, min(left, _READ))
        if not data:
            break
        left -= len(data)
        yield data
    if left or os.fstat(fd).st_size != size:
        raise FailedPrecondition(
            f"{_shown(path)} changed while it was read; stop what writes to it and repeat: "
            "failed precondition"
        )
    if size % _BLOCK:
        yield bytes(_BLOCK - size % _BLOCK)


def _is_whiteout(status: os.stat_result, xattrs: dict[str, bytes]) -> bool:
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    return stat.S_ISREG(status.st_mode) and f"{_OVERLAY}whiteout" in xattrs


def _xattrs(place: int | str | Path, *, follow: bool = False) -> dict[str, bytes]:
    """All extended attributes; of a path, its own and not those of what it links to."""
    if isinstance(place, int):
        return {name: os.getxattr(place, name) for name in os.listxattr(place)}
    return {
        name: os.getxattr(place, name, follow_symlinks=follow)
        for name in os.listxattr(place, follow_symlinks=follow)
    }


def _kept(xattrs: dict[str, bytes]) -> dict[str, bytes]:
    return {
        name: value
        for name, value in xattrs.items()
        if not name.startswith(_OVERLAY) and name != _HOST_XATTR
    }


def _open_below(top: Path, path: str, flags: int) -> int:
    """Open what lies below a directory, following nothing on the way."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    parts = path.split("/")
    for position, part in enumerate(parts):
        above = fd
        try:
            is_last = position == len(parts) - 1
            fd = os.open(part, flags if is_last else _DIRECTORY, dir_fd=above)
        finally:
            os.close(above)
    return fd


def _decimal(time_ns: int) -> str:
    """Nanoseconds as decimal seconds; a time before 1970 is negative as a whole."""
    sign, time_ns = ("-", -time_ns) if time_ns < 0 else ("", time_ns)
    return f"{sign}{time_ns // 10**9}.{time_ns % 10**9:09d}"


def _shown(path: str) -> str:
    return repr(path[:200])
