from __future__ import annotations

import time

import pytest

from layerstore import kernels
from layerstore.errors import MalformedInput
from layerstore.formats.tarheader import (
    BLOCK,
    ROW_SIZE,
    Header,
    apply_pax,
    parse_gnu_sparse,
    parse_header,
    parse_pax,
    parse_sparse_1_0,
    parse_sparse_pairs,
    rows_of,
)
from tests.support.tars import END, entry, header, old_sparse, pax

PLAIN = Header(0, 5, 7, 1, 2, 0o644, 0, 0, 1, 0, 0, ord("0"), 1, 0)


def body_of(records: list[tuple[bytes, bytes]]) -> bytes:
    block = pax(records)
    return block[BLOCK:].rstrip(b"\0")


def test_a_row_is_64_bytes() -> None:
    assert ROW_SIZE == 64


def test_rows_have_the_columns_of_the_header() -> None:
    tar = entry(b"name", b"12345", mode=0o4755, uid=7, gid=8, mtime=9) + END
    packed, _, _ = kernels.tar_scan(tar, 0)
    (row,) = rows_of(packed)
    assert row == Header(0, 5, 9, 7, 8, 0o4755, 0, 0, 4, 0, 0, ord("0"), 1, 0)


@pytest.mark.parametrize("typeflag", b"0g5SxLDVZ\x80\xff")
def test_a_header_of_any_type_gives_its_columns(typeflag: int) -> None:
    block = header(b"name", 1234, bytes([typeflag]), uid=5)
    row = parse_header(block, typeflag)
    assert row is not None
    assert (row.size, row.uid, row.typeflag, row.name_length) == (1234, 5, typeflag, 4)


def test_a_size_that_is_no_number_gives_no_row() -> None:
    assert parse_header(header(patch=[(124, b"12x45678901\0")]), ord("g")) is None
    assert parse_header(header(patch=[(124, b"\xff" * 12)]), ord("g")) is None


@pytest.mark.parametrize(
    "records",
    [
        [],
        [(b"path", b"a")],
        [(b"k" * size, b"v") for size in (1, 3, 4, 5, 92, 93, 94, 95, 96, 991, 992, 993)],
        [(b"k", b"new\nline = and equals\n"), (b"j", b""), (b"l", b"\0\xff")],
    ],
)
def test_pax_records_are_read_whatever_their_bytes(records: list[tuple[bytes, bytes]]) -> None:
    assert parse_pax(body_of(records)) == dict(records)


def test_a_later_pax_record_replaces_an_earlier_one() -> None:
    assert parse_pax(body_of([(b"path", b"a"), (b"path", b"b")])) == {b"path": b"b"}


def test_zeros_may_follow_the_last_pax_record() -> None:
    assert parse_pax(b"6 a=b\n" + bytes(30)) == {b"a": b"b"}


@pytest.mark.parametrize(
    "body",
    [
        b"5 a=b\n",
        b"7 a=b\n",
        b"99 a=b\n",
        b"0 a=b\n",
        b"-6 a=b\n",
        b"+6 a=b\n",
        b"6_a=b\n",
        b"6a=b\n\n",
        b" 6 a=b\n",
        b"6 a=bc",
        b"6 abc\n",
        b"3 \n",
        b"a=b\n",
        b"6 a=b\n\0x",
        b"6 a=b\n6 a=b",
        b"\xb2 =\n",
        b"1" * 30 + b" a=b\n",
    ],
)
def test_broken_pax_records_are_refused(body: bytes) -> None:
    with pytest.raises(MalformedInput, match="PAX record"):
        parse_pax(body)


@pytest.mark.parametrize("body", [b"abc\n", b"6_a=b\n", b"=\n", b"1" * 19 + b"=\n"])
def test_bug_a_record_without_a_space_was_read_forever(body: bytes) -> None:
    with pytest.raises(MalformedInput, match="PAX record"):
        parse_pax(body)


def test_pairs_of_sparse_format_0_0_are_kept_in_order() -> None:
    records = [
        (b"GNU.sparse.offset", b"1"),
        (b"GNU.sparse.numbytes", b"2"),
        (b"GNU.sparse.offset", b"30"),
        (b"GNU.sparse.numbytes", b"4"),
    ]
    assert parse_sparse_pairs(parse_pax(body_of(records))[b"GNU.sparse.map"]) == [(1, 2), (30, 4)]


def test_many_sparse_records_take_linear_time() -> None:
    body = body_of([(b"GNU.sparse.offset", b"1")] * 40_000)
    start = time.process_time()
    parse_pax(body)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("text", "seconds", "nsec"),
    [
        (b"0", 0, 0),
        (b"1700000000", 1_700_000_000, 0),
        (b"1.5", 1, 500_000_000),
        (b"1.", 1, 0),
        (b".25", 0, 250_000_000),
        (b"1.000000001", 1, 1),
        (b"1.0000000019", 1, 1),
        (b"-1", -1, 0),
        (b"-1.25", -2, 750_000_000),
        (b"-0.5", -1, 500_000_000),
        (b"-1.000000000", -1, 0),
        (b"+3", 3, 0),
        (b"9" * 18, 10**18 - 1, 0),
    ],
)
def test_pax_times_round_down_to_seconds(text: bytes, seconds: int, nsec: int) -> None:
    changed, found = apply_pax(PLAIN, {b"mtime": text})
    assert (changed.mtime, found) == (seconds, nsec)


@pytest.mark.parametrize(
    "text", [b"x", b"-", b".", b"--1", b"+-1", b"1e9", b"1.2.3", b"1 ", b"0x1", b"1" * 19, b"1.-5"]
)
def test_pax_times_that_are_none_are_refused(text: bytes) -> None:
    with pytest.raises(MalformedInput, match="not a time"):
        apply_pax(PLAIN, {b"mtime": text})


@pytest.mark.parametrize("key", [b"uid", b"gid", b"size"])
def test_pax_numbers_replace_columns(key: bytes) -> None:
    changed, _ = apply_pax(PLAIN, {key: b"4611686018427387903"})
    assert changed == PLAIN._replace(**{key.decode(): (1 << 62) - 1})
    assert apply_pax(PLAIN, {key: b""}) == (PLAIN, 0)
    for text in (b"4611686018427387904", b"1" * 40, b"-1", b"1.0", b"", b"\xb2", b"0x10"):
        if text:
            with pytest.raises(MalformedInput, match="not a number"):
                apply_pax(PLAIN, {key: text})


def test_sparse_1_0_map_ends_at_a_block() -> None:
    text = b"2\n0\n10\n4096\n20\n"
    assert parse_sparse_1_0(text.ljust(BLOCK, b"\0") + b"payload") == ([(0, 10), (4096, 20)], BLOCK)
    assert parse_sparse_1_0(b"0\n".ljust(BLOCK, b"\0")) == ([], BLOCK)


def test_sparse_1_0_map_waits_for_its_padding() -> None:
    whole = b"2\n0\n10\n4096\n20\n".ljust(BLOCK, b"\0")
    for end in range(BLOCK):
        assert parse_sparse_1_0(whole[:end]) is None


@pytest.mark.parametrize(
    "text", [b"x\n", b"1\n-5\n1\n", b"1048577\n", b"2\n9\n1\n0\n1\n", b"1" * 24, b"1\n5\n1.5\n"]
)
def test_broken_sparse_1_0_maps_are_refused(text: bytes) -> None:
    with pytest.raises(MalformedInput):
        parse_sparse_1_0(text.ljust(BLOCK, b"\0"))


@pytest.mark.parametrize(
    "text", [b"1", b"1,2,3", b"1,x", b"5,5,9,1", b"1,,2,3", b"99999999999999999999,1"]
)
def test_broken_sparse_pairs_are_refused(text: bytes) -> None:
    with pytest.raises(MalformedInput):
        parse_sparse_pairs(text)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 25, 26, 60])
def test_old_sparse_maps_go_on_in_extension_blocks(count: int) -> None:
    stretches = [(at * 512, b"x" * 7) for at in range(count)]
    blocks = -(-max(count - 4, 0) // 21)
    tar = b"before!!" + old_sparse(b"s", stretches, 1 << 33)
    assert parse_gnu_sparse(tar, 8) == (
        [(at * 512, 7) for at in range(count)],
        1 << 33,
        blocks * BLOCK,
    )
    if blocks:
        assert parse_gnu_sparse(tar[: 8 + BLOCK * (blocks + 1) - 1], 8) is None


def test_old_sparse_numbers_that_are_none_are_refused() -> None:
    good = old_sparse(b"s", [(0, b"x")], 100)
    for at, text in ((386, b"00000000009 "), (398, b"-0000000001 "), (483, b"\xff" * 12)):
        broken = good[:at] + text + good[at + len(text) :]
        with pytest.raises(MalformedInput):
            parse_gnu_sparse(broken, 0)


def test_an_endless_old_sparse_map_is_refused() -> None:
    pairs = (b"%011o " % 0 + b"%011o " % 0) * 21
    block = pairs.ljust(504, b"\0") + b"\1" + bytes(7)
    start = old_sparse(b"s", [(0, b"")] * 5, 0)[:BLOCK]
    with pytest.raises(MalformedInput, match="too long"):
        parse_gnu_sparse(start + block * (-(-(1 << 20) // 21) + 1), 0)
