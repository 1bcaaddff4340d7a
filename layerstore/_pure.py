"""The reference kernels: cut points, BLAKE3 of chunks, and the tar header scan, in Python.

Twin of `layerstore._native` (native/module.c): the same signatures, the same results and the same
exceptions with the same text, so that either can be used and one can be tested against the other.
The documented contract of every function stands in `layerstore.kernels`, the only importer.

    rolling hash   H(p) = sum over k = 0..31 of GEAR[data[p - 1 - k]] << k   (mod 2**32)

A window of 32 bytes, so every H(p) is independent of where a chunk starts. Here it is computed for a
whole slab at once by doubling: a window of 2n bytes is a window of n bytes plus the window before
it, shifted by n bits; five passes give 32.

Sources: FastCDC (Xia et al., USENIX ATC 2016) for the two-level cut rule; the `blake3` package; POSIX
pax "ustar Interchange Format" and GNU tar's `src/tar.h` for headers.
"""

from __future__ import annotations

import operator
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from blake3 import blake3 as _blake3

from layerstore.errors import Unsupported

if TYPE_CHECKING:
    from typing import NoReturn

    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

__all__ = [
    "ABI",
    "GEAR",
    "blake3",
    "cut",
    "cut_hash",
    "gzip_join",
    "gzip_split",
    "hash_many",
    "simd",
    "tar_scan",
]

ABI: Final = 2

_GEAR = np.array(
    [
        int.from_bytes(_blake3(b"layerstore gear 1" + bytes([i])).digest()[:4], "little")
        for i in range(256)
    ],
    dtype=np.uint32,
)
GEAR: Final[tuple[int, ...]] = tuple(int(word) for word in _GEAR)

_WINDOW = 32
_MIN_LIMIT = 64
_MAX_LIMIT = 1 << 20
_SLAB = 1 << 18  # positions hashed at once: the u32 temporaries stay in the L2 cache
_HOLE = bytes(32)

_BLOCK = 512
_MAX_ROWS = 65_536
_MAX_OFFSET = 1 << 62
_NEED_DATA, _END, _BAD_CHECKSUM, _BAD_SIZE, _SPECIAL, _MORE = range(6)
_V7, _USTAR, _GNU = range(3)
_ROW = struct.Struct("<QQqQQIIIHHHBBI")
_UNPARSED = 1
_SPECIAL_KEYS = (b"size=", b"GNU.sparse", b"hdrcharset")


_NO_GZIP = (
    "regenerating gzip needs the native kernels: install a compiler (Debian: gcc, python3-dev) and "
    "reinstall layerstore, or use a wheel that has them"
)


class _Rule(NamedTuple):
    """Checked cut parameters; `strict` and `loose` are exclusive upper bounds of the hash."""

    min_size: int
    normal_size: int
    max_size: int
    strict: int
    loose: int


def gzip_split(*_: object) -> NoReturn:
    """Needs the native kernels: modelling encoders byte by byte would take hours here."""
    raise Unsupported(_NO_GZIP)


def gzip_join(*_: object) -> NoReturn:
    """Needs the native kernels, as `gzip_split`."""
    raise Unsupported(_NO_GZIP)


def simd() -> str:
    """The instruction set in use; here always NumPy's own choice."""
    return "numpy"


def cut_hash(
    data: ReadableBuffer,
    spans: ReadableBuffer,
    min_size: int,
    normal_size: int,
    max_size: int,
    strict_bits: int,
    loose_bits: int,
    last_is_open: bool,
) -> tuple[bytes, bytes, bytes]:
    """See `layerstore.kernels.cut_hash`."""
    octets = _octets(data)
    pairs_view = _octets(spans)
    rule = _rule(min_size, normal_size, max_size, strict_bits, loose_bits)
    is_open = bool(last_is_open)
    pairs = _pairs(pairs_view, len(octets))
    view = octets.data
    counts: list[int] = []
    lengths: list[int] = []
    ids: list[bytes] = []
    for number, (offset, length) in enumerate(pairs, 1):
        found = _cut_span(octets[offset : offset + length], rule, is_open and number == len(pairs))
        counts.append(len(found))
        lengths += found
        for size in found:
            hole = not octets[offset : offset + size].any()
            ids.append(_HOLE if hole else _blake3(view[offset : offset + size]).digest())
            offset += size
    return _u32(counts), _u32(lengths), b"".join(ids)


def cut(
    data: ReadableBuffer,
    min_size: int,
    normal_size: int,
    max_size: int,
    strict_bits: int,
    loose_bits: int,
) -> bytes:
    """See `layerstore.kernels.cut`."""
    octets = _octets(data)
    rule = _rule(min_size, normal_size, max_size, strict_bits, loose_bits)
    return _u32(_cut_span(octets, rule, is_open=False))


def hash_many(data: ReadableBuffer, spans: ReadableBuffer) -> bytes:
    """See `layerstore.kernels.hash_many`."""
    octets = _octets(data)
    pairs = _pairs(_octets(spans), len(octets))
    view = octets.data
    return b"".join(_blake3(view[at : at + length]).digest() for at, length in pairs)


def blake3(data: ReadableBuffer) -> bytes:
    """See `layerstore.kernels.blake3`."""
    return _blake3(_octets(data).data).digest()


def tar_scan(data: ReadableBuffer, offset: int) -> tuple[bytes, int, int]:
    """See `layerstore.kernels.tar_scan`."""
    octets = _octets(data)
    at = operator.index(offset)
    if not 0 <= at <= _MAX_OFFSET:
        raise ValueError("offset must be between 0 and 2**62")
    view = octets.data
    rows: list[bytes] = []
    while True:
        if at + _BLOCK > len(view):
            stop = _NEED_DATA
        elif len(rows) == _MAX_ROWS:
            stop = _MORE
        else:
            found = _scan_header(view, at)
            if not isinstance(found, int):
                row, at = found
                rows.append(row)
                continue
            stop = found
        return b"".join(rows), at, stop


def _cut_span(octets: NDArray[np.uint8], rule: _Rule, is_open: bool) -> list[int]:
    """Lengths of the chunks of one span; of an open one only those that more bytes cannot change."""
    end = len(octets)
    if end <= rule.min_size:
        return [end] if end and not is_open else []
    loose, strict = _candidates(octets, rule)
    lengths: list[int] = []
    start = 0
    while end - start > rule.min_size:
        last = min(start + rule.max_size, end)
        at = _first(strict, start + rule.min_size, min(start + rule.normal_size, last + 1))
        if at is None:
            at = _first(loose, start + rule.normal_size, last + 1)
        if at is None:
            if is_open and last < start + rule.max_size:
                return lengths
            at = last
        lengths.append(at - start)
        start = at
    if end > start and not is_open:
        lengths.append(end - start)
    return lengths


def _candidates(
    octets: NDArray[np.uint8], rule: _Rule
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Every position from min_size to the end whose hash passes the loose, and the strict, test."""
    loose: list[NDArray[np.intp]] = []
    strict: list[NDArray[np.intp]] = []
    for low in range(rule.min_size, len(octets) + 1, _SLAB):
        high = min(low + _SLAB, len(octets) + 1)
        hashes = _GEAR[octets[low - _WINDOW : high - 1]]
        for width in (1, 2, 4, 8, 16):
            hashes[width:] += hashes[:-width] << np.uint32(width)
        hashes = hashes[_WINDOW - 1 :]
        near = np.flatnonzero(hashes < rule.loose)
        loose.append(near + low)
        strict.append(near[hashes[near] < rule.strict] + low)
    return np.concatenate(loose), np.concatenate(strict)


def _first(positions: NDArray[np.intp], low: int, high: int) -> int | None:
    """The first of the sorted positions in [low, high)."""
    number = int(np.searchsorted(positions, low))
    if number < len(positions) and positions[number] < high:
        return int(positions[number])
    return None


def _scan_header(view: memoryview, at: int) -> tuple[bytes, int] | int:
    """The row of the header at `at` and where the next one starts, or the reason to stop."""
    header = bytes(view[at : at + _BLOCK])
    if not any(header):
        return _END
    if not _checksum_matches(header):
        return _BAD_CHECKSUM
    size = _number(header[124:136], -1, _MAX_OFFSET)
    if size is None or size < 0:
        return _BAD_SIZE
    kind = header[156:157]
    if kind not in b"\x0001234567xLK":
        return _SPECIAL
    if kind in b"123456":
        size = 0
    after = at + _BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK
    if kind in b"xLK":
        if after > len(view):
            return _NEED_DATA
        if kind == b"x":
            body = bytes(view[at + _BLOCK : at + _BLOCK + size])
            if any(key in body for key in _SPECIAL_KEYS):
                return _SPECIAL
    return _encode_row(header, at, size), after


def _encode_row(header: bytes, at: int, size: int) -> bytes:
    if header[257:263] == b"ustar\x00":
        form = _USTAR
    elif header[257:265] == b"ustar  \x00":
        form = _GNU
    else:
        form = _V7
    mode = _number(header[100:108], 0, 0xFFFF_FFFF)
    uid = _number(header[108:116], 0, (1 << 64) - 1)
    gid = _number(header[116:124], 0, (1 << 64) - 1)
    mtime = _number(header[136:148], -(1 << 63), (1 << 63) - 1)
    # A v7 header ends before the device fields; what stands there means nothing.
    major = 0 if form == _V7 else _number(header[329:337], 0, 0xFFFF_FFFF)
    minor = 0 if form == _V7 else _number(header[337:345], 0, 0xFFFF_FFFF)
    unparsed = None in (mode, uid, gid, mtime, major, minor)
    return _ROW.pack(
        at,
        size,
        mtime or 0,
        uid or 0,
        gid or 0,
        mode or 0,
        major or 0,
        minor or 0,
        _text_length(header[0:100]),
        _text_length(header[345:500]) if form == _USTAR else 0,
        _text_length(header[157:257]),
        header[156],
        form,
        _UNPARSED if unparsed else 0,
    )


def _checksum_matches(header: bytes) -> bool:
    want = None if header[148] & 0x80 else _number(header[148:156], 0, 1 << 62)
    if want is None:
        return False
    octets = np.frombuffer(header, np.uint8)
    blank = 8 * 0x20 - int(octets[148:156].sum())
    signed_blank = 8 * 0x20 - int(octets[148:156].view(np.int8).sum())
    return want in (int(octets.sum()) + blank, int(octets.view(np.int8).sum()) + signed_blank)


def _number(field: bytes, low: int, high: int) -> int | None:
    """A numeric header field, octal or GNU base-256; None if malformed or outside [low, high]."""
    if field[0] & 0x80:
        # Two's complement without the marker bit, so bit 6 of the first byte is the sign.
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        value -= (value >> (bits - 1)) << bits
    else:
        digits = field.lstrip(b" ").split(b" ")[0].split(b"\x00")[0]
        if digits.strip(b"01234567"):
            return None
        value = int(digits or b"0", 8)
    return value if low <= value <= high else None


def _text_length(field: bytes) -> int:
    end = field.find(b"\x00")
    return len(field) if end < 0 else end


def _rule(
    min_size: int, normal_size: int, max_size: int, strict_bits: int, loose_bits: int
) -> _Rule:
    low, normal, high = map(operator.index, (min_size, normal_size, max_size))
    strict, loose = map(operator.index, (strict_bits, loose_bits))
    if not _MIN_LIMIT <= low <= normal <= high <= _MAX_LIMIT:
        raise ValueError("sizes must satisfy 64 <= min_size <= normal_size <= max_size <= 2**20")
    if not 1 <= loose <= strict <= 31:
        raise ValueError("bits must satisfy 1 <= loose_bits <= strict_bits <= 31")
    return _Rule(low, normal, high, 1 << (32 - strict), 1 << (32 - loose))


def _octets(data: ReadableBuffer) -> NDArray[np.uint8]:
    try:
        view = memoryview(data)
    except TypeError:
        kind = type(data).__name__
        raise TypeError(f"a bytes-like object is required, not '{kind}'") from None
    if not view.c_contiguous:
        raise ValueError("the buffer must be contiguous")
    return np.frombuffer(view, np.uint8)


def _pairs(octets: NDArray[np.uint8], size: int) -> list[tuple[int, int]]:
    if len(octets) % 16:
        raise ValueError("spans must be pairs of u64: its size must be a multiple of 16")
    words = octets.view("<u8").reshape(-1, 2).tolist()
    for number, (offset, length) in enumerate(words):
        if offset > size or length > size - offset:
            raise ValueError(f"span {number} is not inside the data")
    return [(offset, length) for offset, length in words]


def _u32(numbers: list[int]) -> bytes:
    return np.array(numbers, dtype="<u4").tobytes()
