"""The durability calls, and the lock: every byte that must survive a crash passes through here.

    replace_file: write a temporary file > fsync it > rename over > fsync the directory

Source: POSIX fsync, rename; Linux fallocate(2), flock(2).
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import resource
import stat
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from layerstore.errors import Busy, StoreFull

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "NO_ROOM",
    "allocate",
    "change_mode",
    "create_file",
    "fdatasync",
    "fsync_directory",
    "is_at_limit",
    "is_full",
    "lock_file",
    "locked_directory",
    "no_room",
    "open_regular",
    "pread_exactly",
    "punch_hole",
    "pwrite_all",
    "reopen_regular",
    "replace_file",
    "sync_filesystem",
    "write_in_place",
]

_PUNCH_HOLE, _KEEP_SIZE = 2, 1  # linux/falloc.h
_GET_FLAGS, _SET_FLAGS, _NO_COW = 0x80086601, 0x40086602, 0x00800000  # linux/fs.h, of 64 bits
_TEMPORARY = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))  # EFBIG: RLIMIT_FSIZE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


@contextmanager
def no_room(what: str) -> Iterator[None]:
    """Turn "no space" and "over quota" into StoreFull; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StoreFull(
                f"no room to {what}: {error.strerror}; free some space and repeat"
            ) from error
        raise


def is_full(folder: Path) -> bool:
    """Whether a folder's filesystem has practically no room left (less than 1 MiB)."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize < 1 << 20


def is_at_limit(path: Path) -> bool:
    """Whether a file is practically as long as this process may make one (RLIMIT_FSIZE)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return limit != resource.RLIM_INFINITY and path.stat().st_size > limit - (1 << 20)


def fdatasync(fd: int) -> None:
    """Make the bytes of a file, and its size, durable."""
    os.fdatasync(fd)


def pwrite_all(fd: int, data: bytes | memoryview, address: int) -> None:
    """Write all of `data`, however short the kernel's own writes are."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, address)
        view = view[written:]
        address += written


def pread_exactly(fd: int, length: int, address: int) -> bytes:
    """Read `length` bytes, or fewer where the file ends."""
    data = os.pread(fd, length, address)
    if len(data) == length or not data:
        return data
    parts = [data]
    got = len(data)
    while got < length and (data := os.pread(fd, length - got, address + got)):
        parts.append(data)
        got += len(data)
    return b"".join(parts)


def punch_hole(fd: int, address: int, length: int) -> None:
    """Give a range's blocks back to the filesystem; where it cannot, the range keeps its blocks and nothing is lost."""
    code = errno.EINTR if length > 0 else 0
    while code == errno.EINTR:
        done = _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, address, length) == 0
        code = 0 if done else ctypes.get_errno()
    if not code:
        return
    if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(code, os.strerror(code))


def allocate(fd: int, length: int) -> bool:
    """Have blocks for the first `length` bytes of a file, which gets at least that size; False where there is no room.

    A filesystem that knows no allocation in advance is let pass.
    """
    if _libc.fallocate(fd, 0, 0, length) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.ENOSYS):
        return True
    if code in NO_ROOM:
        return False
    raise OSError(code, os.strerror(code))


def write_in_place(fd: int) -> None:
    """Let an empty file be written in place by a filesystem that would write a copy (btrfs); others have no such flag."""
    flags = array.array("l", [0])
    with suppress(OSError):
        fcntl.ioctl(fd, _GET_FLAGS, flags)
        flags[0] |= _NO_COW
        fcntl.ioctl(fd, _SET_FLAGS, flags)


def create_file(path: Path) -> int:
    """Create a file that must not exist, durably, and return its descriptor (read and write). Raises: StoreFull."""
    with no_room(f"create {path}"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fsync(fd)
            fsync_directory(path.parent)
        except BaseException:
            os.close(fd)
            raise
    return fd


def replace_file(path: Path, data: bytes) -> None:
    """Give a file new contents: after a crash it holds the old ones or the new ones, whole. Raises: StoreFull."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    with no_room(f"write {path}"):
        fd = os.open(temporary, _TEMPORARY, 0o600)
        try:
            pwrite_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
        fsync_directory(path.parent)


def open_regular(name: bytes | str | Path, *, dir_fd: int | None = None) -> int:
    """Open a regular file for reading; a symbolic link is not followed, and a device or pipe is never opened.

    Opening a device may do something (a watchdog begins to count), so that looking at what was opened is too late.
    Raises: OSError (ELOOP): it is something else, perhaps since a moment.
    """
    path = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return reopen_regular(path, name)
    finally:
        os.close(path)


def reopen_regular(path_fd: int, name: bytes | str | Path) -> int:
    """The same of what an O_PATH descriptor stands for, which stays open; `name` is for the message."""
    if not stat.S_ISREG(os.fstat(path_fd).st_mode):
        raise OSError(errno.ELOOP, "not a regular file", name)
    return os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_CLOEXEC)


def change_mode(name: bytes | str | Path, mode: int, *, dir_fd: int | None = None) -> None:
    """A chmod that never follows a symbolic link, also not one that somebody has just put there.

    Raises: OSError (ELOOP): it is a symbolic link.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
        os.chmod(f"/proc/self/fd/{fd}", mode)  # fchmod takes no such descriptor, fchmodat follows
    finally:
        os.close(fd)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises: StoreFull."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with no_room(f"write the names in {path}"):
            os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem(folder: Path) -> None:
    """Make all that was written to the filesystem of a folder durable: many small files at once."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd):
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(fd)


def lock_file(path: Path, *, create: bool) -> int | None:
    """Take the exclusive lock of a file without waiting; the descriptor holds it, closing lets go.

    None: somebody holds it, or it does not exist and `create` is false. The kernel lets go when the holder dies.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The file may have been removed between open and flock: a lock that nobody else can see is none.
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


@contextmanager
def locked_directory(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the exclusive lock of a directory. Nothing is made in it, so a full disk is no hindrance.

    Raises: Busy: somebody holds it, and this is not to wait.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Busy(f"{path} is locked by another process; wait for it") from None
        yield
    finally:
        os.close(fd)
