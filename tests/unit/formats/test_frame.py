from __future__ import annotations

import numpy as np
import pytest
import zstandard

from layerstore.chunking import DEFAULT_PARAMS
from layerstore.formats.frame import MAX_DECODED, MAX_ENCODED, FrameEncoder, decode_frames
from tests.support.tars import noise

CHUNKS = [b"x", b"text " * 5000, noise(100_000), bytes(128 << 10), noise(MAX_DECODED), b"ab" * 9]


def decoded(frames: list[bytes], sizes: list[int], gap: int = 0) -> list[bytes]:
    data, segments = b"", []
    for frame in frames:
        data += bytes(gap)
        segments.append((len(data), len(frame)))
        data += frame
    rows = np.array(segments, "u8").reshape(-1, 2)
    return [bytes(content) for content in decode_frames(data, rows, np.array(sizes, "u8"))]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("level", [1, 3, 9])
def test_chunks_come_back_in_order(level: int, threads: int) -> None:
    frames = [bytes(frame) for frame in FrameEncoder(level, threads).encode(CHUNKS)]
    assert decoded(frames, [len(chunk) for chunk in CHUNKS], gap=3) == CHUNKS


def test_nothing_gives_nothing() -> None:
    assert FrameEncoder().encode([]) == []


def test_a_chunk_is_one_frame_that_the_kernel_can_read() -> None:
    for chunk, frame in zip(CHUNKS, FrameEncoder().encode(CHUNKS), strict=True):
        parameters = zstandard.get_frame_parameters(bytes(frame[:18]))
        assert parameters.content_size == len(chunk)
        assert parameters.has_checksum
        assert parameters.dict_id == 0
        assert parameters.window_size <= 1 << 20
        assert len(frame) <= MAX_ENCODED
        assert zstandard.ZstdDecompressor().decompress(bytes(frame)) == chunk


def test_the_largest_chunk_of_the_default_parameters_is_legal() -> None:
    assert DEFAULT_PARAMS.max_size <= MAX_DECODED


def test_equal_chunks_give_equal_frames_whatever_the_threads() -> None:
    one, two = (FrameEncoder(3, threads).encode(CHUNKS) for threads in (1, 2))
    assert [bytes(frame) for frame in one] == [bytes(frame) for frame in two]


@pytest.mark.parametrize("chunk", [b"text " * 100, noise(300)])
def test_every_flipped_bit_of_a_frame_is_an_error_or_changes_nothing(chunk: bytes) -> None:
    (frame,) = FrameEncoder().encode([chunk])
    noticed = 0
    for at in range(len(frame)):
        for bit in range(8):
            damaged = bytearray(frame)
            damaged[at] ^= 1 << bit
            try:
                assert decoded([bytes(damaged)], [len(chunk)]) == [chunk]
            except zstandard.ZstdError:
                noticed += 1
    assert noticed > 7 * len(frame)


def test_a_wrong_decoded_size_is_an_error() -> None:
    (frame,) = FrameEncoder().encode([b"text " * 100])
    for size in (1, 499, 501, 1 << 19):
        with pytest.raises(zstandard.ZstdError):
            decoded([bytes(frame)], [size])
