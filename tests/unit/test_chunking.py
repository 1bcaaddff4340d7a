from __future__ import annotations

import pytest
from blake3 import blake3

from layerstore.chunking import DEFAULT_PARAMS, HOLE_ID, ChunkParams, Cuts, cut_spans, volatile_head
from tests.support.tars import noise

SMALL = ChunkParams(64, 256, 1024, 9, 6)
DATA = noise(400_000)


def lengths(data: bytes, params: ChunkParams = DEFAULT_PARAMS) -> list[int]:
    return list(map(int, cut_spans(data, [(0, len(data))], False, params).lengths))


def ids(cuts: Cuts) -> list[bytes]:
    return [cuts.ids[at : at + 32] for at in range(0, len(cuts.ids), 32)]


def test_the_parameters_are_those_of_the_format() -> None:
    # A store cut with other values shares nothing with this one.
    assert ChunkParams(8192, 32_768, 131_072, 16, 13) == DEFAULT_PARAMS


def test_chunks_fill_each_span_and_are_named_by_their_bytes() -> None:
    spans = [(0, 100_000), (150_000, 1), (150_000, 0), (200_000, 8192), (210_000, 150_000)]
    cuts = cut_spans(DATA, spans, False, DEFAULT_PARAMS)
    sizes, names = iter(map(int, cuts.lengths)), iter(ids(cuts))
    for (offset, length), count in zip(spans, map(int, cuts.counts), strict=True):
        end = offset + length
        for _ in range(count):
            size = next(sizes)
            assert next(names) == blake3(DATA[offset : offset + size]).digest()
            offset += size
        assert offset == end
    assert list(sizes) == []


@pytest.mark.parametrize("params", [DEFAULT_PARAMS, SMALL])
def test_sizes_stay_within_the_parameters(params: ChunkParams) -> None:
    sizes = lengths(DATA, params)
    assert len(sizes) > 3
    assert all(params.min_size <= size <= params.max_size for size in sizes[:-1])
    assert 0 < sizes[-1] <= params.max_size


def test_the_average_is_near_the_normal_size() -> None:
    sizes = lengths(noise(8 << 20))
    assert 24 << 10 < sum(sizes) / len(sizes) < 48 << 10


def test_a_file_up_to_the_minimum_is_one_chunk() -> None:
    for size in (1, 4096, 8191, 8192):
        assert lengths(DATA[:size]) == [size]


def test_zeros_are_holes_of_the_largest_size() -> None:
    cuts = cut_spans(bytes(300_000), [(0, 300_000)], False, DEFAULT_PARAMS)
    assert list(map(int, cuts.lengths)) == [131_072, 131_072, 37_856]
    assert cuts.ids == HOLE_ID * 3


def test_an_insertion_changes_few_chunks() -> None:
    data = noise(4 << 20)
    before = set(ids(cut_spans(data, [(0, len(data))], False, DEFAULT_PARAMS)))
    changed = data[: 2 << 20] + b"inserted" + data[2 << 20 :]
    after = set(ids(cut_spans(changed, [(0, len(changed))], False, DEFAULT_PARAMS)))
    assert len(after - before) <= 4
    assert len(after) > 80


@pytest.mark.parametrize("params", [DEFAULT_PARAMS, SMALL])
@pytest.mark.parametrize("block", [1000, 4096, 70_000, 200_001])
def test_an_open_span_is_cut_as_if_it_had_come_at_once(params: ChunkParams, block: int) -> None:
    data = DATA[:250_000] if params is DEFAULT_PARAMS else DATA[:30_000]
    found: list[int] = []
    carry = b""
    for at in range(0, len(data), block):
        carry += data[at : at + block]
        cuts = cut_spans(carry, [(0, len(carry))], True, params)
        found += map(int, cuts.lengths)
        carry = carry[int(cuts.lengths.sum()) :]
        assert len(carry) < params.max_size
    assert found + lengths(carry, params) == lengths(data, params)


def test_nothing_has_no_chunks() -> None:
    cuts = cut_spans(b"", [], False, DEFAULT_PARAMS)
    assert (len(cuts.counts), len(cuts.lengths), cuts.ids) == (0, 0, b"")


@pytest.mark.parametrize(
    ("path", "head"),
    [(b"a.pyc", 12), (b"d/__pycache__/a.cpython-311.pyc", 12), (b"a.py", 0), (b"pyc", 0), (b"", 0)],
)
def test_the_head_of_a_pyc_is_volatile(path: bytes, head: int) -> None:
    assert volatile_head(path) == head
