from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import threading
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import pytest
import zstandard

from layerstore.errors import MalformedInput, Unsupported
from layerstore.formats import oci
from layerstore.formats.codecs import SNIFF_SIZE, Compression, compression_of, open_decoder, sniff

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = b"".join(b"%d, some text that is much alike\n" % (i * i) for i in range(20_000))


def zstd(data: bytes, **options: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(**options)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def skippable(body: bytes, number: int = 0) -> bytes:
    return struct.pack("<II", 0x184D2A50 + number, len(body)) + body


COMPRESS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.GZIP: lambda data: gzip.compress(data, 6),
    Compression.ZSTD: lambda data: zstd(data, compression_level=3, write_checksum=1),
    Compression.XZ: lambda data: lzma.compress(data, preset=0),
    Compression.BZIP2: lambda data: bz2.compress(data, 1),
}
each_codec = pytest.mark.parametrize("compression", COMPRESS, ids=lambda c: c.value)


class Trickle:
    """Gives a few bytes at a time, as a socket may."""

    def __init__(self, data: bytes, step: int) -> None:
        self._stream, self._step = io.BytesIO(data), step

    def read(self, size: int, /) -> bytes:
        return self._stream.read(min(size, self._step))


def decode(
    data: bytes, compression: Compression, size: int = 1 << 20, step: int = 1 << 20
) -> bytes:
    decoder = open_decoder(Trickle(data, step), compression, "blob")
    parts = []
    while part := decoder.read(size):
        assert len(part) <= size
        parts.append(part)
    assert decoder.read(size) == b""
    assert decoder.consumed == len(data)
    plain = b"".join(parts)
    assert decoder.produced == len(plain)
    return plain


def refused(data: bytes, compression: Compression, step: int = 1 << 20) -> MalformedInput:
    with pytest.raises(MalformedInput) as caught:
        decode(data, compression, step=step)
    assert caught.value.source == "blob"
    return caught.value


@each_codec
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_members_in_a_row_are_one_stream(compression: Compression, step: int) -> None:
    pieces = [PLAIN[:10_000], b"", PLAIN[10_000:30_000]]
    data = b"".join(map(COMPRESS[compression], pieces))
    assert decode(data, compression, step=step) == b"".join(pieces)
    assert decode(data, compression, size=999, step=step) == b"".join(pieces)


def test_no_compression_passes_through() -> None:
    assert decode(PLAIN, Compression.NONE, size=1000, step=300) == PLAIN
    assert decode(b"", Compression.NONE) == b""


@each_codec
def test_every_truncation_is_noticed(compression: Compression) -> None:
    data = COMPRESS[compression](PLAIN[:300])
    for end in range(len(data)):
        error = refused(data[:end], compression)
        assert error.offset == end, f"cut at {end}"
        assert "truncated" in error.problem, f"cut at {end}"


@each_codec
def test_a_truncated_second_member_is_noticed(compression: Compression) -> None:
    first, second = COMPRESS[compression](PLAIN[:300]), COMPRESS[compression](b"tail")
    for end in range(1, len(second)):
        assert refused(first + second[:end], compression).offset == len(first) + end, (
            f"cut at {end}"
        )


@each_codec
@pytest.mark.parametrize("step", [1, 5, 1 << 20])
def test_bytes_behind_the_end_are_refused_with_their_offset(
    compression: Compression, step: int
) -> None:
    data = COMPRESS[compression](PLAIN[:300])
    error = refused(data + b"JUNKJUNKJUNK", compression, step)
    assert error.offset == len(data)
    assert "behind the end" in error.problem


@each_codec
def test_a_flipped_byte_of_the_content_or_checksum_is_noticed(compression: Compression) -> None:
    data = COMPRESS[compression](PLAIN[:3000])
    for position in range(30, len(data)):
        if compression is Compression.XZ and position < 40:
            continue
        broken = bytearray(data)
        broken[position] ^= 0x40
        try:
            plain = decode(bytes(broken), compression)
        except MalformedInput:
            continue
        assert plain == PLAIN[:3000], f"byte {position}"  # unused bits there may be


@each_codec
def test_an_empty_stream_and_another_format_are_refused(compression: Compression) -> None:
    assert "truncated" in refused(b"", compression).problem
    refused(b"this is no compressed data at all", compression)
    refused(bytes(1000), compression)


@each_codec
def test_memory_does_not_follow_the_ratio(compression: Compression) -> None:
    data = COMPRESS[compression](bytes(64 << 20))
    decoder = open_decoder(io.BytesIO(data), compression)
    decoder.read(100)
    tracemalloc.start()
    try:
        total = 100
        while part := decoder.read(1 << 20):
            total += len(part)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 64 << 20
    assert peak < 6 << 20


@each_codec
def test_zero_bytes_wanted_are_none_and_not_the_end(compression: Compression) -> None:
    decoder = open_decoder(io.BytesIO(COMPRESS[compression](b"x")), compression)
    assert decoder.read(0) == b""
    assert decoder.read(10) == b"x"


@each_codec
def test_decoders_in_threads_do_not_disturb_each_other(compression: Compression) -> None:
    data = COMPRESS[compression](PLAIN)
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(decode(data, compression))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [PLAIN] * 4


# gzip


def gzip_member(
    plain: bytes,
    extra: bytes | None = None,
    name: bytes = b"",
    comment: bytes = b"",
    crc: int | None = None,
) -> bytes:
    """A member with any header fields; `crc` is added to the header's checksum."""
    flags = (extra is not None) * 4 | bool(name) * 8 | bool(comment) * 16 | (crc is not None) * 2
    head = b"\x1f\x8b\x08" + bytes([flags]) + b"\0\0\0\0\0\x03"
    head += struct.pack("<H", len(extra)) + extra if extra is not None else b""
    head += name + b"\0" if name else b""
    head += comment + b"\0" if comment else b""
    head += struct.pack("<H", (zlib.crc32(head) + crc) & 0xFFFF) if crc is not None else b""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = deflate.compress(plain) + deflate.flush()
    return head + body + struct.pack("<II", zlib.crc32(plain), len(plain))


@pytest.mark.parametrize("step", [1, 3, 1000, 1 << 20])
@pytest.mark.parametrize(
    "member",
    [
        gzip_member(PLAIN[:500], extra=b""),
        gzip_member(PLAIN[:500], extra=b"x" * 65535),
        gzip_member(PLAIN[:500], name=b"layer.tar", comment=b"by hand"),
        gzip_member(PLAIN[:500], name=b"n" * 100_000, extra=b"e" * 5000),
        gzip_member(PLAIN[:500], crc=0),
        gzip_member(PLAIN[:500], extra=b"e\0\0", name=b"n", comment=b"c", crc=0),
    ],
    ids=["empty extra", "long extra", "name", "long name", "crc", "all"],
)
def test_gzip_header_fields_are_skipped_wherever_the_input_is_cut(member: bytes, step: int) -> None:
    assert decode(member * 2, Compression.GZIP, step=step) == PLAIN[:500] * 2


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gzip_member(b"x", crc=1), "header checksum"),
        (b"\x1f\x8b\x08\x20" + gzip_member(b"x")[4:], "not a gzip header"),
        (b"\x1f\x8b\x07" + gzip_member(b"x")[3:], "not a gzip header"),
        (b"\x1f\x8c" + gzip_member(b"x")[2:], "not gzip data"),
        (gzip_member(b"x", name=b"n" * (1 << 20)), "too long"),
    ],
    ids=["header crc", "reserved flag", "method", "magic", "endless name"],
)
def test_bad_gzip_headers_are_refused(data: bytes, says: str) -> None:
    assert says in refused(data, Compression.GZIP).problem


def test_zeros_behind_gzip_are_padding_but_only_zeros() -> None:
    data = gzip.compress(b"x")
    for zeros in (1, 511, 100_000):
        assert decode(data + bytes(zeros), Compression.GZIP) == b"x"
        assert decode(data + bytes(zeros), Compression.GZIP, step=100) == b"x"
        assert refused(data + bytes(zeros) + data, Compression.GZIP).offset == len(data)


@pytest.mark.parametrize("trailer_byte", range(8))
def test_a_wrong_gzip_trailer_is_refused(trailer_byte: int) -> None:
    data = bytearray(gzip.compress(PLAIN))
    data[-1 - trailer_byte] ^= 1
    assert "broken gzip" in refused(bytes(data), Compression.GZIP).problem


def test_many_tiny_gzip_members_cost_linear_time() -> None:
    count = 20_000
    assert decode(gzip.compress(b"x", 1) * count, Compression.GZIP) == b"x" * count


# zstd


def test_skippable_zstd_frames_are_skipped_anywhere() -> None:
    data = skippable(b"a" * 70_000) + zstd(b"x") + skippable(b"", 15) + zstd(b"y") + skippable(b"z")
    for step in (1, 1 << 20):
        assert decode(data, Compression.ZSTD, step=step) == b"xy"
    assert decode(skippable(b"nothing else"), Compression.ZSTD) == b""


@pytest.mark.parametrize(
    "options",
    [
        {"compression_level": 1},
        {"compression_level": 19},
        {"compression_level": 3, "write_checksum": 1},
        {"compression_level": 3, "write_content_size": 0},
        {"compression_level": 3, "write_content_size": 0, "write_checksum": 1, "window_log": 10},
    ],
)
@pytest.mark.parametrize("plain", [b"", b"x", b"r" * 1_000_000, PLAIN, bytes(range(256)) * 300])
def test_every_shape_of_zstd_frame_is_walked(plain: bytes, options: dict[str, int]) -> None:
    frame = zstd(plain, **options)
    assert decode(frame * 2, Compression.ZSTD, step=64) == plain * 2
    assert "truncated" in refused(frame + frame[:-1], Compression.ZSTD).problem


def test_a_zstd_window_above_the_limit_is_refused() -> None:
    writer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    ).compressobj()
    data = writer.compress(b"x") + writer.flush()
    assert zstandard.get_frame_parameters(data).window_size == 256 << 20
    assert "broken zstd" in refused(data, Compression.ZSTD).problem


def test_a_zstd_content_checksum_is_checked() -> None:
    data = bytearray(zstd(PLAIN, compression_level=3, write_checksum=1))
    data[-1] ^= 1
    assert "broken zstd" in refused(bytes(data), Compression.ZSTD).problem


# xz, bzip2


def test_xz_padding_is_a_multiple_of_four_zeros() -> None:
    data = lzma.compress(b"x")
    assert decode(data + bytes(8) + data + bytes(4), Compression.XZ) == b"xx"
    refused(data + bytes(6), Compression.XZ)


def test_an_xz_stream_that_wants_too_much_memory_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    data = lzma.compress(b"x", filters=filters)
    assert "broken xz" in refused(data, Compression.XZ).problem


# telling them apart


@each_codec
def test_each_codec_is_sniffed_from_the_first_bytes(compression: Compression) -> None:
    assert sniff(COMPRESS[compression](PLAIN)[:SNIFF_SIZE]) is compression
    assert sniff(COMPRESS[compression](b"")[:SNIFF_SIZE]) is compression


def test_what_is_not_compressed_is_sniffed_as_such() -> None:
    for head in (b"", b"\x1f", b"\x1f\x8b", b"BZh9 is a file", b"(\xb5/", bytes(10), b"manifest.j"):
        assert sniff(head) is Compression.NONE
    assert sniff(skippable(b"", 7)) is Compression.ZSTD


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        (oci.OCI_LAYER, Compression.NONE),
        (oci.OCI_LAYER_GZIP, Compression.GZIP),
        (oci.OCI_LAYER_ZSTD, Compression.ZSTD),
        (oci.DOCKER_LAYER, Compression.NONE),
        (oci.DOCKER_LAYER_GZIP, Compression.GZIP),
        (oci.DOCKER_LAYER_ZSTD, Compression.ZSTD),
        (oci.DOCKER_FOREIGN_LAYER_GZIP, Compression.GZIP),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", Compression.ZSTD),
        ("application/vnd.oci.image.layer.v1.tar+lz4", None),
        ("application/vnd.in-toto+json", None),
        ("", None),
    ],
)
def test_media_types_claim_a_compression(media_type: str, compression: Compression | None) -> None:
    assert compression_of(media_type) is compression


def test_encrypted_layers_are_unsupported() -> None:
    with pytest.raises(Unsupported):
        compression_of("application/vnd.oci.image.layer.v1.tar+gzip+encrypted")
