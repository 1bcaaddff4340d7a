"""Decompression of blobs: which compression it is, and a decoder that gives plain bytes in bounded memory.

    gzip   1F 8B 08      members one after another (RFC 1952), then perhaps zeros
    zstd   28 B5 2F FD   frames, and skippable frames 5x 2A 4D 18 (RFC 8878), in any order
    xz     FD "7zXZ" 00  streams, and padding of 4 n zeros (The .xz File Format 1.1)
    bzip2  "BZh1".."9"   streams

A blob is complete or refused: a truncated end, a bad checksum or bytes behind the end are MalformedInput with the offset
in the compressed stream. Media types lie; readers of blobs sniff (containerd does too) and use the type as a fallback.

Memory: a decoder holds one input block (256 KiB), what `read` returns, and the algorithm's window: 32 KiB for gzip,
at most 128 MiB for zstd and 256 MiB for xz, where a frame that wants more is refused. How well the input compresses
makes no difference. All decoders work without the GIL.
"""

from __future__ import annotations

import abc
import bz2
import enum
import lzma
import re
import zlib
from typing import IO, TYPE_CHECKING, ClassVar, Protocol, assert_never, cast

import zstandard
from isal import igzip_lib

from layerstore.errors import MalformedInput, Unsupported
from layerstore.formats import oci
from layerstore.formats.zstdframes import FrameWalk, is_frame

if TYPE_CHECKING:
    from layerstore.digest import Readable

__all__ = ["SNIFF_SIZE", "Compression", "Decoder", "compression_of", "open_decoder", "sniff"]

SNIFF_SIZE = 10  # bytes that `sniff` looks at

_BLOCK = 256 << 10  # compressed bytes read at a time
_FIRST_SLICE = 8 << 10  # a stream of tiny members copies at most this much for each of them
_MAX_OUTPUT = (
    1 << 20
)  # larger results cost isal 20 % (measured): malloc then maps fresh pages each time
_MAX_GZIP_HEADER = 256 << 10  # RFC 1952 bounds neither name nor comment
_ZSTD_WINDOW = 128 << 20  # zstd's own limit without --long=28 and more
_XZ_MEMORY = 256 << 20  # `xz -9` needs 65 MiB

_FHCRC, _FEXTRA, _FNAME, _FCOMMENT, _RESERVED = 2, 4, 8, 16, 0xE0
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")


class Compression(enum.Enum):
    """How a blob is compressed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"
    XZ = "xz"
    BZIP2 = "bzip2"


class Decoder(Protocol):
    """A stream of plain bytes; after an error it is of no more use. Thread safety: one thread at a time."""

    @property
    def consumed(self) -> int:
        """Compressed bytes read from the source so far; at the end, the size of the blob."""
        ...

    @property
    def produced(self) -> int:
        """Plain bytes given so far."""
        ...

    def read(self, size: int, /) -> bytes:
        """Give 1 to `size` bytes, which may be fewer at any time, or none at the end.

        Raises: MalformedInput: with the offset in the compressed stream, as exactly as it is known.
        """
        ...


def sniff(head: bytes) -> Compression:
    """Tell the compression from the first `SNIFF_SIZE` bytes of a blob (fewer only if it is shorter)."""
    if head.startswith(b"\x1f\x8b\x08"):
        return Compression.GZIP
    if head.startswith(b"\xfd7zXZ\0"):
        return Compression.XZ
    if _BZIP2.match(head):
        return Compression.BZIP2
    if is_frame(head):
        return Compression.ZSTD
    return Compression.NONE


def compression_of(media_type: str) -> Compression | None:
    """What a layer's media type claims; None when it says nothing, then sniff.

    Raises: Unsupported: the layer is encrypted.
    """
    if media_type.endswith("+encrypted"):
        raise Unsupported(f"{media_type}: the layer is encrypted; decrypt the image first")
    if not oci.is_layer_type(media_type):
        return None
    if media_type.endswith((".tar+gzip", ".tar.gzip")):
        return Compression.GZIP
    if media_type.endswith((".tar+zstd", ".tar.zstd")):
        return Compression.ZSTD
    return Compression.NONE if media_type.endswith(".tar") else None


def open_decoder(source: Readable, compression: Compression, name: str = "") -> Decoder:
    """Decompress a stream; `name` is what errors call it. The source stays the caller's to close."""
    match compression:
        case Compression.NONE:
            return _Plain(source, name)
        case Compression.GZIP:
            return _Gzip(source, name)
        case Compression.ZSTD:
            return _Zstd(source, name)
        case Compression.XZ:
            return _Xz(source, name)
        case Compression.BZIP2:
            return _Bzip2(source, name)
        case _:
            assert_never(compression)


class _Counting:
    """What all decoders share: where they read, and the two counters."""

    def __init__(self, source: Readable, name: str) -> None:
        self._source, self._name = source, name
        self.consumed = 0
        self.produced = 0

    def _more(self, size: int) -> bytes:
        data = self._source.read(size)
        self.consumed += len(data)
        return data

    def _bad(self, problem: str, offset: int | None = None) -> MalformedInput:
        return MalformedInput(
            problem, source=self._name, offset=self.consumed if offset is None else offset
        )


class _Plain(_Counting):
    def read(self, size: int, /) -> bytes:
        data = self._more(size)
        self.produced += len(data)
        return data


class _Inflater(Protocol):
    """The decompressors of isal, lzma and bz2 look alike."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes | memoryview, /, max_length: int = -1) -> bytes: ...


class _Members(_Counting, abc.ABC):
    """A format of independent members in a row. A subclass says where one begins and what may stand between them.

    Input is handed over in slices that begin small in each member and grow: what lies behind a member's end is copied
    for every member, which a blob of many tiny ones must not turn into quadratic work.
    """

    _KIND = ""
    _MAGIC = b""
    _ERRORS: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self, source: Readable, name: str) -> None:
        super().__init__(source, name)
        self._block = b""
        self._at = 0
        self._slice = _FIRST_SLICE
        self._member: _Inflater | None = None
        self._members = 0

    def read(self, size: int, /) -> bytes:
        if size < 1:
            return b""
        while True:
            member = self._member
            if member is None:
                member = self._member = self._next()
                if member is None:
                    return b""
                self._slice = _FIRST_SLICE
                self._members += 1
            data = self._take() if member.needs_input else b""
            try:
                out = member.decompress(data, min(size, _MAX_OUTPUT))
            except self._ERRORS as error:
                raise self._bad(f"broken {self._KIND} data: {error}", self._position()) from None
            if member.eof:
                self._at -= len(member.unused_data)
                self._member = None
            if out:
                self.produced += len(out)
                return out

    @abc.abstractmethod
    def _begin(self) -> _Inflater:
        """Begin a member at the current position; its magic was seen."""

    @abc.abstractmethod
    def _may_pad(self, zeros: int, *, at_end: bool) -> bool:
        """Whether zeros may stand behind a member."""

    def _next(self) -> _Inflater | None:
        zeros = self._skip_zeros() if self._members else 0
        more = self._fill()
        if not more and not self._members:
            raise self._truncated()
        if zeros and not self._may_pad(zeros, at_end=not more):
            raise self._misplaced(self._position() - zeros)
        if not more:
            return None
        if not self._MAGIC.startswith(self._block[self._at : self._at + len(self._MAGIC)]):
            raise self._misplaced(self._position())
        return self._begin()

    def _position(self) -> int:
        return self.consumed - (len(self._block) - self._at)

    def _fill(self) -> bool:
        """Have at least one byte in the block; False at the end of the source."""
        if self._at == len(self._block):
            self._block, self._at = self._more(_BLOCK), 0
        return bool(self._block)

    def _take(self) -> memoryview:
        if not self._fill():
            raise self._truncated()
        piece = memoryview(self._block)[self._at : self._at + self._slice]
        self._at += len(piece)
        self._slice = min(2 * self._slice, _BLOCK)
        return piece

    def _truncated(self) -> MalformedInput:
        return self._bad(f"truncated {self._KIND} data")

    def _skip_zeros(self) -> int:
        """Step over zeros; returns how many there were."""
        start = self._position()
        while self._fill():
            rest = self._block[self._at : self._at + _FIRST_SLICE]
            zeros = len(rest) - len(rest.lstrip(b"\0"))
            self._at += zeros
            if zeros < len(rest):
                break
        return self._position() - start

    def _misplaced(self, offset: int) -> MalformedInput:
        return self._bad(_misplaced(self._KIND, self._members), offset)


class _Gzip(_Members):
    """Headers are read here: isal 1.9 fails on one with a header CRC that is not all in the first input."""

    _KIND = "gzip"
    _MAGIC = b"\x1f\x8b"
    _ERRORS: ClassVar[tuple[type[Exception], ...]] = (
        cast("type[Exception]", igzip_lib.IsalError),  # its stub calls the class an instance
    )

    def _may_pad(self, zeros: int, *, at_end: bool) -> bool:
        # As GNU gzip: padding up to a tape block behind all members.
        return at_end

    def _begin(self) -> _Inflater:
        window = 64
        while (size := self._header_size(window)) is None:
            if window > _MAX_GZIP_HEADER:
                raise self._bad("gzip header is too long", self._position())
            if window <= len(self._block) - self._at:
                window *= 2
            else:
                self._extend()
        self._at += size
        # Unlike its name suggests, this flag is the one that checks the trailer.
        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP_NO_HDR_VER)

    def _extend(self) -> None:
        more = self._more(_BLOCK)
        if not more:
            raise self._truncated()
        self._block = self._block[self._at :] + more
        self._at = 0

    def _header_size(self, window: int) -> int | None:
        """Bytes of the header at the current position, None when it does not end within the window."""
        head = self._block[self._at : self._at + window]
        if len(head) < 10:
            return None
        if head[2] != 8 or head[3] & _RESERVED:
            raise self._bad("not a gzip header", self._position())
        flags, at = head[3], 10
        if flags & _FEXTRA:
            at += 2 + int.from_bytes(head[at : at + 2], "little")
        for text in (_FNAME, _FCOMMENT):
            if flags & text:
                at = head.find(b"\0", at) + 1
                if not at:
                    return None
        if flags & _FHCRC:
            at += 2
        if at > len(head):
            return None
        if flags & _FHCRC and zlib.crc32(head[: at - 2]) & 0xFFFF != int.from_bytes(
            head[at - 2 : at], "little"
        ):
            raise self._bad("gzip header checksum is wrong", self._position())
        return at


class _Xz(_Members):
    _KIND = "xz"
    _MAGIC = b"\xfd7zXZ\0"
    _ERRORS: ClassVar[tuple[type[Exception], ...]] = (lzma.LZMAError,)

    def _may_pad(self, zeros: int, *, at_end: bool) -> bool:
        return zeros % 4 == 0

    def _begin(self) -> _Inflater:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


class _Bzip2(_Members):
    _KIND = "bzip2"
    _MAGIC = b"BZh"
    _ERRORS: ClassVar[tuple[type[Exception], ...]] = (OSError, ValueError)

    def _may_pad(self, zeros: int, *, at_end: bool) -> bool:
        return False

    def _begin(self) -> _Inflater:
        return bz2.BZ2Decompressor()


class _Zstd:
    """libzstd's stream reader behind a walk over the frames: the reader takes a truncated stream for a whole one."""

    def __init__(self, source: Readable, name: str) -> None:
        self._frames = _Frames(source, name)
        self.produced = 0
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._reader = decompressor.stream_reader(
            cast("IO[bytes]", self._frames),
            read_size=_BLOCK,
            read_across_frames=True,
            closefd=False,
        )

    @property
    def consumed(self) -> int:
        return self._frames.consumed

    def read(self, size: int, /) -> bytes:
        try:
            data = self._reader.read(min(size, _MAX_OUTPUT)) if size > 0 else b""
        except zstandard.ZstdError as error:
            raise self._frames.blame(error) from None
        self.produced += len(data)
        return data


class _Frames(_Counting):
    """Passes compressed bytes through, and sees to it that frames begin and end where they must."""

    def __init__(self, source: Readable, name: str) -> None:
        super().__init__(source, name)
        self._walk = FrameWalk()

    def read(self, size: int, /) -> bytes:
        """Give the source's bytes; raises MalformedInput when a frame does not begin or end where it must."""
        start = self.consumed
        data = self._more(size)
        if not data and not (start and self._walk.is_between):
            raise self._bad("truncated zstd data")
        if (wrong := self._walk.step(data).wrong) is not None:
            raise self._bad(_misplaced("zstd", self._walk.frames), start + wrong)
        return data

    def blame(self, error: Exception) -> MalformedInput:
        """The error for data that libzstd refuses; it may see a wrong magic before all of it is read."""
        if self._walk.magic_seen:
            wrong = self.consumed - self._walk.magic_seen
            return self._bad(_misplaced("zstd", self._walk.frames), wrong)
        return self._bad(f"broken zstd data: {error}")


def _misplaced(kind: str, before: int) -> str:
    return f"bytes behind the end of the {kind} data" if before else f"not {kind} data"
