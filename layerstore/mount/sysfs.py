"""How a mounted filesystem reads ahead: settings that are no mount options, set in sysfs after it was mounted.

    /sys/class/bdi/NAME/read_ahead_kb          how far the kernel reads ahead in one file
    /sys/fs/erofs/NAME/sync_decompress         2: whoever reads leaves the decoding to the kernel's threads

Frames lie at any byte, so the kernel joins no two of them into one request: what hides the disk's latency is how many
are asked for at once, and the default of 128 KiB is a dozen. And EROFS waits for short ones inside of the readahead, where the
block layer still holds them back: another thread has to send them. docs/adr/0008 has what both were measured to gain.

All this is for speed only. Where sysfs cannot be written (in a container, most likely), mounts are as they were.

Source: ioctl FS_IOC_GETFSSYSFSPATH, `linux/fs.h`, 6.9; Linux `Documentation/ABI/testing/sysfs-class-bdi`, `sysfs-fs-erofs`.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

__all__ = ["read_far_ahead", "sysfs_name"]

_READ_AHEAD = 1024  # KiB; 512 is slower, and from 2048 on nothing gets faster
_NEVER = 2  # of sync_decompress
_GET_SYSFS_PATH = 0x80811501  # _IOR(0x15, 1, struct fs_sysfs_path)
_PATH = 129  # bytes of that structure: length, then the name


def read_far_ahead(root: Path) -> None:
    """Make the filesystem that is mounted at `root` read far ahead, if that can be set."""
    with suppress(OSError):
        kind, name = sysfs_name(root)
        _write(Path("/sys/class/bdi", name, "read_ahead_kb"), _READ_AHEAD)
        if kind == "erofs":
            _write(Path("/sys/fs/erofs", name, "sync_decompress"), _NEVER)


def sysfs_name(root: Path) -> tuple[str, str]:
    """The kind of the filesystem that is mounted at `root`, empty if it does not say, and what sysfs calls it.

    Raises: OSError: it cannot be opened.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        device = os.fstat(fd).st_dev
        answer = fcntl.ioctl(fd, _GET_SYSFS_PATH, bytes(_PATH))
        kind, _, name = answer[1 : 1 + answer[0]].decode().partition("/")
    except OSError:
        return "", f"{os.major(device)}:{os.minor(device)}"  # what most filesystems are called
    finally:
        os.close(fd)
    return kind, name


def _write(path: Path, value: int) -> None:
    path.write_text(str(value))
