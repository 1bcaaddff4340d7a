"""The one door to the kernels: the C extension, or its Python twin of identical results.

    LAYERSTORE_KERNELS   auto (default)   native if it loads and has our ABI, else pure
                         native           native, or `Unsupported`
                         pure             the reference in `layerstore._pure`

The variable is read once, when this module is first imported; `NAME` says what was chosen.

All functions are pure: buffers in, bytes out, no I/O and no state, so they may be called from any
number of threads. The native ones release the interpreter lock for the whole computation; the
caller must not change the data meanwhile (the results would be meaningless, nothing worse). Any
C-contiguous buffer is accepted and let go before the call returns. Integers in results and in
`spans` are little endian on every machine: read them with `numpy.frombuffer(b, "<u4")` or `struct`.

What needs the native kernels raises `Unsupported` in the pure ones; it says so.
Bad arguments are `ValueError`, objects without a buffer `TypeError`; both kernels use the same text.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Final, Protocol, cast

from layerstore.errors import InvalidArgument, Unsupported

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "ABI",
    "GEAR",
    "NAME",
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
"""The interface described here; a compiled extension with another number is stale and not used."""


class Kernels(Protocol):
    """What `_native` and `_pure` both are, seen as modules."""

    ABI: int
    GEAR: tuple[int, ...]

    def simd(self) -> str: ...
    def cut_hash(
        self,
        data: ReadableBuffer,
        spans: ReadableBuffer,
        min_size: int,
        normal_size: int,
        max_size: int,
        strict_bits: int,
        loose_bits: int,
        last_is_open: bool,
        /,
    ) -> tuple[bytes, bytes, bytes]: ...
    def cut(
        self,
        data: ReadableBuffer,
        min_size: int,
        normal_size: int,
        max_size: int,
        strict_bits: int,
        loose_bits: int,
        /,
    ) -> bytes: ...
    def hash_many(self, data: ReadableBuffer, spans: ReadableBuffer, /) -> bytes: ...
    def blake3(self, data: ReadableBuffer, /) -> bytes: ...
    def tar_scan(self, data: ReadableBuffer, offset: int, /) -> tuple[bytes, int, int]: ...
    def gzip_split(
        self,
        data: ReadableBuffer,
        bit: int,
        is_last: bool,
        state: int,
        history: ReadableBuffer,
        position: int,
        wanted: int,
        family: int,
        level: int,
        block: int,
        header: ReadableBuffer,
        /,
    ) -> tuple[int, int, int, int, bytes, int, bytes]: ...
    def gzip_join(
        self,
        recipe: ReadableBuffer,
        text: ReadableBuffer,
        start: int,
        end: int,
        position: int,
        family: int,
        level: int,
        block: int,
        header: ReadableBuffer,
        first_bit: int,
        bit_size: int,
        /,
    ) -> bytes: ...


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
    """Cut every span into content-defined chunks and name each chunk.

    From a chunk start `s` in a span that ends at `e`: if `e - s <= min_size` the rest is one chunk.
    Otherwise the cut is at the first `p >= s + min_size` whose rolling hash has its top `strict_bits`
    (while `p - s < normal_size`) or `loose_bits` (after that) all zero, at the latest at
    `s + max_size` or `e`. The hash is

        H(p) = sum over k = 0..31 of GEAR[data[p - 1 - k]] << k   (mod 2**32)

    so it looks only at bytes of its own chunk. A zero-length span has no chunk.

    Args:
        data: the bytes that the spans lie in.
        spans: pairs of u64 (offset, length); they may overlap and stand in any order.
        min_size: bytes; 64 <= min_size <= normal_size <= max_size <= 2**20.
        normal_size: bytes of a chunk from which the looser test applies.
        max_size: bytes; no chunk is longer.
        strict_bits: 1 <= loose_bits <= strict_bits <= 31; a test with n bits passes once in 2**n.
        loose_bits: see strict_bits.
        last_is_open: more bytes of the last span follow that are not in `data` yet. Of that span
            only the chunks that no further byte could change are returned; their lengths add up to
            less than the span (or to all of it), and the caller carries the rest over.

    Returns:
        u32 number of chunks per span; u32 length per chunk, in order; 32-byte chunk ID per chunk:
        its BLAKE3-256, or 32 zero bytes if the chunk is all zero bytes (a hole, not hashed).
    """
    return _chosen.cut_hash(
        data, spans, min_size, normal_size, max_size, strict_bits, loose_bits, last_is_open
    )


def cut(
    data: ReadableBuffer,
    min_size: int,
    normal_size: int,
    max_size: int,
    strict_bits: int,
    loose_bits: int,
) -> bytes:
    """The u32 chunk lengths of one closed span that is all of `data`; the rule is `cut_hash`'s."""
    return _chosen.cut(data, min_size, normal_size, max_size, strict_bits, loose_bits)


def hash_many(data: ReadableBuffer, spans: ReadableBuffer) -> bytes:
    """The 32-byte BLAKE3 of every span, in order; `spans` as in `cut_hash`.

    No rule for zeros: a span of zero bytes gets the BLAKE3 of those bytes.
    """
    return _chosen.hash_many(data, spans)


def blake3(data: ReadableBuffer) -> bytes:
    """The 32-byte BLAKE3 of `data` (hash mode)."""
    return _chosen.blake3(data)


def tar_scan(data: ReadableBuffer, offset: int) -> tuple[bytes, int, int]:
    """Walk the tar headers of `data` from byte `offset`, where the caller knows one may start.

    Returns `(rows, next, stop)`. Each row describes one header in 64 bytes, `<QQqQQIIIHHHBBI`:

        header_offset u64    size u64 (payload bytes that follow)    mtime i64 (s)
        uid u64   gid u64    mode u32   devmajor u32   devminor u32
        name_len u16   prefix_len u16   link_len u16                 bytes before the first NUL
        typeflag u8 (NUL kept as 0)   format u8 (0 v7, 1 ustar, 2 gnu)
        flags u32            bit 0: a number other than size was malformed and is given as 0

    `size` is 0 for the header-only types '1' to '6', as in Go's archive/tar; prefix_len is 0 unless
    the format is ustar, the device numbers are 0 in a v7 header. Numbers are octal or GNU base-256.
    A checksum may be the sum of unsigned or of signed bytes.

    The scan stops in front of a header it does not consume; `next` is its offset and `stop` is

        0 NEED_DATA     the header, or the body of an 'L', 'K' or 'x', is not all in `data`; `next`
                        may then be past the end, after a payload
        1 END           a block of zeros
        2 BAD_CHECKSUM
        3 BAD_SIZE      size is malformed, negative or above 2**62
        4 SPECIAL       'g', 'S' or an unknown type; an 'x' that sets size, GNU.sparse or hdrcharset
        5 MORE          65,536 rows were found; call again from `next`

    Source: POSIX pax, "ustar Interchange Format"; GNU tar, "Basic Tar Format" and "Extensions".
    """
    return _chosen.tar_scan(data, offset)


def gzip_split(
    data: ReadableBuffer,
    bit: int,
    is_last: bool,
    state: int,
    history: ReadableBuffer,
    position: int,
    wanted: int,
    family: int,
    level: int,
    block: int,
    header: ReadableBuffer,
) -> tuple[int, int, int, int, bytes, int, bytes]:
    """Split the next segment of a gzip stream into plain bytes and a recipe. Native only: else `Unsupported`.

    Args:
        data: compressed bytes.
        bit: where in `data` the segment begins.
        is_last: whether the stream ends with `data`.
        state: how the segment begins: bit 0, with a gzip header; bit 1, behind a literal. 1 at first.
        history: the plain bytes before the segment, 128 KiB or as many as there are.
        position: plain bytes of the segment's member that lie before it.
        wanted: plain bytes; the segment ends with the first deflate block behind them. At most 8 MiB.
        family: of the model, see native/deflate_model.h.
        level: of the model.
        block: bytes that the encoder compresses by themselves; 0 if all.
        header: the gzip header that members are expected to have.

    Returns:
        `(status, bit, state, position, plain, ahead, recipe)`: 0, where and how the next segment begins, the plain
        bytes, how many bytes behind them `gzip_join` needs, the recipe. Status 1: the segment does not end in `data`;
        2: no gzip, or more than 8 MiB in one deflate block; the rest is empty then.
    """
    return _chosen.gzip_split(
        data, bit, is_last, state, history, position, wanted, family, level, block, header
    )


def gzip_join(
    recipe: ReadableBuffer,
    text: ReadableBuffer,
    start: int,
    end: int,
    position: int,
    family: int,
    level: int,
    block: int,
    header: ReadableBuffer,
    first_bit: int,
    bit_size: int,
) -> bytes:
    """Join a segment of a gzip stream from its plain bytes and its recipe. Native only: else `Unsupported`.

    Args:
        recipe: what `gzip_split` gave.
        text: history, segment and what is ahead of it, exactly as long as they were then.
        start: where in `text` the segment begins.
        end: where it ends.
        position: as in `gzip_split`, before the segment.
        family: of the model.
        level: of the model.
        block: of the model.
        header: as in `gzip_split`.
        first_bit: 0 to 7: where in its first byte the segment begins; the bits below are 0.
        bit_size: bits of the segment.

    Returns:
        The bytes that the segment lies in; its last one may go on with the next segment.

    Raises: ValueError: the recipe does not belong to these bytes. Not every damage is seen: compare a digest.
    """
    return _chosen.gzip_join(
        recipe, text, start, end, position, family, level, block, header, first_bit, bit_size
    )


def simd() -> str:
    """The instruction set in use, for reports: avx512, avx2, portable or numpy."""
    return _chosen.simd()


def _load(request: str) -> tuple[str, Kernels]:
    if request not in ("auto", "native", "pure"):
        raise InvalidArgument(f"LAYERSTORE_KERNELS is {request!r}: use auto, native or pure")
    problem = ""
    if request != "pure":
        try:
            native = importlib.import_module("layerstore._native")
        except ImportError as error:
            problem = f"the native kernels do not load: {error}"
        else:
            if (found := getattr(native, "ABI", None)) == ABI:
                return "native", cast("Kernels", native)
            problem = f"the native kernels have ABI {found}, this version needs {ABI}: rebuild them"
    if request == "native":
        raise Unsupported(problem)
    from layerstore import _pure

    return "pure", cast("Kernels", _pure)


NAME: str
NAME, _chosen = _load(os.environ.get("LAYERSTORE_KERNELS", "auto"))
GEAR: Final[tuple[int, ...]] = _chosen.GEAR
