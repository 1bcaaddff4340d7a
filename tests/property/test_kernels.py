"""pure == native, at every instruction set, for what people would not think of."""

from __future__ import annotations

import io
import os
import random
import struct
import tarfile
from typing import Any

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore import kernels

pytestmark = pytest.mark.skipif(
    os.environ.get("LAYERSTORE_KERNELS") == "pure", reason="LAYERSTORE_KERNELS=pure"
)

LEVELS = ["portable", "avx2", "avx512"]
BOUNDARIES = sorted(
    size
    for unit in (0, 64, 128, 1024, 2048, 3072, 4096, 8192, 15 * 1024, 16 * 1024, 17 * 1024, 19_456)
    for size in (unit - 1, unit, unit + 1)
    if size >= 0
)


@pytest.fixture(params=LEVELS, scope="module")
def native(request: pytest.FixtureRequest) -> Any:
    loaded: Any = kernels._load("native")[1]
    best = loaded.simd()
    try:
        loaded.set_simd(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield loaded
    loaded.set_simd(best)


PURE = kernels._load("pure")[1]


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Runs of noise, zeros, one byte and short periods: what has many cuts, or none, or holes."""
    noise = random.Random(draw(st.integers(0, 1 << 32)))
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        size = draw(st.integers(0, 40_000))
        kind = draw(st.sampled_from(["noise", "zeros", "byte", "period"]))
        if kind == "noise":
            parts.append(noise.randbytes(size))
        elif kind == "zeros":
            parts.append(bytes(size))
        elif kind == "byte":
            parts.append(noise.randbytes(1) * size)
        else:
            unit = noise.randbytes(noise.randrange(1, 70))
            parts.append((unit * (size // len(unit) + 1))[:size])
    return b"".join(parts)


@st.composite
def rules(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    low = draw(st.integers(64, 3000))
    normal = low + draw(st.integers(0, 10_000))
    high = normal + draw(st.integers(0, 30_000))
    loose = draw(st.integers(1, 15))
    return low, normal, high, draw(st.integers(loose, 31)), loose


@st.composite
def spans_in(draw: st.DrawFn, size: int) -> bytes:
    pairs = []
    for _ in range(draw(st.integers(0, 6))):
        offset = draw(st.integers(0, size))
        pairs.append((offset, draw(st.integers(0, size - offset))))
    return b"".join(struct.pack("<QQ", *pair) for pair in pairs)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_pure_and_native_cut_and_hash_alike(native: Any, data: st.DataObject) -> None:
    payload, rule = data.draw(payloads()), data.draw(rules())
    spans, is_open = data.draw(spans_in(len(payload))), data.draw(st.booleans())
    want = PURE.cut_hash(payload, spans, *rule, is_open)
    assert native.cut_hash(payload, spans, *rule, is_open) == want
    assert native.cut(payload, *rule) == PURE.cut(payload, *rule)


@settings(max_examples=100, deadline=None)
@given(payloads(), rules(), st.data())
def test_pieces_of_an_open_span_cut_as_the_whole(
    native: Any, payload: bytes, rule: tuple[int, int, int, int, int], data: st.DataObject
) -> None:
    """Feeding a payload in pieces and carrying the rest over changes no chunk."""
    lengths, start, end = b"", 0, 0
    while end < len(payload):
        end = min(end + data.draw(st.integers(1, 50_000)), len(payload))
        span = struct.pack("<QQ", start, end - start)
        _, found, _ = native.cut_hash(payload, span, *rule, end < len(payload))
        lengths += found
        start += sum(struct.unpack(f"<{len(found) // 4}I", found))
    assert start == len(payload)
    assert lengths == native.cut(payload, *rule)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 20_000), st.sampled_from(BOUNDARIES)), max_size=70),
    st.integers(0, 1 << 32),
)
def test_hashes_of_any_sizes_side_by_side(native: Any, sizes: list[int], seed: int) -> None:
    noise = random.Random(seed)
    data = noise.randbytes(20_100)
    pairs = [(noise.randrange(100), size) for size in sizes]
    got = native.hash_many(data, b"".join(struct.pack("<QQ", *pair) for pair in pairs))
    assert got == b"".join(blake3.blake3(data[at : at + size]).digest() for at, size in pairs)


def test_hashes_of_every_boundary_side_by_side(native: Any) -> None:
    data = random.Random(1).randbytes(max(BOUNDARIES))
    for repeat in range(1, 18):
        sizes = [size for size in BOUNDARIES for _ in range(repeat)]
        got = native.hash_many(data, b"".join(struct.pack("<QQ", 0, size) for size in sizes))
        assert got == b"".join(blake3.blake3(data[:size]).digest() for size in sizes)


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    form = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
        for _ in range(draw(st.integers(0, 5))):
            member = tarfile.TarInfo(draw(st.text("ab/é", min_size=1, max_size=60)))
            member.type = draw(st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"\0"]))
            member.linkname = draw(st.text("lk/", max_size=90))
            member.uid = draw(st.integers(0, 0o7777777))
            member.mtime = draw(st.integers(0, (1 << 33) - 1))
            if member.isreg():
                member.size = draw(st.integers(0, 1600))
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return raw.getvalue()


def summed(block: bytearray) -> bytes:
    total = sum(block[:148]) + 8 * 0x20 + sum(block[156:])
    block[148:156] = b"%06o\x00 " % total
    return bytes(block)


@settings(max_examples=250, deadline=None)
@given(tars(), st.data())
def test_pure_and_native_scan_broken_tars_alike(tar: bytes, data: st.DataObject) -> None:
    native = kernels._load("native")[1]
    broken = bytearray(tar)
    for _ in range(data.draw(st.integers(0, 6))):
        block = 512 * data.draw(st.integers(0, len(broken) // 512 - 1))
        place = block + data.draw(
            st.one_of(st.integers(0, 511), st.integers(100, 157), st.integers(257, 345))
        )
        value = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b"\x00 07x8\x80\xff\xc0")))
        broken[place] = value
        if data.draw(st.booleans()):
            broken[block : block + 512] = summed(broken[block : block + 512])
    del broken[data.draw(st.integers(0, len(broken))) :]
    offset = 512 * data.draw(st.integers(0, 4))
    want = PURE.tar_scan(broken, offset)
    assert native.tar_scan(broken, offset) == want


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=12, max_size=12), st.integers(0, 5))
def test_pure_and_native_read_any_number_alike(text: bytes, column: int) -> None:
    at, width = [(100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (329, 8)][column]
    block = bytearray(512)
    block[0:1] = b"n"
    block[257:263] = b"ustar\x00"
    block[at : at + width] = text[:width]
    packed = summed(block)
    assert kernels._load("native")[1].tar_scan(packed, 0) == PURE.tar_scan(packed, 0)
