"""Whatever bytes there are, as they are or as frames that were damaged, a kept blob is cut into just them."""

from __future__ import annotations

import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.formats.test_framesplit import chunks_of

frames = st.builds(
    lambda piece, times, checksum: zstandard.ZstdCompressor(write_checksum=checksum).compress(
        piece * times
    ),
    st.binary(max_size=400),
    st.integers(0, 300),
    st.booleans(),
)
skippable = st.builds(
    lambda low, body: (
        bytes([0x50 | low]) + b"\x2a\x4d\x18" + len(body).to_bytes(4, "little") + body
    ),
    st.integers(0, 15),
    st.binary(max_size=600),
)
blobs = st.lists(frames | skippable | st.binary(max_size=40), max_size=8).map(b"".join)


@given(
    blobs,
    st.lists(st.tuples(st.integers(0), st.integers(1, 255)), max_size=3),
    st.integers(0, 10),
    st.lists(st.integers(1, 5000), min_size=1, max_size=4),
)
def test_pieces_are_the_bytes_and_block_sizes_make_no_difference(
    blob: bytes, flips: list[tuple[int, int]], cut: int, steps: list[int]
) -> None:
    data = bytearray(blob[: len(blob) - cut])
    for at, flip in flips:
        if data:
            data[at % len(data)] ^= flip
    pieces = chunks_of(bytes(data), [1 << 20])
    assert b"".join(pieces) == data
    assert chunks_of(bytes(data), steps) == pieces
