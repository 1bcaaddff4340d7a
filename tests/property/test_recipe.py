"""Parts come back from their bytes, and other bytes are never mistaken for one in silence."""

from __future__ import annotations

import contextlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore.errors import CorruptStore
from layerstore.formats.recipe import OP, Part, decode_part, encode_part
from layerstore.tree import EXTENT, ROW, Entries

SETTINGS = settings(max_examples=100, deadline=None)


@st.composite
def parts(draw: st.DrawFn) -> Part:
    """Any values in any column: a part does not care whether they make sense."""
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    tables = []
    for dtype in (OP, EXTENT, ROW):
        count = draw(st.sampled_from([0, 1, 2, 7, 300]))
        tables.append(np.frombuffer(chance.bytes(count * dtype.itemsize), dtype))
    heaps = [draw(st.binary(max_size=200)) for _ in range(3)]
    return Part(tables[0], tables[1], Entries(tables[2], *heaps))


@SETTINGS
@given(part=parts())
def test_decode_is_the_inverse_of_encode(part: Part) -> None:
    data = encode_part(part)
    got = decode_part(data)
    assert got.ops.tobytes() == part.ops.tobytes()
    assert got.extents.tobytes() == part.extents.tobytes()
    assert got.entries.rows.tobytes() == part.entries.rows.tobytes()
    assert (got.entries.paths, got.entries.links, got.entries.extras) == (
        part.entries.paths,
        part.entries.links,
        part.entries.extras,
    )
    assert got.length == part.length
    assert encode_part(got) == data


@SETTINGS
@given(
    data=st.one_of(
        st.binary(max_size=300), st.binary(max_size=300).map(lambda tail: b"LSP1" + tail)
    )
)
def test_only_corrupt_store_leaves_for_other_bytes(data: bytes) -> None:
    with contextlib.suppress(CorruptStore):
        assert encode_part(decode_part(data)) == data


@SETTINGS
@given(part=parts(), at=st.integers(0, 2**20), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_changes_the_part(part: Part, at: int, bit: int) -> None:
    data = bytearray(encode_part(part))
    data[at % len(data)] ^= 1 << bit
    with contextlib.suppress(CorruptStore):
        assert encode_part(decode_part(bytes(data))) == data
