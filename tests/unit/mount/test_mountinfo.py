"""Mountinfo, as the kernel writes it."""

from __future__ import annotations

from layerstore.mount.mountinfo import (
    MountEntry,
    boot_id,
    mount_namespace,
    parse_mountinfo,
    read_mountinfo,
)

LINES = b"""\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
36 35 98:0 /a /mnt/with\\040blank\\134and\\012line rw,noatime master:1 shared:2 - overlay layerstore:5f rw,lowerdir=/x
37 35 0:40 / /mnt/f ro - fuse.layerstore layerstore:60 ro,user_id=0
"""


def test_fields_are_found_with_and_without_optional_ones() -> None:
    assert parse_mountinfo(LINES) == [
        MountEntry("/", "ext4", "/dev/vda"),
        MountEntry("/mnt/with blank\\and\nline", "overlay", "layerstore:5f"),
        MountEntry("/mnt/f", "fuse.layerstore", "layerstore:60"),
    ]


def test_lines_that_are_no_mounts_are_left_out() -> None:
    assert parse_mountinfo(b"\n36 35 98:0 - x\n1 2 3:4 / /m rw - \n") == []


def test_names_that_are_no_utf8_come_back_as_they_were() -> None:
    entry = parse_mountinfo(b"1 2 3:4 / /m\xff rw - tmpfs tmpfs rw")[0]
    assert entry.target.encode("utf-8", "surrogateescape") == b"/m\xff"


def test_this_process_sees_a_root_a_boot_and_a_namespace() -> None:
    assert "/" in {entry.target for entry in read_mountinfo()}
    assert boot_id() == boot_id() != ""
    assert mount_namespace() == mount_namespace() > 0
