from __future__ import annotations

import numpy as np
import pytest

from layerstore.formats.layertar import entries_of
from layerstore.tree import EXTENT, ROW, Kind, concat_entries, pack_xattrs, unpack_xattrs
from tests.support.layers import split
from tests.support.tars import DIALECTS


def test_the_columns_are_those_of_the_format() -> None:
    names = "kind mode uid gid mtime nsec size stored major minor path link xattrs sparse"
    assert ROW.names == tuple(names.split())
    assert (ROW.itemsize, EXTENT.itemsize) == (59, 12)
    assert [ROW[name].str for name in ("mode", "mtime", "size", "path")] == [
        "<u2",
        "<i8",
        "<u8",
        "<u2",
    ]


def test_the_values_of_kinds_are_those_of_the_format() -> None:
    order = "OTHER FILE DIRECTORY SYMLINK HARDLINK CHARACTER BLOCK FIFO WHITEOUT OPAQUE"
    assert [kind.name for kind in Kind] == order.split()
    assert [int(kind) for kind in Kind] == list(range(10))


@pytest.mark.parametrize(
    "xattrs",
    [
        {},
        {b"user.a": b""},
        {b"user.b": b"1", b"user.a": b"\0\xff" * 300, b"security.capability": bytes(20)},
        {b"n" * 255: b"v" * 65_536},
    ],
)
def test_attributes_come_back(xattrs: dict[bytes, bytes]) -> None:
    assert unpack_xattrs(pack_xattrs(xattrs)) == xattrs


def test_equal_attributes_are_equal_bytes_in_any_order() -> None:
    assert pack_xattrs({b"a": b"1", b"b": b"2"}) == pack_xattrs({b"b": b"2", b"a": b"1"})
    assert pack_xattrs({b"ab": b"c"}) == b"\2\0\1\0\0\0abc"


def test_joined_parts_are_the_entries_of_all_in_order() -> None:
    parts = [entries_of(split([tar]).members) for tar in DIALECTS.values()]
    joined = concat_entries(parts)
    assert list(joined) == [entry for part in parts for entry in part]
    assert len(joined) == sum(map(len, parts))
    assert len(concat_entries([])) == 0


def test_heaps_are_used_to_their_last_byte() -> None:
    joined = concat_entries([entries_of(split([tar]).members) for tar in DIALECTS.values()])
    for heap, *columns in (
        (joined.paths, "path"),
        (joined.links, "link"),
        (joined.extras, "xattrs", "sparse"),
    ):
        assert sum(int(joined.rows[column].sum(dtype=np.uint64)) for column in columns) == len(heap)
