"""Mount what a snapshot says, with mount(2), as containerd would; and take it away.

Source: mount(2), umount2(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from layerstore.errors import FailedPrecondition, InvalidArgument, Unsupported
from layerstore.mount.linux import unmount

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from layerstore.snapshots.specs import MountSpec

__all__ = ["mount_specs", "mounted"]

_FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "remount": 32, "bind": 4096}
_FLAGS |= {"rbind": 4096 | 16384, "rw": 0}
_PAGE = 4096  # what mount(2) takes of options

_libc = ctypes.CDLL(None, use_errno=True)


def mount_specs(specs: Sequence[MountSpec], target: Path) -> None:
    """Mount these, in order, at a directory.

    Raises: FailedPrecondition: no permission, or something is missing. Unsupported: the kernel cannot.
        InvalidArgument: more options than the kernel takes.
    """
    for spec in specs:
        flags = 0
        data = []
        for option in spec.options:
            if option in _FLAGS:
                flags |= _FLAGS[option]
            else:
                data.append(option)
        text = os.fsencode(",".join(data))
        if len(text) >= _PAGE:
            raise InvalidArgument("the options of a mount are longer than a page")
        _mount(spec.source, target, spec.type, flags, text)
        if flags & _FLAGS["bind"] and flags & _FLAGS["ro"]:
            # A bind mount takes no other flags; the second call does.
            _mount(spec.source, target, spec.type, flags | _FLAGS["remount"], text)


@contextmanager
def mounted(specs: Sequence[MountSpec], target: Path) -> Iterator[Path]:
    """The same for a block. Raises: as `mount_specs`; Busy: it is in use at the end."""
    mount_specs(specs, target)
    try:
        yield target
    finally:
        for _ in specs:
            unmount(target)


def _mount(source: str, target: Path, kind: str, flags: int, data: bytes) -> None:
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode())
    if _libc.mount(*arguments, ctypes.c_ulong(flags), data or None) == 0:
        return
    code = ctypes.get_errno()
    problem = f"mount {kind} at {target}: {os.strerror(code)}"
    if code in (errno.ENODEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
        raise Unsupported(problem)
    if code in (errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENOTDIR):
        raise FailedPrecondition(f"{problem}; mounting needs root")
    raise OSError(code, problem)
