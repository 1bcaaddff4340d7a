"""One body over every kernel: the pure twin, and the native one at each instruction set there is."""

from __future__ import annotations

import gc
import hashlib
import importlib
import io
import json
import mmap
import os
import struct
import subprocess
import sys
import tarfile
import threading
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import blake3
import numpy as np
import pytest

from layerstore import kernels
from layerstore.errors import InvalidArgument, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.kernels import Kernels

DATA = Path(__file__).parent.parent / "data"
VARIANTS = ["pure", "portable", "avx2", "avx512"]
RULE = (8192, 32768, 131072, 16, 14)
SMALL_RULE = (64, 200, 1000, 8, 6)
NEED_DATA, END, BAD_CHECKSUM, BAD_SIZE, SPECIAL, MORE = range(6)


class Row(NamedTuple):
    header_offset: int
    size: int
    mtime: int
    uid: int
    gid: int
    mode: int
    devmajor: int
    devminor: int
    name_len: int
    prefix_len: int
    link_len: int
    typeflag: int
    format: int
    flags: int


@pytest.fixture(params=VARIANTS)
def kernel(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    if request.param == "pure":
        yield kernels._load("pure")[1]
        return
    if os.environ.get("LAYERSTORE_KERNELS") == "pure":
        pytest.skip("LAYERSTORE_KERNELS=pure")
    native: Any = kernels._load("native")[1]
    best = native.simd()
    try:
        native.set_simd(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield native
    native.set_simd(best)


def seeded(seed: str, size: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


def spans(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<QQ", *pair) for pair in pairs)


def u32(packed: bytes) -> list[int]:
    return list(np.frombuffer(packed, "<u4").tolist())


def rows_of(packed: bytes) -> list[Row]:
    return [Row(*each) for each in struct.iter_unpack("<QQqQQIIIHHHBBI", packed)]


def header(**fields: bytes | int) -> bytes:
    """One ustar header block; bytes replace the field as they stand, and the checksum is made last."""
    places = {
        "name": (0, 100), "mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12),
        "mtime": (136, 12), "typeflag": (156, 1), "linkname": (157, 100), "magic": (257, 8),
        "devmajor": (329, 8), "devminor": (337, 8), "prefix": (345, 155),
    }  # fmt: skip
    block = bytearray(512)
    filled = {
        "name": b"file", "mode": 0o644, "uid": 0, "gid": 0, "size": 0, "mtime": 0, "typeflag": b"0",
        "magic": b"ustar\x0000", "devmajor": 0, "devminor": 0,
    } | fields  # fmt: skip
    for field, value in filled.items():
        at, width = places[field]
        text = value if isinstance(value, bytes) else f"{value:0{width - 1}o}\0".encode()
        assert len(text) <= width
        block[at : at + len(text)] = text
    return summed(block)


def summed(block: bytes | bytearray) -> bytes:
    total = sum(block[:148]) + 8 * 0x20 + sum(block[156:512])
    return bytes(block[:148]) + b"%06o\x00 " % total + bytes(block[156:])


def base256(value: int, width: int) -> bytes:
    packed = bytearray((value % (1 << (8 * width))).to_bytes(width, "big"))
    packed[0] |= 0x80
    return bytes(packed)


# --- the table and the golden files


def test_gear_is_made_from_its_sentence(kernel: Kernels) -> None:
    digests = [blake3.blake3(b"layerstore gear 1" + bytes([i])).digest() for i in range(256)]
    assert tuple(int.from_bytes(each[:4], "little") for each in digests) == kernel.GEAR


def test_constant_runs_have_no_cut_at_eleven_bits_or_more(kernel: Kernels) -> None:
    assert all((-word & 0xFFFF_FFFF) >> 21 for word in kernel.GEAR)
    for value in range(256):
        lengths = u32(kernel.cut(bytes([value]) * 300_000, 64, 64, 100_000, 11, 11))
        assert lengths == [100_000] * 3


def test_blake3_published_vectors(kernel: Kernels) -> None:
    pattern = bytes(i % 251 for i in range(102_400))
    cases = json.loads((DATA / "blake3_vectors.json").read_text())["cases"]
    assert len(cases) == 35
    for length, want in cases.items():
        assert kernel.blake3(pattern[: int(length)]).hex() == want, length
    together = kernel.hash_many(pattern, spans(*((0, int(length)) for length in cases)))
    assert together.hex() == "".join(cases.values())


@pytest.mark.parametrize(
    "size", [(1 << 19) - 1, 1 << 19, (1 << 19) + 1, 1 << 20, (1 << 20) + 1, 3 << 19, 3_333_333]
)
def test_blake3_of_inputs_longer_than_a_batch(kernel: Kernels, size: int) -> None:
    data = seeded("long", size)
    assert kernel.blake3(data) == blake3.blake3(data).digest()


def test_golden_cut_points(kernel: Kernels) -> None:
    for case in json.loads((DATA / "cut_points.json").read_text())["cases"]:
        data = hashlib.shake_128(b"layerstore cut points %d" % case["seed"]).digest(case["size"])
        assert u32(kernel.cut(data, *case["rule"])) == case["lengths"], case["seed"]


# --- cut_hash


def test_chunks_add_up_and_carry_their_hash(kernel: Kernels) -> None:
    data = seeded("chunks", 400_000)
    pairs = [(5, 0), (10, 64), (0, 100_000), (399_999, 1), (123, 300_000), (400_000, 0)]
    counts, lengths, ids = kernel.cut_hash(data, spans(*pairs), *SMALL_RULE, False)
    left, names = u32(lengths), [ids[i : i + 32] for i in range(0, len(ids), 32)]
    assert len(left) == len(names) == sum(u32(counts))
    for (offset, size), count in zip(pairs, u32(counts), strict=True):
        assert sum(left[:count]) == size
        for length, name in zip(left[:count], names[:count], strict=True):
            assert name == blake3.blake3(data[offset : offset + length]).digest()
            offset += length
        del left[:count], names[:count]


def test_no_span_gives_nothing(kernel: Kernels) -> None:
    assert kernel.cut_hash(b"", b"", *RULE, True) == (b"", b"", b"")
    assert kernel.cut_hash(b"", spans((0, 0)), *RULE, False) == (bytes(4), b"", b"")
    assert kernel.cut(b"", *RULE) == b""
    assert kernel.hash_many(b"", b"") == b""


def test_a_chunk_of_zeros_is_a_hole(kernel: Kernels) -> None:
    data = bytes(300_000) + b"\x01" + bytes(99)
    _, lengths, ids = kernel.cut_hash(data, spans((0, 300_000), (300_000, 100)), *RULE, False)
    assert u32(lengths) == [131_072, 131_072, 37_856, 100]
    assert ids == bytes(96) + blake3.blake3(data[300_000:]).digest()


@pytest.mark.parametrize("size", [1, 2, 31, 63, 64, 65, 4096])
def test_one_byte_that_is_not_zero_is_not_a_hole(kernel: Kernels, size: int) -> None:
    for place in {0, 1, size // 2, size - 1} & set(range(size)):
        data = bytearray(size)
        data[place] = 1
        ids = kernel.cut_hash(data, spans((0, size)), *RULE, False)[2]
        assert ids == blake3.blake3(data).digest()


def test_an_open_span_gives_only_chunks_that_more_bytes_keep(kernel: Kernels) -> None:
    data = seeded("open", 30_000)
    whole = u32(kernel.cut(data, *SMALL_RULE))
    ends = np.cumsum(whole)
    for size in [0, 63, 64, 65, 200, 999, 1000, 1001, 5_000, *ends[:30].tolist()]:
        counts, lengths, ids = kernel.cut_hash(data, spans((0, size)), *SMALL_RULE, True)
        got = u32(lengths)
        assert u32(counts) == [len(got)]
        assert len(ids) == 32 * len(got)
        assert got == whole[: len(got)]
        assert size - sum(got) < 1000


def test_a_hash_match_at_the_end_of_an_open_span_is_definite(kernel: Kernels) -> None:
    data = seeded("definite", 30_000)
    first = next(
        length for length in u32(kernel.cut(data, *SMALL_RULE)) if 64 < length < 1000
    )  # the seed's first chunk ends at a match
    assert u32(kernel.cut(data, *SMALL_RULE))[0] == first
    assert u32(kernel.cut_hash(data, spans((0, first)), *SMALL_RULE, True)[1]) == [first]
    assert u32(kernel.cut_hash(data, spans((0, first - 1)), *SMALL_RULE, True)[1]) == []


def test_only_the_last_span_is_open(kernel: Kernels) -> None:
    counts, lengths, _ = kernel.cut_hash(bytes(20), spans((0, 10), (10, 10)), *RULE, True)
    assert (u32(counts), u32(lengths)) == ([1, 0], [10])


def test_cuts_come_back_after_an_insertion(kernel: Kernels) -> None:
    data = seeded("insertion", 200_000)
    old = set(np.cumsum(u32(kernel.cut(data, *SMALL_RULE))).tolist())
    new = set(np.cumsum(u32(kernel.cut(b"inserted" + data, *SMALL_RULE))).tolist())
    assert len({cut + 8 for cut in old} & new) > 0.95 * len(old)


# --- tar_scan


def test_rows_say_what_tarfile_wrote(kernel: Kernels) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        file = tarfile.TarInfo("p" * 120 + "/" + "n" * 90)
        file.size, file.mode, file.uid, file.gid, file.mtime = 1000, 0o4755, 7, 9, 1_700_000_000
        tar.addfile(file, io.BytesIO(bytes(1000)))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "target"
        tar.addfile(link)
        device = tarfile.TarInfo("tty")
        device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 5, 12
        tar.addfile(device)
    rows, after, stop = kernel.tar_scan(raw.getvalue(), 0)
    assert (after, stop) == (512 * 5, END)
    first, second, third = rows_of(rows)
    assert first == Row(0, 1000, 1_700_000_000, 7, 9, 0o4755, 0, 0, 90, 120, 0, ord("0"), 1, 0)
    assert second[:2] == (1536, 0)
    assert (second.name_len, second.link_len, second.typeflag) == (4, 6, ord("2"))
    assert (third.header_offset, third.devmajor, third.devminor) == (2048, 5, 12)
    assert kernel.tar_scan(raw.getvalue(), 1536)[0] == rows[64:]


@pytest.mark.parametrize(
    ("magic", "form", "prefix_len"),
    [(b"ustar\x0000", 1, 6), (b"ustar\x00\xff\xff", 1, 6), (b"ustar  \x00", 2, 0), (b"", 0, 0)],
)
def test_format_is_told_by_magic(kernel: Kernels, magic: bytes, form: int, prefix_len: int) -> None:
    rows, _, _ = kernel.tar_scan(header(magic=magic, prefix=b"prefix", devmajor=3), 0)
    (row,) = rows_of(rows)
    assert (row.format, row.prefix_len, row.devmajor) == (form, prefix_len, 3 if form else 0)


def test_a_field_without_nul_is_all_text(kernel: Kernels) -> None:
    block = header(name=b"n" * 100, linkname=b"l" * 100, prefix=b"p" * 155)
    (row,) = rows_of(kernel.tar_scan(block, 0)[0])
    assert (row.name_len, row.link_len, row.prefix_len) == (100, 100, 155)


@pytest.mark.parametrize(
    ("field", "text", "want"),
    [
        ("mtime", b"", 0),
        ("mtime", b"   17 99", 15),
        ("mtime", b"777777777777", (1 << 36) - 1),
        ("mtime", base256(-1, 12), -1),
        ("mtime", base256(-(1 << 63), 12), -(1 << 63)),
        ("mtime", base256((1 << 63) - 1, 12), (1 << 63) - 1),
        ("uid", base256((1 << 62) - 1, 8), (1 << 62) - 1),
        ("uid", base256(1 << 21, 8), 1 << 21),
        ("gid", b"7777777 ", 0o7777777),
        ("mode", base256(0xFFFF_FFFF, 8), 0xFFFF_FFFF),
        ("devminor", b"       7", 7),
        ("size", b"        100\x00", 64),
        ("size", base256(1 << 62, 12), 1 << 62),
    ],
)
def test_numbers_are_read(kernel: Kernels, field: str, text: bytes, want: int) -> None:
    rows, after, _ = kernel.tar_scan(header(**{field: text}), 0)
    (row,) = rows_of(rows)
    assert (getattr(row, field), row.flags) == (want, 0)
    assert after == 512 + (row.size + 511) // 512 * 512


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("mtime", b"8"),
        ("mtime", b"-1"),
        ("mtime", base256(1 << 63, 12)),
        ("mtime", base256(-(1 << 63) - 1, 12)),
        ("uid", b"12x"),
        ("uid", base256(-1, 8)),
        ("gid", b"\xff"),
        ("mode", base256(1 << 32, 8)),
        ("devmajor", b"\t1"),
    ],
)
def test_a_malformed_number_is_zero_and_flagged(kernel: Kernels, field: str, text: bytes) -> None:
    rows, after, stop = kernel.tar_scan(header(**{field: text}) + bytes(512), 0)
    (row,) = rows_of(rows)
    assert (getattr(row, field), row.flags) == (0, 1)
    assert (after, stop) == (512, END)


@pytest.mark.parametrize(
    "size", [b"8", b"1x", base256(-1, 12), base256((1 << 62) + 1, 12), base256(1 << 70, 12)]
)
def test_a_bad_size_stops(kernel: Kernels, size: bytes) -> None:
    assert kernel.tar_scan(header() + header(size=size), 0)[1:] == (512, BAD_SIZE)


@pytest.mark.parametrize("typeflag", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_header_only_types_have_no_payload(kernel: Kernels, typeflag: bytes) -> None:
    rows, after, stop = kernel.tar_scan(header(typeflag=typeflag, size=5000) + bytes(512), 0)
    assert (rows_of(rows)[0].size, after, stop) == (0, 512, END)


@pytest.mark.parametrize("typeflag", [b"g", b"S", b"A", b"V", b"8", b"X", b"\xff"])
def test_types_with_rules_of_their_own_stop(kernel: Kernels, typeflag: bytes) -> None:
    assert kernel.tar_scan(header() + header(typeflag=typeflag), 0) == (
        kernel.tar_scan(header(), 0)[0],
        512,
        SPECIAL,
    )


@pytest.mark.parametrize(
    ("body", "stop"),
    [
        (b"20 path=somewhere/ab\n", END),
        (b"30 mtime=1350244992.023960108\n", END),
        (b"11 size=100\n", SPECIAL),
        (b"22 GNU.sparse.major=1\n", SPECIAL),
        (b"21 hdrcharset=BINARY\n", SPECIAL),
        (b"13 comment=siz", END),
    ],
)
def test_a_pax_header_that_changes_the_reading_stops(
    kernel: Kernels, body: bytes, stop: int
) -> None:
    data = header(typeflag=b"x", size=len(body)) + body.ljust(512, b"\x00") + bytes(512)
    rows, after, got = kernel.tar_scan(data, 0)
    assert (len(rows), after, got) == ((64, 1024, END) if stop == END else (0, 0, SPECIAL))


def test_padding_after_a_pax_body_is_not_read(kernel: Kernels) -> None:
    data = header(typeflag=b"x", size=3) + b"size=".ljust(512, b"\x00") + bytes(512)
    assert kernel.tar_scan(data, 0)[1:] == (1024, END)


@pytest.mark.parametrize("typeflag", [b"x", b"L", b"K"])
def test_an_extension_body_must_be_here_whole(kernel: Kernels, typeflag: bytes) -> None:
    block = header(typeflag=typeflag, size=513)
    assert kernel.tar_scan(block + bytes(1023), 0) == (b"", 0, NEED_DATA)
    assert kernel.tar_scan(block + bytes(1024), 0)[1:] == (1536, NEED_DATA)


def test_next_may_lie_past_the_end(kernel: Kernels) -> None:
    rows, after, stop = kernel.tar_scan(header(size=10_000), 0)
    assert (len(rows), after, stop) == (64, 512 + 10_240, NEED_DATA)
    assert kernel.tar_scan(header(), after) == (b"", after, NEED_DATA)
    assert kernel.tar_scan(b"", 0) == (b"", 0, NEED_DATA)
    assert kernel.tar_scan(header()[:511], 0) == (b"", 0, NEED_DATA)


def test_a_changed_byte_breaks_the_checksum(kernel: Kernels) -> None:
    good = header()
    for place in (0, 99, 130, 157, 511):
        bad = bytearray(good)
        bad[place] ^= 1
        assert kernel.tar_scan(bad, 0) == (b"", 0, BAD_CHECKSUM)


@pytest.mark.parametrize("text", [b"\xff" * 8, b"12345x\x00 ", b"        ", b"\x80" + bytes(7)])
def test_a_malformed_checksum_is_a_bad_one(kernel: Kernels, text: bytes) -> None:
    block = header()
    assert kernel.tar_scan(block[:148] + text + block[156:], 0)[2] == BAD_CHECKSUM


def test_a_checksum_over_signed_bytes_is_accepted(kernel: Kernels) -> None:
    block = header(name=b"caf\xc3\xa9")
    signed = sum(each - 256 if each > 127 else each for each in block[:148] + block[156:]) + 256
    assert kernel.tar_scan(block[:148] + b"%06o\x00 " % signed + block[156:], 0)[2] == NEED_DATA


def test_many_headers_come_in_pages(kernel: Kernels) -> None:
    data = header() * 65_537
    rows, after, stop = kernel.tar_scan(data, 0)
    assert (len(rows), after, stop) == (64 * 65_536, 512 * 65_536, MORE)
    rows, after, stop = kernel.tar_scan(data, after)
    assert (len(rows), after, stop) == (64, len(data), NEED_DATA)
    assert kernel.tar_scan(memoryview(data)[512:], 0)[1:] == (512 * 65_536, NEED_DATA)


# --- arguments and buffers


@pytest.mark.parametrize(
    "rule",
    [
        (63, 64, 65, 2, 1), (100, 99, 200, 2, 1), (100, 200, 199, 2, 1),
        (64, 64, (1 << 20) + 1, 2, 1), (-1, 64, 65, 2, 1), (64, 64, 1 << 80, 2, 1),
    ],
)  # fmt: skip
def test_bad_sizes_are_refused(kernel: Kernels, rule: tuple[int, int, int, int, int]) -> None:
    text = r"^sizes must satisfy 64 <= min_size <= normal_size <= max_size <= 2\*\*20$"
    with pytest.raises(ValueError, match=text):
        kernel.cut(b"", *rule)
    with pytest.raises(ValueError, match=text):
        kernel.cut_hash(b"", b"odd", *rule, False)


@pytest.mark.parametrize("bits", [(1, 0), (32, 1), (1, 2), (-1, -1), (1 << 70, 1), (5, -(1 << 70))])
def test_bad_bits_are_refused(kernel: Kernels, bits: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=r"^bits must satisfy 1 <= loose_bits <= strict_bits <= 31$"
    ):
        kernel.cut(b"", 64, 64, 64, *bits)


def test_bad_spans_are_refused(kernel: Kernels) -> None:
    for wrong in [(0, 11), (11, 0), (5, 6), (1, (1 << 64) - 1), ((1 << 64) - 1, 2)]:
        packed = spans((0, 10), wrong)
        with pytest.raises(ValueError, match=r"^span 1 is not inside the data$"):
            kernel.hash_many(bytes(10), packed)
        with pytest.raises(ValueError, match=r"^span 1 is not inside the data$"):
            kernel.cut_hash(bytes(10), packed, *RULE, False)
    with pytest.raises(
        ValueError, match=r"^spans must be pairs of u64: its size must be a multiple of 16$"
    ):
        kernel.hash_many(b"", bytes(15))


@pytest.mark.parametrize("offset", [-1, (1 << 62) + 1, 1 << 80, -(1 << 80)])
def test_a_bad_offset_is_refused(kernel: Kernels, offset: int) -> None:
    with pytest.raises(ValueError, match=r"^offset must be between 0 and 2\*\*62$"):
        kernel.tar_scan(b"", offset)


def test_things_that_are_no_buffer_are_refused(kernel: Kernels) -> None:
    wrong: Any = "text"
    text = r"^a bytes-like object is required, not 'str'$"
    for call in (
        lambda: kernel.cut_hash(wrong, b"", *RULE, False),
        lambda: kernel.cut_hash(b"", wrong, *RULE, False),
        lambda: kernel.cut(wrong, *RULE),
        lambda: kernel.hash_many(wrong, b""),
        lambda: kernel.blake3(wrong),
        lambda: kernel.tar_scan(wrong, 0),
    ):
        with pytest.raises(TypeError, match=text):
            call()
    with pytest.raises(TypeError, match=r"^'float' object cannot be interpreted as an integer$"):
        kernel.tar_scan(b"", wrong_number())


def wrong_number() -> Any:
    return 1.0


def test_a_view_with_gaps_is_refused(kernel: Kernels) -> None:
    gapped: Any
    for gapped in (memoryview(bytes(20))[::2], np.zeros((4, 4), np.uint8).T[1:]):
        with pytest.raises(ValueError, match=r"^the buffer must be contiguous$"):
            kernel.blake3(gapped)


def test_every_kind_of_buffer_is_taken_and_let_go(kernel: Kernels, tmp_path: Path) -> None:
    data = seeded("buffers", 4096 * 4)
    want = kernel.cut_hash(data, spans((0, len(data))), *SMALL_RULE, False)
    path = tmp_path / "data"
    path.write_bytes(data)
    mutable = bytearray(data)
    each: Any
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for each in (
            mutable,
            memoryview(data),
            np.frombuffer(data, "<u8"),
            array("I", data),
            mapped,
        ):
            pairs = bytearray(spans((0, len(data))))
            assert kernel.cut_hash(each, pairs, *SMALL_RULE, False) == want
            assert kernel.cut(each, *SMALL_RULE) == want[1]
            assert kernel.blake3(each) == kernel.hash_many(each, pairs) == kernel.blake3(data)
            assert kernel.tar_scan(each, 0)[2] == BAD_CHECKSUM
            pairs.clear()  # BufferError if an export were left
    # mmap.close() in the with statement would have raised the same
    mutable.clear()


def test_buffers_are_let_go_after_an_error(kernel: Kernels) -> None:
    data, pairs = bytearray(100), bytearray(spans((0, 101)))
    for call in (
        lambda: kernel.cut_hash(data, pairs, *RULE, False),
        lambda: kernel.cut_hash(data, pairs, 1, 2, 3, 4, 5, False),
        lambda: kernel.cut(data, 1, 2, 3, 4, 5),
        lambda: kernel.hash_many(data, pairs),
        lambda: kernel.tar_scan(data, -1),
    ):
        with pytest.raises(ValueError, match=r"^(span|sizes|offset) "):
            call()
    gc.collect()
    data.clear()
    pairs.clear()


def test_results_hold_nothing_but_themselves(kernel: Kernels) -> None:
    data = seeded("counts", 50_000)
    before = sys.getrefcount(data)
    for _ in range(50):
        kernel.cut_hash(data, spans((0, len(data))), *SMALL_RULE, False)
        kernel.tar_scan(data, 0)
    assert sys.getrefcount(data) == before


def test_threads_get_the_same_results(kernel: Kernels) -> None:
    data = seeded("threads", 1 << 20)
    want = kernel.cut_hash(data, spans((0, len(data))), *RULE, False)
    got: list[tuple[bytes, bytes, bytes]] = []
    threads = [
        threading.Thread(
            target=lambda: got.append(kernel.cut_hash(data, spans((0, len(data))), *RULE, False))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [want] * 4


# --- the door


def test_the_door_hands_on_to_what_it_names() -> None:
    assert kernels.NAME in ("native", "pure")
    assert kernels.simd() in VARIANTS or kernels.simd() == "numpy"
    data = seeded("door", 100_000)
    pure = kernels._load("pure")[1]
    whole = spans((0, len(data)))
    assert kernels.GEAR == pure.GEAR
    assert kernels.cut(data, *RULE) == pure.cut(data, *RULE)
    assert kernels.cut_hash(data, whole, *RULE, True) == pure.cut_hash(data, whole, *RULE, True)
    assert kernels.hash_many(data, whole) == kernels.blake3(data) == pure.blake3(data)
    assert kernels.tar_scan(data, 0) == pure.tar_scan(data, 0)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="LAYERSTORE_KERNELS is 'fast'"):
        kernels._load("fast")


def test_a_stale_extension_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stale:
        ABI = kernels.ABI + 1

    monkeypatch.setitem(sys.modules, "layerstore._native", Stale)
    assert kernels._load("auto")[0] == "pure"
    with pytest.raises(Unsupported, match="have ABI 3, this version needs 2"):
        kernels._load("native")


def test_a_missing_extension_falls_back_only_when_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "layerstore._native", None)
    assert kernels._load("auto")[0] == "pure"
    with pytest.raises(Unsupported, match="do not load"):
        kernels._load("native")


def test_the_variable_is_read_at_import() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "from layerstore import kernels; print(kernels.NAME)"],
        env=os.environ | {"LAYERSTORE_KERNELS": "pure"},
        cwd=Path(importlib.import_module("layerstore.kernels").__file__ or "").parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "pure\n"
