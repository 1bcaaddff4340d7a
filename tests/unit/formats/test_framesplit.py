"""Kept blobs are cut where zstd frames end, whatever the bytes are and however they arrive."""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zstandard

from layerstore.chunking import DEFAULT_PARAMS, cut_spans
from layerstore.digest import digest_of
from layerstore.formats.framesplit import FrameSplitter
from layerstore.formats.zstdframes import FrameWalk, is_frame
from layerstore.ingest import Expected, ingest_blob
from layerstore.store.store import Store
from tests.support.tars import noise

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SKIPPABLE = b"\x5a\x2a\x4d\x18\x03\0\0\0abc"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store:
        yield store


def frame(data: bytes, *, checksum: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum).compress(data)


def chunks_of(data: bytes, steps: list[int]) -> list[bytes]:
    """Literals and chunks in order, neighbouring literals joined, of a blob that arrives in these steps."""
    splitter, carry, out = FrameSplitter(), b"", [b""]
    source = io.BytesIO(data)
    for turn in range(2 * len(data) + 2):
        block = source.read(steps[turn % len(steps)])
        buffer = carry + block
        split = splitter.split(buffer, at_end=not block)
        cuts = cut_spans(buffer, split.spans, split.is_open, DEFAULT_PARAMS)
        lengths, at = iter(cuts.lengths.tolist()), 0
        for (start, _), count, before in zip(
            split.spans, cuts.counts.tolist(), split.literal_lengths, strict=True
        ):
            out[-1] += split.literals[at : at + before]
            at += before
            for _ in range(count):
                length = next(lengths)
                out += [buffer[start : start + length], b""]
                start += length
        out[-1] += split.literals[at:]
        uncut = sum(size for _, size in split.spans) - int(cuts.lengths.sum())
        splitter.give_back(uncut)
        carry = buffer[len(buffer) - uncut :]
        if not block:
            return out
    raise AssertionError("the blob does not end")


def test_a_walk_finds_where_frames_end() -> None:
    parts = [
        frame(b""),
        frame(noise(300), checksum=False),
        SKIPPABLE,
        SKIPPABLE[:4] + bytes(4),
        frame(bytes(1 << 20)),
        zstandard.ZstdCompressor(write_content_size=False).compress(noise(400_000)),
    ]
    data, ends = b"".join(parts), np.cumsum([len(part) for part in parts]).tolist()
    for step in (1, 2, 7, 5000, len(data)):
        walk, found = FrameWalk(), []
        assert walk.is_between
        for at in range(0, len(data), step):
            met = walk.step(data[at : at + step])
            assert met.wrong is None
            found += [at + end for end in met.ends]
            assert walk.is_between == (min(at + step, len(data)) in ends)
        assert found == ends
        assert walk.frames == len(parts)
    assert all(is_frame(part) for part in parts)
    assert FrameWalk().step(parts[1] + b"none").wrong == len(parts[1])


def test_each_frame_is_a_span_and_tiny_ones_are_literals() -> None:
    first, second, tiny = frame(noise(3000)), frame(noise(5000)), frame(b"header")
    for steps in ([1], [3, 1000], [1 << 20]):
        pieces = chunks_of(tiny + first + second + tiny + SKIPPABLE + first + b"rest", steps)
        assert pieces == [tiny, first, b"", second, tiny + SKIPPABLE, first, b"", b"rest", b""]


def test_what_is_not_zstd_is_cut_as_one() -> None:
    data = noise(700_000)
    assert [piece for piece in chunks_of(data, [100_000]) if piece] == [
        piece for piece in chunks_of(data, [1 << 20]) if piece
    ]
    assert chunks_of(data, [1 << 20])[0] == b""


def test_equal_frames_are_stored_once_wherever_they_lie(store: Store) -> None:
    files = [noise(size, seed) for seed, size in enumerate([20_000, 300, 90_000, 8_000] * 10)]
    frames = [frame(data) for data in files]
    before = b"".join(frame(b"mtime 1, %d" % number) + one for number, one in enumerate(frames))
    frames[7] = frame(noise(50_000, 99))
    after = b"".join(frame(b"mtime 22, %d" % number) + one for number, one in enumerate(frames))
    with store.begin() as session:
        ingest_blob(io.BytesIO(before), Expected("before"), session)
        old = session.new_bytes
        ingest_blob(io.BytesIO(after), Expected("after"), session)
        assert old > 1_100_000
        assert 50_000 < session.new_bytes - old < 60_000, "the changed file, headers and the recipe"


@pytest.mark.parametrize("seed", range(12))
def test_any_bytes_are_kept_whole(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    parts = [SKIPPABLE, frame(b"x"), frame(noise(40_000, seed)), frame(bytes(300_000)), b"?"]
    data = bytearray(b"".join(rng.choices(parts[: 4 + seed % 2], k=30)))
    for _ in range(seed % 4):  # broken headers and bodies
        at = rng.choice([rng.randrange(len(data)), rng.randrange(64)])
        data[at] ^= 1 << rng.randrange(8)
    blob = bytes(data[: len(data) - seed // 2 * 7])
    with store.begin() as session:
        stretches = ingest_blob(io.BytesIO(blob), Expected("blob", digest_of(blob)), session)
    assert b"".join(store.reader.iter_stream(stretches)) == blob
    whole = chunks_of(blob, [1 << 22])
    assert b"".join(whole) == blob
    assert chunks_of(blob, [1000, 17, 40_000]) == whole
