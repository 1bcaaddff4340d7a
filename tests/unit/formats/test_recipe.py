from __future__ import annotations

import struct

import numpy as np
import pytest

from layerstore.errors import CorruptStore
from layerstore.formats.layertar import entries_of
from layerstore.formats.recipe import OP, Part, decode_part, encode_part
from layerstore.tree import EXTENT, ROW, Entries
from tests.support.layers import split
from tests.support.tars import DIALECTS

NONE = Entries(np.empty(0, ROW), b"", b"", b"")


def part_of(tar: bytes) -> Part:
    extents = np.array([(5, 100), (7, 1), (0, 4096), (2**63 + 1, 2**32 - 1)], EXTENT)
    ops = np.array([(512, 1), (0, 2), (2**32 - 1, 0)], OP)
    return Part(ops, extents, entries_of(split([tar]).members))


def assert_equal(got: Part, want: Part) -> None:
    assert np.array_equal(got.ops, want.ops)
    assert np.array_equal(got.extents, want.extents)
    assert np.array_equal(got.entries.rows, want.entries.rows)
    assert list(got.entries) == list(want.entries)


@pytest.mark.parametrize("name", DIALECTS)
def test_decode_is_the_inverse_of_encode(name: str) -> None:
    part = part_of(DIALECTS[name])
    assert_equal(decode_part(encode_part(part)), part)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_tables_of_any_length_come_back(count: int) -> None:
    part = Part(np.zeros(count, OP), np.zeros(count, EXTENT), NONE)
    assert_equal(decode_part(encode_part(part)), part)


def test_encoding_leaves_its_part_alone() -> None:
    part = part_of(b"")
    before = part.extents.copy()
    encode_part(part)
    assert np.array_equal(part.extents, before)


def test_the_length_is_that_of_the_stretch_beyond_32_bits() -> None:
    assert part_of(b"").length == 512 + 2**32 - 1 + 100 + 1 + 4096 + 2**32 - 1


def test_a_part_lies_on_disk_as_docs_format_says() -> None:
    ops = np.array([(512, 2)], OP)
    extents = np.array([(0x0102, 3), (0x0101, 4)], EXTENT)
    got = encode_part(Part(ops, extents, NONE))
    header = struct.pack("<4s6I", b"LSP1", 1, 2, 0, 0, 0, 0)
    # Byte planes of (number, length): 0x102, 3 and then the difference -1, 4.
    planes = bytes([2, 255, 1, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255])
    assert got == header + bytes([0, 2, 0, 0, 2, 0, 0, 0]) + planes + bytes(
        [3, 4, 0, 0, 0, 0, 0, 0]
    )


@pytest.mark.parametrize("name", ["ustar", "pax xattrs", "empty"])
def test_every_wrong_length_is_corrupt(name: str) -> None:
    good = encode_part(part_of(DIALECTS[name]))
    for wrong in (*(good[:end] for end in range(len(good))), good + b"\0", b"LSP2" + good[4:]):
        with pytest.raises(CorruptStore):
            decode_part(wrong)


def test_counts_that_do_not_fit_are_corrupt() -> None:
    good = encode_part(part_of(DIALECTS["ustar"]))
    for at in range(4, 28, 4):
        (count,) = struct.unpack_from("<I", good, at)
        for wrong in (count + 1, 2**32 - 1):
            with pytest.raises(CorruptStore):
                decode_part(good[:at] + struct.pack("<I", wrong) + good[at + 4 :])
