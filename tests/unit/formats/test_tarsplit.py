from __future__ import annotations

import random
from itertools import pairwise

import pytest

from layerstore.errors import MalformedInput
from layerstore.formats.tarsplit import MAX_EXTENSION, TarSplitter
from tests.support.layers import split
from tests.support.tars import (
    BLOCK,
    DIALECTS,
    END,
    entry,
    gnu_long,
    header,
    noise,
    old_sparse,
    padded,
    pax,
    pax_sparse,
)

each_dialect = pytest.mark.parametrize("name", DIALECTS)


def in_blocks(tar: bytes, *sizes: int) -> list[bytes]:
    blocks, at, turn = [], 0, 0
    while at < len(tar):
        blocks.append(tar[at : at + sizes[turn % len(sizes)]])
        at += len(blocks[-1])
        turn += 1
    return blocks


def refused(tar: bytes) -> MalformedInput:
    """How a tar is refused: the same, whatever blocks it comes in."""
    seen = set()
    for size in (1 << 30, 512, 100_003):
        with pytest.raises(MalformedInput) as caught:
            split(in_blocks(tar, size))
        seen.add(str(caught.value))
    assert len(seen) == 1, seen
    return caught.value


@each_dialect
def test_pieces_join_to_the_tar(name: str) -> None:
    assert split([DIALECTS[name]]).join() == DIALECTS[name]


@each_dialect
@pytest.mark.parametrize("sizes", [(512,), (511, 513), (7, 1, 1500, 40), (65_536,)])
@pytest.mark.parametrize("give_back", [0, 300])
def test_block_sizes_make_no_difference(name: str, sizes: tuple[int, ...], give_back: int) -> None:
    tar = DIALECTS[name]
    assert split(in_blocks(tar, *sizes), give_back) == split([tar])


@pytest.mark.parametrize("name", [name for name in DIALECTS if len(DIALECTS[name]) < 20_000])
def test_single_bytes_make_no_difference(name: str) -> None:
    tar = DIALECTS[name]
    assert split(in_blocks(tar, 1)) == split([tar])


@each_dialect
def test_random_cuts_make_no_difference(name: str) -> None:
    tar, chance = DIALECTS[name], random.Random(name)
    for _ in range(10):
        cuts = sorted({0, len(tar), *(chance.randrange(len(tar) + 1) for _ in range(4))})
        assert split([tar[a:b] for a, b in pairwise(cuts)]) == split([tar])


def test_literals_are_headers_and_padding_only() -> None:
    data = noise(100_000)
    pieces = split([entry(b"a", data) + END])
    assert pieces.payloads == [(BLOCK, data), (BLOCK + len(padded(data)), END)]
    assert len(pieces.literals) == BLOCK + len(padded(data)) - len(data)


def test_bytes_after_the_end_marker_are_never_literals() -> None:
    tail = noise(3 << 20)
    pieces = split(in_blocks(entry(b"a", b"x") + END + tail, 1 << 16))
    assert len(pieces.literals) == 2 * BLOCK - 1
    assert pieces.payloads[-1][1] == END + tail


def test_a_pyc_has_its_head_in_a_stretch_of_its_own() -> None:
    data = noise(500)
    pieces = split([entry(b"m.pyc", data) + entry(b"m.py", data)])
    assert [payload for _, payload in pieces.payloads] == [data[:12], data[12:], data]


def test_each_stored_stretch_of_a_sparse_file_is_a_stretch() -> None:
    parts = [(0, noise(100, 1)), (5000, noise(50, 2)), (9000, b""), (9999, b"z")]
    for tar in (
        old_sparse(b"s", parts, 10_000),
        *(pax_sparse(version, b"s", parts, 10_000) for version in ("0.0", "0.1", "1.0")),
    ):
        pieces = split([tar])
        assert [payload for _, payload in pieces.payloads] == [data for _, data in parts if data]
        (member,) = pieces.members
        assert (member.size, member.header.size, member.name) == (10_000, 151, b"s")


@pytest.mark.parametrize("typeflag", b"123456")
def test_a_size_of_what_has_no_contents_announces_no_payload(typeflag: int) -> None:
    tar = header(b"x", 4096, bytes([typeflag]), link=b"a") + entry(b"y", b"data") + END
    pieces = split([tar])
    assert [(member.name, member.header.size) for member in pieces.members] == [
        (b"x", 0),
        (b"y", 4),
    ]


@pytest.mark.parametrize("typeflag", b"DMNVAZ\x01\xff")
def test_an_unknown_type_has_the_payload_it_announces(typeflag: int) -> None:
    tar = entry(b"x", noise(600), bytes([typeflag])) + entry(b"y", b"data") + END
    pieces = split([tar])
    assert [member.header.typeflag for member in pieces.members] == [typeflag, ord("0")]
    assert pieces.payloads[0][1] == noise(600)


def test_extended_headers_count_for_one_entry_only() -> None:
    tar = pax([(b"path", b"long"), (b"mtime", b"5.5")]) + entry(b"a") + entry(b"b", mtime=9)
    first, second = split([tar]).members
    assert (first.name, first.header.mtime, first.nsec) == (b"long", 5, 500_000_000)
    assert (second.name, second.header.mtime, second.nsec) == (b"b", 9, 0)


def test_the_later_of_two_extended_headers_counts() -> None:
    tar = pax([(b"path", b"first"), (b"uid", b"5")]) + pax([(b"path", b"second")]) + entry(b"a")
    (member,) = split([tar]).members
    assert (member.name, member.header.uid) == (b"second", 0)


def test_global_headers_change_nothing() -> None:
    # As for Go's reader, which Docker, containerd and podman share.
    records = [(b"path", b"other"), (b"size", b"5"), (b"mtime", b"1.5"), (b"uid", b"7")]
    plain = entry(b"a", b"data") + END
    (member,) = split([pax(records, b"g") + plain]).members
    (expected,) = split([plain]).members
    assert member == expected._replace(header=expected.header._replace(offset=2 * BLOCK))


def test_what_is_malformed_is_named_with_entry_and_offset() -> None:
    good = entry(b"good", b"data")
    bad = bytearray(entry(b"bad", b"data"))
    bad[3] ^= 1
    error = refused(good + bytes(bad))
    assert (error.problem, error.entry, error.offset) == ("wrong header checksum", "good", 1024)
    error = refused(good + header(b"bad", patch=[(124, b"\xff" * 12)]))
    assert (error.problem, error.offset) == ("the size in the header is not a number", 1024)
    error = refused(good + pax([(b"uid", b"x")]) + entry(b"bad"))
    assert (error.offset, "PAX" in error.problem) == (2048, True)


def test_what_is_no_tar_says_so() -> None:
    for data in (b"x", b"hello" * 50, noise(4000), b"\x7fELF" + bytes(600)):
        assert refused(data).problem == "not a tar archive"


def test_every_truncation_is_noticed_or_loses_only_padding() -> None:
    tar = gnu_long(b"n" * 200) + entry(b"n", noise(700)) + entry(b"m", b"data") + END
    second = 5 * BLOCK  # where the second entry's header starts
    whole = {0, *range(3 * BLOCK + 700, second + 1), *range(second + BLOCK + 4, len(tar))}
    for end in range(len(tar)):
        if end in whole:
            assert split([tar[:end]]).join() == tar[:end]
            continue
        with pytest.raises(MalformedInput) as caught:
            split([tar[:end]])
        assert caught.value.offset == end
        assert "truncated" in caught.value.problem or end < BLOCK


@pytest.mark.parametrize("typeflag", b"LKxg")
def test_bug_the_limit_of_extended_headers_depended_on_block_sizes(typeflag: int) -> None:
    body = b"n" * (MAX_EXTENSION + 1)
    error = refused(entry(b"x", body, bytes([typeflag])) + entry(b"a") + END)
    assert (error.problem, error.offset) == (
        "extended header of 1048577 bytes; the limit is 1048576",
        0,
    )


def test_bug_a_checksum_behind_a_size_record_was_not_looked_at() -> None:
    bad = bytearray(header(b"a", 0))
    bad[0] ^= 1
    error = refused(pax([(b"size", b"4")]) + bytes(bad) + padded(b"data") + END)
    assert (error.problem, error.offset) == ("wrong header checksum", 1024)


def test_bug_the_end_marker_behind_a_size_record_was_an_entry() -> None:
    assert split([pax([(b"size", b"4")]) + END]).members == []


def test_bug_a_block_that_ended_inside_the_padding_of_a_sparse_map() -> None:
    tar = pax_sparse("1.0", b"s", [(0, b"abc"), (4096, b"def")], 5000) + entry(b"b", b"x") + END
    for end in range(3 * BLOCK, 4 * BLOCK):
        assert split([tar[:end], tar[end:]]) == split([tar])


def test_bug_bytes_behind_the_nul_of_a_long_name_were_part_of_it() -> None:
    long = entry(b"././@LongLink", b"n" * 120 + b"\0garbage", b"L", form="gnu")
    (member,) = split([long + entry(b"n" * 100)]).members
    assert member.name == b"n" * 120


def test_bug_an_unknown_sparse_version_was_read_as_1_0() -> None:
    records = [
        (b"GNU.sparse.major", b"2"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.realsize", b"9"),
    ]
    (member,) = split([pax(records) + entry(b"a", b"data")]).members
    assert (member.size, member.sparse) == (4, None)


@pytest.mark.parametrize("typeflag", b"12345")
def test_a_sparse_map_of_what_has_no_contents_means_nothing(typeflag: int) -> None:
    records = [(b"GNU.sparse.map", b""), (b"GNU.sparse.size", b"99")]
    (member,) = split([pax(records) + header(b"a", 0, bytes([typeflag]), link=b"x")]).members
    assert (member.size, member.sparse) == (0, None)


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_maps_that_lie_are_refused(version: str) -> None:
    good = pax_sparse(version, b"s", [(0, b"abcdef"), (4096, b"ghij")], 5000)
    assert split([good]).join() == good
    lies = [
        pax_sparse(version, b"s", [(0, b"abc"), (4096, b"x")], 4096),
        pax_sparse(version, b"s", [(4096, b"abc"), (0, b"x")], 5000),
        pax_sparse(version, b"s", [(0, b"abc"), (2, b"x")], 5000),
        good.replace(b"4096", b"409x"),
    ]
    for tar in lies:
        refused(tar + END)


def test_a_sparse_map_that_does_not_add_up_is_refused() -> None:
    records = [(b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"99")]
    assert "add up" in refused(pax(records) + entry(b"a", b"data") + END).problem
    bad = bytearray(old_sparse(b"s", [(0, b"abc")], 10))
    bad[408] += 1
    bad[:BLOCK] = header(patch=[(0, bytes(bad[:148])), (156, bytes(bad[156:BLOCK]))])
    assert "add up" in refused(bytes(bad) + END).problem


def test_a_payload_beyond_all_bounds_is_only_missing() -> None:
    for start in (
        header(b"a", patch=[(124, b"\x80" + ((1 << 61) + 5).to_bytes(11, "big"))]),
        pax([(b"size", b"4611686018427387903")]) + header(b"a"),
    ):
        assert "truncated" in refused(start + b"data").problem


def test_a_splitter_counts_the_bytes_it_has_split() -> None:
    splitter = TarSplitter()
    splitter.split(entry(b"a", b"data"))
    assert splitter.offset == 1024
