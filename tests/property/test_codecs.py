from __future__ import annotations

import bz2
import gzip
import io
import lzma
from typing import TYPE_CHECKING

import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore.errors import MalformedInput
from layerstore.formats.codecs import SNIFF_SIZE, Compression, open_decoder, sniff

if TYPE_CHECKING:
    from collections.abc import Callable

COMPRESS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.GZIP: gzip.compress,
    Compression.ZSTD: zstandard.ZstdCompressor(write_checksum=True).compress,
    Compression.XZ: lambda data: lzma.compress(data, preset=0),
    Compression.BZIP2: bz2.compress,
}

plains = st.builds(
    lambda piece, times, rest: piece * times + rest,
    st.binary(max_size=50),
    st.integers(0, 4000),
    st.binary(),
)
steps = st.sampled_from([1, 2, 13, 500, 1 << 20])


class Trickle(io.BytesIO):
    """Gives the asked steps of bytes, again and again."""

    def __init__(self, data: bytes, cuts: list[int]) -> None:
        super().__init__(data)
        self._cuts, self._turn = cuts, 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._turn += 1
        step = self._cuts[self._turn % len(self._cuts)]
        return super().read(step if size is None or size < 0 else min(size, step))


def decode(data: bytes, compression: Compression, size: int, cuts: list[int]) -> bytes:
    decoder = open_decoder(Trickle(data, cuts), compression)
    parts = []
    while part := decoder.read(size):
        assert len(part) <= size
        parts.append(part)
    assert decoder.consumed == len(data)
    return b"".join(parts)


@given(
    st.lists(plains, min_size=1, max_size=4),
    st.sampled_from(list(COMPRESS)),
    st.sampled_from([1, 10, 1000, 1 << 20]),
    st.lists(steps, min_size=1, max_size=4),
)
@settings(deadline=None)
def test_decoding_inverts_encoding_however_reads_are_cut(
    pieces: list[bytes], compression: Compression, size: int, cuts: list[int]
) -> None:
    if size == 1:
        pieces = [piece[:300] for piece in pieces]
    data = b"".join(map(COMPRESS[compression], pieces))
    assert sniff(data[:SNIFF_SIZE]) is compression
    assert decode(data, compression, size, cuts) == b"".join(pieces)


@given(plains, st.sampled_from(list(COMPRESS)), st.data())
@settings(deadline=None)
def test_damage_is_refused_or_harmless_and_never_another_error(
    plain: bytes, compression: Compression, data: st.DataObject
) -> None:
    good = COMPRESS[compression](plain)
    at = data.draw(st.integers(0, len(good)))
    drop = data.draw(st.integers(0, 8))
    damaged = good[:at] + data.draw(st.binary(max_size=8)) + good[at + drop :]
    try:
        decoded = decode(damaged, compression, 1 << 20, [1 << 20])
    except MalformedInput:
        return
    # What passes has a checksum that fits: the same bytes, or fewer or more whole members.
    assert decoded in {plain, b""} or decoded.startswith(plain)


@given(st.binary(max_size=3000), st.sampled_from(list(Compression)))
@settings(deadline=None)
def test_noise_is_refused_or_decoded_but_never_another_error(
    noise: bytes, compression: Compression
) -> None:
    offset: int | None = 0
    try:
        decode(noise, compression, 1 << 16, [700])
    except MalformedInput as error:
        offset = error.offset
    assert offset is not None
    assert 0 <= offset <= len(noise)
