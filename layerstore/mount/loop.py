"""Loop devices: a file as a block device, for kernels that mount no EROFS image from a file (before 6.12).

    with loop_device(image) as device:
        create_mount("erofs", [("source", device), "ro"])

The kernel takes the device away with its last user: the block here, then the mount.

Source: loop(4); `linux/loop.h`: LOOP_CTL_GET_FREE, LOOP_CONFIGURE (5.8), `struct loop_config`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LOOP_CONTROL", "loop_device"]

LOOP_CONTROL = Path("/dev/loop-control")  # missing where there are no loop devices
_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_READ_ONLY, _AUTOCLEAR = 1, 4
# file, block size (0: 512); of loop_info64: flags, name, the rest zeros; reserved
_CONFIG = struct.Struct("=II40x12xI64s112x64x")
_ATTEMPTS = 64  # somebody else may take the device that is free now

assert _CONFIG.size == 304


@contextmanager
def loop_device(image: Path) -> Iterator[Path]:
    """The path of a read-only loop device over a file. Raises: Unsupported: there are none here, or none is free."""
    try:
        file = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            device, path = _configured(file, image)
        finally:
            os.close(file)
    except OSError as error:
        raise Unsupported(f"no loop device for {image}: {error.strerror}") from error
    try:
        yield path
    finally:
        os.close(device)


def _configured(file: int, image: Path) -> tuple[int, Path]:
    control = os.open(LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            path = Path(f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}")
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            name = os.fsencode(image)[:63]
            try:
                fcntl.ioctl(
                    device, _CONFIGURE, _CONFIG.pack(file, 0, _READ_ONLY | _AUTOCLEAR, name)
                )
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
