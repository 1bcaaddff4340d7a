"""The structures of an EROFS image, as Linux reads them.

    0      unused                          1024   SUPERBLOCK, then the zstd settings (1152)
    2048   DEVICE, the chunk file          4096   shared extended attributes, inodes, directory blocks

    inode at 32 * nid:   INODE   attributes   then, by layout
                         INLINE  directory or link text, inside one block
                         CHUNKS  one u32 FFFFFFFF for each 8 TiB: all hole
                         RECORDS to 8: MAP_HEADER, to 16 or 32: records, which point into the device

Only what this package writes stands here: blocks of 4 KiB, inodes of 64 bytes, one device, every extent an encoded one
of its own ("encoded extents", Linux 6.15). All numbers are little endian.

Source: Linux `fs/erofs/erofs_fs.h` and `fs/erofs/zmap.c`, 6.18.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

import numpy as np

__all__ = [
    "ACL_PREFIXES",
    "ALGORITHMS",
    "ATTRIBUTE",
    "ATTRIBUTES_HEADER",
    "BLOCK",
    "CHECKSUM_SEED",
    "CHUNK_SPAN",
    "COMPATIBLE",
    "DEVICE",
    "DEVICE_OFFSET",
    "DIRENT",
    "FILE_TYPES",
    "INODE",
    "MAGIC",
    "MAP_HEADER",
    "MAX_ENCODED",
    "MAX_SMALL_ROOT",
    "PARTIAL",
    "PLEN_MASK",
    "PREFIXES",
    "RECORD",
    "SLOT",
    "SUPERBLOCK",
    "SUPERBLOCK_OFFSET",
    "TYPE_BITS",
    "UNIFIED_BASE",
    "WINDOW_LOG",
    "ZSTD",
    "ZSTD_SETTINGS",
    "Feature",
    "Layout",
    "crc32c",
]

BLOCK = 4096
SLOT = 32  # inodes start at multiples of it; a nid counts them

MAGIC = 0xE0F5E1E2
SUPERBLOCK_OFFSET = 1024
CHECKSUM_SEED = 0x5045B54A  # the CRC of the magic; the rest of block 0 behind the checksum follows
COMPATIBLE = 1 | 2  # the checksum counts; times are modification times
# magic, checksum, compatible, block bits, ext slots, root nid or blocks hi, inodes, epoch, epoch ns, blocks lo,
# metadata block, attribute block, uuid, name, incompatible, algorithms, devices, device slot, dir block bits,
# prefixes, prefix start, packed nid, filter, 3 reserved, build time, root nid, reserved
SUPERBLOCK = struct.Struct("<IIIBBHQqIIII16s16sIHHHBBIQB3xIQ8x")
ZSTD_SETTINGS = struct.Struct("<HBB4x")  # bytes that follow, format, log2 of the window - 10
DEVICE_OFFSET = 2048
DEVICE = struct.Struct(
    "<64sIIHH52x"
)  # tag, blocks lo, address lo (in blocks), blocks hi, address hi

# Where the device begins in the image's one address space, in bytes. The image itself lies below.
UNIFIED_BASE = 1 << 36

MAX_SMALL_ROOT = 0xFFFF  # the largest nid that the root can have without BIG_ADDRESSES


class Feature(IntFlag):
    """Incompatible features: a kernel that lacks one refuses the image."""

    ZERO_PADDING = 0x1
    COMPRESSION_SETTINGS = 0x2
    CHUNKED_FILE = 0x4
    DEVICE_TABLE = 0x8
    # Linux 6.18 reads encoded extents without it too, but one before 6.15 would misread them: with it, that refuses.
    BIG_ADDRESSES = 0x80


class Layout(IntEnum):
    """Where an inode's content is; bits 1 to 3 of its format."""

    PLAIN = 0  # whole blocks from `u` on; also empty files and special ones
    RECORDS = 1
    INLINE = 2  # as PLAIN, but the last, partial block behind the inode
    CHUNKS = 4


INODE = np.dtype(
    [
        ("format", "<u2"),  # 1 (64 bytes) | layout << 1
        ("attributes", "<u2"),  # 0, or (bytes - 12) / 4 + 1
        ("mode", "<u2"),
        ("high", "<u2"),  # of `u`
        ("size", "<u8"),
        ("u", "<u4"),  # first block, device number, blocks on disk, or log2 of blocks in a chunk
        ("ino", "<u4"),
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("mtime", "<i8"),
        ("nsec", "<u4"),
        ("nlink", "<u4"),
        ("reserved", "V16"),
    ]
)
DIRENT = np.dtype([("nid", "<u8"), ("name", "<u2"), ("type", "u1"), ("reserved", "u1")])

# With a file below 4 GiB only the first 16 bytes of a record are there.
RECORD = np.dtype(
    [
        ("plen", "<u4"),  # bits 0-20 encoded length, 27 PARTIAL, 28-31 algorithm + 1; 0: a hole
        ("address_low", "<u4"),
        ("address_high", "<u4"),
        ("start_low", "<u4"),  # offset in the file
        ("start_high", "<u4"),
        ("reserved", "V12"),
    ]
)
MAP_HEADER = struct.Struct("<IHH")  # records, 1 | log2(record size / 4) << 1, records hi
PLEN_MASK = (1 << 21) - 1
# The frame may hold more than the extent takes. Also set on frames that are not smaller than their content: Linux 7
# refuses those without it ("too much compressed data").
PARTIAL = 1 << 27
ZSTD = 4  # algorithm 3, plus 1
MAX_ENCODED = 1 << 20
ALGORITHMS = 1 << (ZSTD - 1)
WINDOW_LOG = 20  # of all frames; Linux decodes no larger windows

CHUNK_SPAN = 1 << 43  # bytes: 2^31 blocks, the largest chunk

ATTRIBUTES_HEADER = struct.Struct(
    "<IB7x"
)  # name filter (unused), shared ones; u32 for each of these follow
ATTRIBUTE = struct.Struct(
    "<BBH"
)  # name length, prefix, value length; name and value follow, padded to 4
PREFIXES = {b"user.": 1, b"trusted.": 4, b"security.": 6}
ACL_PREFIXES = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}

# By `tree.Kind`: FILE, DIRECTORY, SYMLINK, -, CHARACTER, BLOCK, FIFO stand at 1 .. 7.
TYPE_BITS = np.array(
    [0, 0o100000, 0o040000, 0o120000, 0, 0o020000, 0o060000, 0o010000], dtype="<u2"
)
FILE_TYPES = np.array([0, 1, 2, 7, 0, 3, 4, 5], dtype="u1")

assert SUPERBLOCK.size == 128
assert DEVICE.size == 128
assert INODE.itemsize == 64
assert DIRENT.itemsize == 12
assert RECORD.itemsize == 32


def crc32c(data: bytes, crc: int) -> int:
    """CRC-32C without the final inversion, as the superblock's checksum wants it; for a few KiB only."""
    for octet in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ octet) & 0xFF]
    return crc


def _crc_row(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = [_crc_row(octet) for octet in range(256)]
