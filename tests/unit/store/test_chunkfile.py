"""The address space: what is reserved, released and joined; the free list is always a partition of what is not held."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from layerstore.store.chunkfile import Extent
from layerstore.store.layout import BLOCK, SEGMENT
from layerstore.store.store import Store
from tests.support.stores import free_extents

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store:
        yield store


def _reserve(store: Store) -> Extent:
    with store.write() as txn:
        return store.chunkfile.reserve(txn)


def _release(store: Store, *extents: Extent) -> None:
    with store.write() as txn:
        for extent in extents:
            store.chunkfile.release(txn, extent)


def test_file_grows_by_whole_segments(store: Store) -> None:
    assert [_reserve(store) for _ in range(3)] == [
        Extent(0, SEGMENT),
        Extent(SEGMENT, 2 * SEGMENT),
        Extent(2 * SEGMENT, 3 * SEGMENT),
    ]
    assert store.layout.chunks.stat().st_size == 3 * SEGMENT
    assert store.chunkfile.allocated_bytes() == 0


def test_aborted_reservation_is_given_out_again(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.write() as txn:  # noqa: PT012  # inside it
        store.chunkfile.reserve(txn)
        raise ZeroDivisionError
    assert _reserve(store) == Extent(0, SEGMENT)
    assert store.layout.chunks.stat().st_size == SEGMENT


def test_free_extent_is_taken_before_the_file_grows_and_one_too_small_is_left(store: Store) -> None:
    _reserve(store)
    small = Extent(0, (1 << 20) - BLOCK)
    large = Extent(4 << 20, 5 << 20)
    _release(store, small, large)
    assert _reserve(store) == large
    assert _reserve(store) == Extent(SEGMENT, 2 * SEGMENT)
    assert free_extents(store) == [small]


def test_more_than_a_segment_of_free_space_is_given_out_a_segment_at_a_time(store: Store) -> None:
    held = [_reserve(store) for _ in range(3)]
    _release(store, *held)
    assert free_extents(store) == [Extent(0, 3 * SEGMENT)]
    assert _reserve(store) == Extent(0, SEGMENT)
    assert free_extents(store) == [Extent(SEGMENT, 3 * SEGMENT)]


def test_release_begins_on_the_next_block_border(store: Store) -> None:
    _reserve(store)
    _release(store, Extent(BLOCK + 1, 10 * BLOCK))
    assert free_extents(store) == [Extent(2 * BLOCK, 10 * BLOCK)]
    _release(store, Extent(20 * BLOCK - 5, 20 * BLOCK))
    assert free_extents(store) == [Extent(2 * BLOCK, 10 * BLOCK)], "less than a block is nothing"


def test_punched_space_returns_to_the_filesystem_and_partial_blocks_stay(store: Store) -> None:
    extent = _reserve(store)
    data = b"x" * (16 * BLOCK)
    store.chunkfile.write(extent.start, data)
    store.chunkfile.sync()
    before = store.chunkfile.allocated_bytes()
    store.chunkfile.punch(Extent(extent.start + 100, extent.start + 16 * BLOCK))
    assert store.chunkfile.allocated_bytes() <= before - 14 * BLOCK
    assert store.chunkfile.read(extent.start, BLOCK) == data[:BLOCK]
    assert store.chunkfile.read(extent.start + BLOCK, BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize("seed", range(10))
def test_free_list_never_overlaps_is_always_joined_and_sums_right(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    held: list[Extent] = []
    for _ in range(60):
        if not held or rng.random() < 0.3:
            taken = _reserve(store)
            assert not any(taken.start < other.end and other.start < taken.end for other in held)
            held.append(taken)
        else:
            extent = held.pop(rng.randrange(len(held)))
            low, high = sorted(rng.randrange(extent.start, extent.end + 1, BLOCK) for _ in range(2))
            if rng.random() < 0.5:
                low, high = extent
            kept = (Extent(extent.start, low), Extent(high, extent.end))
            held += [part for part in kept if part.start < part.end]
            _release(store, Extent(low, high))
        free = free_extents(store)
        for before, after in pairwise(free):
            assert before.end < after.start
        with store.read() as txn:
            size = store.chunkfile.size(txn)
        total = sum(end - start for start, end in [*free, *held])
        assert total == size, "every byte is free or held, and none is both"


def test_what_takes_disk_space_on_the_free_list_is_found(store: Store) -> None:
    _reserve(store)
    _release(store, Extent(8 * BLOCK, 20 * BLOCK), Extent(1 << 20, SEGMENT))
    for address in (0, 9 * BLOCK, 19 * BLOCK, 30 * BLOCK, SEGMENT - 1):
        store.chunkfile.write(address, b"x")
    with store.read() as txn:
        assert list(store.chunkfile.stale_extents(txn)) == [
            Extent(9 * BLOCK, 10 * BLOCK),
            Extent(19 * BLOCK, 20 * BLOCK),
            Extent(SEGMENT - BLOCK, SEGMENT),
        ]


def test_claim_takes_what_is_still_free_of_a_range_and_nothing_else(store: Store) -> None:
    _reserve(store)
    rng = random.Random(5)
    blocks = 64
    for _ in range(200):
        free = {block for block in range(blocks) if rng.random() < 0.7}
        first, last = sorted(rng.sample(range(blocks + 1), 2))
        wanted = set(range(first, last))
        with pytest.raises(ZeroDivisionError), store.write() as txn:  # noqa: PT012  # undone
            for block in sorted(free):
                store.chunkfile.release(txn, Extent(block * BLOCK, (block + 1) * BLOCK))
            claimed = store.chunkfile.claim(txn, Extent(first * BLOCK, last * BLOCK))
            assert _blocks(claimed) == sorted(free & wanted)
            left = list(store.chunkfile.free_extents(txn))
            assert _blocks(left) == sorted(free - wanted)
            for extent in claimed:
                store.chunkfile.release(txn, extent)
            assert _blocks(store.chunkfile.free_extents(txn)) == sorted(free)
            raise ZeroDivisionError


def _blocks(extents: Iterable[Extent]) -> list[int]:
    return [at // BLOCK for start, end in extents for at in range(start, end, BLOCK)]
