r"""What is mounted in this namespace, as the kernel says.

    36 35 98:0 /root /mnt/point rw,noatime master:1 - overlay layerstore:5f… rw,lowerdir=…
    id parent device root target options [optional fields…] - kind source options

Blanks, tabs, newlines and backslashes in a field are \ooo.

Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["MountEntry", "boot_id", "mount_namespace", "parse_mountinfo", "read_mountinfo"]

_OCTAL = re.compile(rb"\\([0-7]{3})")


class MountEntry(NamedTuple):
    """A mount: where, what kind of filesystem, and its source."""

    target: str
    kind: str
    source: str


def read_mountinfo() -> list[MountEntry]:
    """All mounts that this process can see; of several at one place, the top one is last."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def parse_mountinfo(text: bytes) -> list[MountEntry]:
    """The mounts in the text of a mountinfo file; lines that are none are left out."""
    entries = []
    for line in text.split(b"\n"):
        before, dash, after = line.partition(b" - ")
        left, right = before.split(b" "), after.split(b" ")
        if dash and len(left) > 5 and len(right) > 1:
            entries.append(MountEntry(_field(left[4]), _field(right[0]), _field(right[1])))
    return entries


def boot_id() -> str:
    """What tells this boot of the kernel from others."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def mount_namespace() -> int:
    """What tells this process's mounts from those of others."""
    return Path("/proc/self/ns/mnt").stat().st_ino


def _field(text: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8)]), text))
