"""Extended attributes of an EROFS image: what each inode carries behind itself, and what inodes share.

    behind an inode:  ATTRIBUTES_HEADER   u32 number of each shared one   entries of its own
    shared:           entries; a number is the offset / 4 in this area

An entry is ATTRIBUTE, the name without its prefix, the value, padded to 4. What several inodes have is shared, and
what is long.

Not every attribute of a tar can be shown: Linux's EROFS knows the prefixes `user.`, `trusted.`, `security.` and the
two POSIX ACLs, and values up to 65,535 bytes. `is_showable` tells; the writer leaves out the others.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from layerstore.formats.erofs.ondisk import (
    ACL_PREFIXES,
    ATTRIBUTE,
    ATTRIBUTES_HEADER,
    PREFIXES,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PackedAttributes", "encode_attribute", "is_showable", "pack_attributes"]

_MAX_VALUE = 0xFFFF
_MAX_SHARED = 255  # of one inode
_ROOM = 4096  # for an entry that the writer adds to an inode
_MAX_BODY = 0xFFFE * 4 + ATTRIBUTES_HEADER.size - _ROOM
_SHARE_FROM = 1024  # bytes: longer ones stay out of the way of inodes


class PackedAttributes(NamedTuple):
    """`bodies[i]` goes behind each inode that has set i; `shared` is the area of shared attributes."""

    bodies: list[bytes]
    shared: bytes


def pack_attributes(sets: Sequence[Mapping[bytes, bytes]], uses: Sequence[int]) -> PackedAttributes:
    """Write sets of attributes down, of which set i belongs to `uses[i]` inodes.

    The order in a set is kept. What no inode can carry (more than 255 shared and 258,052 bytes of its own) is left
    out, from the end.
    """
    entries = [
        [encode_attribute(name, value) for name, value in found.items() if is_showable(name, value)]
        for found in sets
    ]
    popularity: Counter[bytes] = Counter()
    for group, inodes in zip(entries, uses, strict=True):
        for entry in group:
            popularity[entry] += inodes
    numbers: dict[bytes, int] = {}
    size = 0
    for entry, inodes in popularity.items():
        if inodes > 1 or len(entry) > _SHARE_FROM:
            numbers[entry] = size // 4
            size += len(entry)
    return PackedAttributes([_body(group, numbers) for group in entries], b"".join(numbers))


def is_showable(name: bytes, value: bytes) -> bool:
    """Whether Linux's EROFS can show this attribute."""
    return _split(name) is not None and len(value) <= _MAX_VALUE


def encode_attribute(name: bytes, value: bytes) -> bytes:
    """One entry. The attribute must be showable."""
    split = _split(name)
    assert split is not None
    prefix, rest = split
    entry = ATTRIBUTE.pack(len(rest), prefix, len(value)) + rest + value
    return entry + bytes(-len(entry) % 4)


def _split(name: bytes) -> tuple[int, bytes] | None:
    if name in ACL_PREFIXES:
        return ACL_PREFIXES[name], b""
    head, dot, rest = name.partition(b".")
    prefix = PREFIXES.get(head + dot)
    return (prefix, rest) if prefix and rest else None


def _body(entries: list[bytes], numbers: Mapping[bytes, int]) -> bytes:
    shared = [entry for entry in entries if entry in numbers][:_MAX_SHARED]
    pointed = set(shared)
    size = ATTRIBUTES_HEADER.size + 4 * len(shared)
    own = []
    for entry in entries:
        if entry not in pointed and size + len(entry) <= _MAX_BODY:
            own.append(entry)
            size += len(entry)
    if not shared and not own:
        return b""  # Linux refuses a header with nothing behind it
    pointers = struct.pack(f"<{len(shared)}I", *(numbers[entry] for entry in shared))
    return ATTRIBUTES_HEADER.pack(0, len(shared)) + pointers + b"".join(own)
