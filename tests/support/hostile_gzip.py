"""Gzip streams that are made to cost whoever reads them time or memory; each is whole, unless its name says otherwise."""

from __future__ import annotations

import gzip
import random
import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BIG", "HOSTILE", "SMALL", "member"]

_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_MEMBER = gzip.compress(b"", mtime=0)


class _Bits:
    """Writes a deflate stream bit by bit."""

    def __init__(self) -> None:
        self._value = self._count = 0

    def put(self, value: int, count: int) -> None:
        """Add the low bits of a number, lowest first."""
        self._value |= value << self._count
        self._count += count

    def put_code(self, code: int, count: int) -> None:
        """Add a Huffman code, highest bit first."""
        self.put(int(f"{code:0{count}b}"[::-1], 2), count)

    def repeated(self, times: int) -> bytes:
        """What was put, again and again, and a stored block at the end; `times` is made a multiple of eight."""
        eight = sum(self._value << self._count * turn for turn in range(8))
        return eight.to_bytes(self._count, "little") * (times // 8) + b"\x01\0\0\xff\xff"


def member(deflated: bytes, text: bytes) -> bytes:
    """A gzip member of raw deflate data."""
    return _HEADER + deflated + struct.pack("<II", zlib.crc32(text), len(text) & 0xFFFFFFFF)


def _bomb(megabytes: int) -> bytes:
    return gzip.compress(bytes(megabytes * 1_000_000), 9, mtime=0)


def _stored_blocks(count: int) -> bytes:
    return member(b"\0\0\0\xff\xff" * count + b"\x01\0\0\xff\xff", b"")


def _fixed_blocks(count: int) -> bytes:
    bits = _Bits()
    bits.put(0b010, 3)
    bits.put_code(0, 7)
    return member(bits.repeated(count), b"")


def _deep_trees(count: int) -> bytes:
    """Dynamic blocks of one literal each, whose codes of literals and distances are as long as they may be."""
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
    bits = _Bits()
    bits.put(0b100, 3)
    bits.put(286 - 257, 5)
    bits.put(30 - 1, 5)
    bits.put(19 - 4, 4)
    # Lengths 1 to 15 and 0, each by a code of four bits: sixteen codes, complete.
    wanted = {0, *range(1, 16)}
    for symbol in order:
        bits.put(4 if symbol in wanted else 0, 3)
    literals = [0] * 286
    for length in range(1, 16):
        literals[65 + length] = length
    literals[256] = 15  # completes the tree
    distances = [*range(1, 16), 15, *[0] * 14]
    for length in literals + distances:
        bits.put_code(length, 4)  # canonical: the code of a length is itself
    bits.put_code(0, 1)  # the literal whose code has one bit
    bits.put_code(0x7FFF, 15)  # end of block
    times = count // 8 * 8
    return member(bits.repeated(count), bytes([66]) * times)


def _one_block(megabytes: int) -> bytes:
    """One block of literals and no end in sight."""
    bits = _Bits()
    bits.put_code(0x30 + 97, 8)
    body = bits.repeated(megabytes * 1_000_000)[:-5]
    # In front, the block's three bits shift everything by three.
    number = int.from_bytes(body, "little") << 3 | 0b011
    deflated = number.to_bytes(len(body) + 2, "little")  # the end of block is seven zeros
    return member(deflated, b"a" * (megabytes * 1_000_000))


def _growing_block(megabytes: int) -> bytes:
    """One fixed block of a literal and matches of 258 bytes."""
    bits = _Bits()
    bits.put_code(0b11000101, 8)  # length 258
    bits.put_code(0, 5)  # distance 1
    times = megabytes * 1_000_000 // 258 // 8 * 8
    body = bits.repeated(times)[:-5]
    number = (int.from_bytes(body, "little") << 8 | int(f"{0x30 + 97:08b}"[::-1], 2)) << 3 | 0b011
    return member(number.to_bytes(len(body) + 3, "little"), b"a" * (1 + 258 * times))


def _two_letters(size: int) -> bytes:
    """Eight hash chains hold all positions, and every one matches a little."""
    rng = random.Random(1)
    return gzip.compress(bytes(97 + rng.getrandbits(1) for _ in range(size)), 9, mtime=0)


def _near_misses(size: int) -> bytes:
    """Long runs that match one another but for their last bytes."""
    rng = random.Random(2)
    parts, have = [], 0
    while have < size:
        parts.append(b"a" * rng.randrange(200, 258) + rng.randbytes(1))
        have += len(parts[-1])
    return gzip.compress(b"".join(parts), 9, mtime=0)


def _three_bytes(size: int) -> bytes:
    """Chains of one hash that lead nowhere."""
    text = b"".join(b"abc" + bytes([i % 251, i % 241]) for i in range(size // 5))
    return gzip.compress(text, 9, mtime=0)


def _long_headers(count: int) -> bytes:
    extra = struct.pack("<H", 65_535) + bytes(65_535)
    header = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + extra
    return (header + _MEMBER[10:]) * count


def _long_name(size: int) -> bytes:
    return b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"n" * size + b"\0" + _MEMBER[10:]


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "bomb": lambda size: _bomb(size // 1_000_000 + 1),
    "bombs in members": lambda size: _bomb(1) * (size // 1_000_000 + 1),
    "empty members": lambda size: _MEMBER * size,
    "empty stored blocks": _stored_blocks,
    "empty fixed blocks": _fixed_blocks,
    "deep trees": _deep_trees,
    "one block": lambda size: _one_block(size // 1_000_000 + 1),
    "one block that grows": lambda size: _growing_block(size // 1_000_000 + 1),
    "two letters": _two_letters,
    "near misses": _near_misses,
    "one hash": _three_bytes,
    "extra fields": _long_headers,
    "long name": _long_name,
}
"""Streams by name, made in the size that is asked for: plain bytes, members, blocks, or bytes of a header."""

SMALL = {
    "bomb": 50_000_000,
    "bombs in members": 50_000_000,
    "empty members": 2_000,
    "empty stored blocks": 100_000,
    "empty fixed blocks": 3_000,
    "deep trees": 2_000,
    "one block": 2_000_000,
    "one block that grows": 200_000_000,
    "two letters": 60_000,
    "near misses": 1_000_000,
    "one hash": 400_000,
    "extra fields": 100,
    "long name": 10_000_000,
}
BIG = {
    "bomb": 1_000_000_000,
    "bombs in members": 1_000_000_000,
    "empty members": 1_000_000,
    "empty stored blocks": 10_000_000,
    "empty fixed blocks": 1_000_000,
    "deep trees": 50_000,
    "one block": 60_000_000,
    "one block that grows": 1_000_000_000,
    "two letters": 8_000_000,
    "near misses": 50_000_000,
    "one hash": 20_000_000,
    "extra fields": 1_000,
    "long name": 100_000_000,
}
