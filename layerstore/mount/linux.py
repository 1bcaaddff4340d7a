"""Linux's mount calls, which the standard library does not have.

    with create_mount("erofs", [("source", image), ("device", chunks), "ro"]) as mount:
        mount.attach(folder)              # move_mount(2); or use it without a place, by mount.fd
    …
    unmount(folder)

A mount that is not attached ends with its descriptor, whatever happens to the process. Options go one by one, so there
may be hundreds of `device`, `lowerdir+` or `datadir+`; mount(2) has one page for all of them.

Source: fsopen(2), fsconfig(2), fsmount(2), move_mount(2), mount_setattr(2), umount2(2); `linux/mount.h`, 6.18.
Linux gives new calls the same number on all architectures but Alpha.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from contextlib import contextmanager
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, NoReturn, Self

from layerstore.errors import Busy, CorruptStore, FailedPrecondition, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

__all__ = [
    "DetachedMount",
    "MountFlag",
    "Option",
    "clone_mount",
    "create_mount",
    "set_mount_flags",
    "unmount",
]

# A flag, or a key and its value; an int is a descriptor.
Option = str | tuple[str, str | bytes | os.PathLike[str] | int]


class MountFlag(IntFlag):
    """Attributes of a mount (`MOUNT_ATTR_*`)."""

    NONE = 0
    READ_ONLY = 0x1
    NO_SUID = 0x2
    NO_DEVICES = 0x4
    NO_EXEC = 0x8
    NO_ATIME = 0x10


class _Call(IntEnum):
    """Numbers of system calls."""

    OPEN_TREE = 428
    MOVE_MOUNT = 429
    FSOPEN = 430
    FSCONFIG = 431
    FSMOUNT = 432
    MOUNT_SETATTR = 442


class _Set(IntEnum):
    """Commands of fsconfig(2)."""

    FLAG = 0
    STRING = 1
    FD = 5
    CREATE = 6


_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_CLOEXEC = 1  # of fsopen(2) and fsmount(2)
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_OPEN_TREE_CLONE = 1
_UMOUNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_MOUNT_ATTR = struct.Struct("=QQQQ")  # to set, to clear, propagation, user namespace

_UNSUPPORTED = (errno.ENODEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTBLK)
_DAMAGED = (errno.EUCLEAN, errno.EIO, errno.EBADMSG)
_REFUSED = (errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENOTDIR)
_HINTS = {
    errno.EPERM: "mounting needs root",
    errno.EACCES: "mounting needs root",
    errno.ENOTBLK: "an image on tmpfs or overlayfs cannot be mounted",
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def create_mount(
    kind: str, options: Sequence[Option], flags: MountFlag = MountFlag.NONE
) -> DetachedMount:
    """Make a filesystem of this kind and mount it nowhere yet.

    The options `nodev`, `nosuid` and so on are not options here but `flags`; `ro` is both.

    Raises:
        Unsupported: the kernel lacks this filesystem, a feature that its image needs, or an option.
        FailedPrecondition: no permission, or a file is missing.
        CorruptStore: the image is damaged.
        Busy: a file is in use elsewhere in a way that forbids it.
        OSError: anything else; all carry what the kernel has said.
    """
    context = _call(f"mount {kind}", _Call.FSOPEN, kind.encode(), _CLOEXEC)
    try:
        with _explained(kind, context):
            for option in options:
                _set_option(context, option)
            _check(_raw(_Call.FSCONFIG, context, _Set.CREATE, None, None, 0), "fsconfig")
            return DetachedMount(_check(_raw(_Call.FSMOUNT, context, _CLOEXEC, flags), "fsmount"))
    finally:
        os.close(context)


def clone_mount(path: os.PathLike[str], *, recursive: bool = False) -> DetachedMount:
    """A detached copy of the mount at `path` (what `mount --bind` attaches). Raises: as `create_mount`."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return DetachedMount(
        _call(f"bind {os.fspath(path)}", _Call.OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)
    )


class DetachedMount:
    """A mount without a place. Close it, or use it as a context manager; once attached, it stays there.

    Thread safety: one call at a time.

    Attributes:
        fd: its root, for `dir_fd=` (O_PATH, so it cannot be listed itself); -1 once closed.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def attach(self, target: os.PathLike[str]) -> None:
        """Show it at `target`, over what is there. Raises: as `create_mount`."""
        place = os.fsencode(target)
        _call(
            f"mount at {os.fspath(target)}",
            *(_Call.MOVE_MOUNT, self.fd, b"", _AT_FDCWD, place, _MOVE_MOUNT_F_EMPTY_PATH),
        )

    def set_flags(self, add: MountFlag, remove: MountFlag = MountFlag.NONE) -> None:
        """Change attributes of the mount. Raises: as `create_mount`."""
        _set_attributes(self.fd, b"", _AT_EMPTY_PATH, add, remove)

    def close(self) -> None:
        """Give the descriptor back: a mount that is not attached is gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def set_mount_flags(
    path: os.PathLike[str], add: MountFlag, remove: MountFlag = MountFlag.NONE
) -> None:
    """Change attributes of the mount at `path`. Raises: as `create_mount`."""
    _set_attributes(_AT_FDCWD, os.fsencode(path), 0, add, remove)


def unmount(path: os.PathLike[str], *, lazy: bool = False) -> None:
    """Take away the mount at `path`; a lazy one disappears at once and ends with its last open file.

    Symbolic links are not followed.

    Raises:
        Busy: a file of it is in use.
        FailedPrecondition: no mount, no such path, or no permission.
    """
    flags = _UMOUNT_NOFOLLOW | (_UMOUNT_DETACH if lazy else 0)
    if _libc.umount2(ctypes.c_char_p(os.fsencode(path)), ctypes.c_int(flags)):
        code = ctypes.get_errno()
        if code == errno.EINVAL:
            raise FailedPrecondition(f"unmount {os.fspath(path)}: nothing is mounted there")
        _fail(f"unmount {os.fspath(path)}", code, "")


def _set_attributes(fd: int, path: bytes, where: int, add: MountFlag, remove: MountFlag) -> None:
    attributes = _MOUNT_ATTR.pack(add, remove, 0, 0)
    _call("mount_setattr", _Call.MOUNT_SETATTR, fd, path, where, attributes, len(attributes))


def _set_option(context: int, option: Option) -> None:
    if isinstance(option, str):
        key, command, value, fd = option, _Set.FLAG, None, 0
    elif isinstance(option[1], int):
        key, command, value, fd = option[0], _Set.FD, None, option[1]
    else:
        key, command, value, fd = option[0], _Set.STRING, os.fsencode(option[1]), 0
    _check(_raw(_Call.FSCONFIG, context, command, key.encode(), value, fd), f"option {key}")


@contextmanager
def _explained(kind: str, context: int) -> Iterator[None]:
    """Turn an OSError into one of ours, with the messages that the kernel has left in the context."""
    try:
        yield
    except OSError as error:
        said = []
        try:
            while message := os.read(context, 4096):
                # "e text" with a newline: e, w or i for error, warning, information
                said.append(message.decode("utf-8", "replace").strip()[2:])
        except OSError:
            pass  # ENODATA: no more of them
        _fail(f"mount {kind}: {error.strerror}", error.errno or 0, "; ".join(said))


def _call(what: str, number: _Call, *arguments: int | bytes | None) -> int:
    result = _raw(number, *arguments)
    if result < 0:
        _fail(what, ctypes.get_errno(), "")
    return result


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, what)
    return result


def _raw(number: _Call, *arguments: int | bytes | None) -> int:
    # syscall() is variadic: each argument must come as the machine word that the kernel reads.
    words = [
        ctypes.c_long(argument) if isinstance(argument, int) else ctypes.c_char_p(argument)
        for argument in arguments
    ]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    return result


def _fail(what: str, code: int, said: str) -> NoReturn:
    hint = f"; {_HINTS[code]}" if code in _HINTS else ""
    problem = f"{what}: {said or os.strerror(code)} ({errno.errorcode.get(code, code)}){hint}"
    if code in _UNSUPPORTED:
        raise Unsupported(problem)
    if code in _REFUSED:
        raise FailedPrecondition(problem)
    if code in _DAMAGED:
        raise CorruptStore(problem)
    if code == errno.EBUSY:
        raise Busy(problem)
    raise OSError(code, problem)
