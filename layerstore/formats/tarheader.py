r"""The headers of a tar that need more than fixed columns: PAX records, GNU long names, GNU sparse maps.

    ustar header, 512 bytes: name[100] mode[8] uid[8] gid[8] size[12] mtime[12] checksum[8] typeflag linkname[100]
    magic[6] version[2] uname[32] gname[32] devmajor[8] devminor[8] prefix[155]
    PAX record: "<length> <key>=<value>\n", the length counts itself
    GNU 'S' header: 4 (offset, size) pairs at 386, more-follows flag at 482, real size at 483; then blocks of 21 pairs

Ordinary headers are read by `kernels.tar_scan`; `parse_header` reads one the same way for the few that are not.

Source: POSIX.1-2017 pax; GNU tar manual, "Basic Tar Format" and "Storing Sparse Files"; Go archive/tar for what
container tools accept.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from layerstore import kernels
from layerstore.errors import MalformedInput

__all__ = [
    "BLOCK",
    "ROW_SIZE",
    "Header",
    "SparseMap",
    "apply_pax",
    "parse_gnu_sparse",
    "parse_header",
    "parse_pax",
    "parse_sparse_1_0",
    "parse_sparse_pairs",
    "rows_of",
]

BLOCK = 512

_ROW = struct.Struct("<QQqQQIIIHHHBBI")
ROW_SIZE = _ROW.size

_GNU_PAIRS_AT, _GNU_PAIRS, _GNU_MORE_AT, _GNU_REAL_SIZE_AT = 386, 4, 482, 483
_GNU_EXTENSION_PAIRS, _GNU_EXTENSION_MORE_AT = 21, 504
_MAX_SPARSE_PAIRS = 1 << 20

SparseMap = list[tuple[int, int]]  # (offset, length) of stored stretches, ascending


class Header(NamedTuple):
    """The fixed columns of one header, as `kernels.tar_scan` gives them."""

    offset: int
    size: int
    mtime: int
    uid: int
    gid: int
    mode: int
    major: int
    minor: int
    name_length: int
    prefix_length: int
    link_length: int
    typeflag: int
    format: int
    flags: int


def rows_of(packed: bytes) -> list[Header]:
    """Unpack what `kernels.tar_scan` returns."""
    return list(map(Header._make, _ROW.iter_unpack(packed)))


def parse_header(block: bytes, typeflag: int) -> Header | None:
    """Read the fixed columns of a header of any type; None when its size is not a number.

    The kernel stops at types that change the meaning of what follows; seen as a plain file the columns are the same.
    """
    plain = bytearray(block)
    plain[156] = ord("0")
    plain[148:156] = b"%06o\0 " % (sum(plain[:148]) + 8 * 32 + sum(plain[156:]))
    packed, _, _ = kernels.tar_scan(bytes(plain), 0)
    return rows_of(packed)[0]._replace(typeflag=typeflag) if packed else None


def parse_pax(body: bytes) -> dict[bytes, bytes]:
    """Read the records of an extended header; a later record of a key replaces an earlier one.

    Raises: MalformedInput: a record's length or shape is wrong.
    """
    records: dict[bytes, bytes] = {}
    pairs: list[bytes] = []
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 20)
        digits = body[at:space] if space > at else b""
        end = at + int(digits) if digits.isdigit() else at
        if end <= max(space, at) or end > len(body) or body[end - 1] != 0x0A:
            # Some writers pad the body with NULs: nothing but NULs may follow the last record.
            if not body[at:].strip(b"\0"):
                break
            raise MalformedInput("broken PAX record")
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals:
            raise MalformedInput("broken PAX record")
        if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
            pairs.append(value)  # format 0.0 repeats two keys; keep them all, in order
        else:
            records[key] = value
        at = end
    if pairs:
        records[b"GNU.sparse.map"] = b",".join(pairs)
    return records


def apply_pax(header: Header, records: dict[bytes, bytes]) -> tuple[Header, int]:
    """Let PAX records override the columns; returns the header and the nanoseconds of its mtime.

    Raises: MalformedInput: a number is not one.
    """
    nsec = 0
    changes: dict[str, int] = {}
    for key, field in ((b"uid", "uid"), (b"gid", "gid"), (b"size", "size")):
        if records.get(key):
            changes[field] = _number(records[key])
    if records.get(b"mtime"):
        changes["mtime"], nsec = _seconds(records[b"mtime"])
    return (header._replace(**changes) if changes else header), nsec


def parse_sparse_pairs(text: bytes) -> SparseMap:
    """The map of PAX sparse formats 0.0 and 0.1: "offset,length,offset,length…"."""
    numbers = [_number(part) for part in text.split(b",")] if text else []
    return _pairs(numbers)


def parse_sparse_1_0(data: bytes) -> tuple[SparseMap, int] | None:
    """The map of PAX sparse format 1.0, at the front of the payload: count, then pairs, each a line of digits.

    Returns the map and the bytes it takes, padded to a block; None when `data` ends within the map or its padding.

    Raises: MalformedInput: a line is not a number, or there are more than 2**20 pairs.
    """
    numbers: list[int] = []
    at, wanted = 0, 1
    while len(numbers) < wanted:
        end = data.find(b"\n", at, at + 24)
        if end < 0:
            if len(data) - at >= 24:
                raise MalformedInput("broken sparse map")
            return None
        numbers.append(_number(data[at:end]))
        at = end + 1
        if len(numbers) == 1:
            if numbers[0] > _MAX_SPARSE_PAIRS:
                raise MalformedInput(f"sparse map of {numbers[0]} stretches")
            wanted = 1 + 2 * numbers[0]
    taken = -(-at // BLOCK) * BLOCK
    return (_pairs(numbers[1:]), taken) if taken <= len(data) else None


def parse_gnu_sparse(data: bytes, at: int) -> tuple[SparseMap, int, int] | None:
    """The map of the old GNU 'S' header at `at`: (map, real size, bytes of extension blocks behind the header).

    None when more bytes are needed.

    Raises: MalformedInput: a number is not one.
    """
    block = data[at : at + BLOCK]
    pairs = _gnu_pairs(block, _GNU_PAIRS_AT, _GNU_PAIRS)
    real_size = _field(block[_GNU_REAL_SIZE_AT : _GNU_REAL_SIZE_AT + 12])
    more, start = block[_GNU_MORE_AT], at + BLOCK
    while more:
        extension = data[start : start + BLOCK]
        if len(extension) < BLOCK:
            return None
        pairs += _gnu_pairs(extension, 0, _GNU_EXTENSION_PAIRS)
        if len(pairs) > _MAX_SPARSE_PAIRS:
            raise MalformedInput("sparse map is too long")
        more = extension[_GNU_EXTENSION_MORE_AT]
        start += BLOCK
    return _pairs([number for pair in pairs for number in pair]), real_size, start - at - BLOCK


def _gnu_pairs(block: bytes, at: int, count: int) -> SparseMap:
    pairs = []
    for start in range(at, at + 24 * count, 24):
        if not block[start]:
            break
        pairs.append((_field(block[start : start + 12]), _field(block[start + 12 : start + 24])))
    return pairs


def _pairs(numbers: list[int]) -> SparseMap:
    if len(numbers) % 2:
        raise MalformedInput("sparse map has an odd number of values")
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    end = 0
    for offset, length in pairs:
        if offset < end:
            raise MalformedInput("sparse map is not in ascending order")
        end = offset + length
    return pairs


def _field(text: bytes) -> int:
    """A 12-byte number: octal, or base 256 when the top bit is set."""
    if text[0] & 0x80:
        value = int.from_bytes(text, "big") & ((1 << 95) - 1)
    else:
        digits = text.strip(b" \0")
        if digits.strip(b"01234567"):
            raise MalformedInput("broken number in a sparse header")
        value = int(digits or b"0", 8)
    if value >= 1 << 62:
        raise MalformedInput("number in a sparse header is out of range")
    return value


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19 or int(text) >= 1 << 62:
        raise MalformedInput(f"not a number in a PAX record: {text[:40]!r}")
    return int(text)


def _seconds(text: bytes) -> tuple[int, int]:
    """A decimal time, maybe negative, as (seconds rounded down, nanoseconds)."""
    whole, _, fraction = text.partition(b".")
    negative = whole.startswith(b"-")
    digits = whole.lstrip(b"+-") if len(whole) - len(whole.lstrip(b"+-")) <= 1 else b"x"
    if not (digits + fraction).isdigit() or len(digits) > 18:
        raise MalformedInput(f"not a time in a PAX record: {text[:40]!r}")
    seconds, nsec = int(digits or b"0"), int(fraction[:9].ljust(9, b"0") or b"0")
    if not negative:
        return seconds, nsec
    return (-seconds - 1, 10**9 - nsec) if nsec else (-seconds, 0)
