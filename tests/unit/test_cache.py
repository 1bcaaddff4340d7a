"""The chunk cache: bounded, scan-resistant, right under threads; and a store read through it."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from layerstore.cache import CachedReader, ChunkCache, Key, cached_reader, process_cache
from layerstore.store.reader import ChunkReader, DamagedChunks
from layerstore.store.store import Store
from tests.support.layers import put
from tests.support.tars import END, entry, noise

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

_SIZE = 1000
_ROOM = 100  # entries of that size


def _keys(*numbers: int) -> list[Key]:
    return [Key("store", number) for number in numbers]


def _content(number: int) -> bytes:
    return b"%d," % number + bytes(_SIZE - len(str(number)) - 1)


def _use(cache: ChunkCache, *numbers: int, reader: object = None) -> list[bool]:
    """Ask for each, and put what is not there; says which were there."""
    found = []
    for key in _keys(*numbers):
        got = cache.get([key], reader)
        found.append(key in got)
        if key in got:
            assert got[key] == _content(key.number)
        else:
            cache.put([(key, _content(key.number))], reader)
    return found


@pytest.fixture
def cache() -> ChunkCache:
    return ChunkCache(_ROOM * (_SIZE + 200))


def test_a_cache_never_holds_more_than_its_capacity(cache: ChunkCache) -> None:
    rng = random.Random(1)
    for _ in range(5000):
        _use(cache, min(int(rng.paretovariate(0.6)), 2000))
        assert cache.counters().bytes <= cache.capacity
    assert cache.counters().chunks > _ROOM // 2
    assert cache.counters().evictions > 0


def test_all_that_fits_stays(cache: ChunkCache) -> None:
    _use(cache, *range(_ROOM))
    assert all(_use(cache, *range(_ROOM)))


def test_a_scan_does_not_drive_out_what_is_in_use(cache: ChunkCache) -> None:
    hot = range(50)
    for _ in range(3):
        _use(cache, *hot)
    _use(cache, *range(1000, 3000))
    assert all(_use(cache, *hot))


def test_one_that_comes_back_soon_after_it_left_survives_the_next_scan(cache: ChunkCache) -> None:
    _use(cache, 7)
    _use(cache, *range(1000, 1000 + _ROOM))
    assert _use(cache, 7) == [False], "read once, it went with the scan"
    _use(cache, *range(2000, 2000 + 2 * _ROOM))
    assert _use(cache, 7) == [True]
    _use(cache, *range(3000, 3000 + _ROOM))
    assert _use(cache, 8) == [False], "what was never there is not known"


def test_what_was_in_use_long_ago_leaves_in_the_end(cache: ChunkCache) -> None:
    for _ in range(4):
        _use(cache, *range(50))
    for first in range(1000, 9000, 80):
        for _ in range(4):
            _use(cache, *range(first, first + 80))
    assert not any(key in cache.get([key]) for key in _keys(*range(50)))


def test_counters_say_what_was_spared_and_by_whom(cache: ChunkCache) -> None:
    _use(cache, 1, 2, reader="a")
    _use(cache, 1, reader="a")
    _use(cache, 1, 2, 3, reader="b")
    counters = cache.counters()
    assert (counters.hits, counters.misses) == (3, 3)
    assert counters.hit_bytes == 3 * _SIZE
    assert counters.shared_bytes == 2 * _SIZE
    assert (counters.chunks, counters.evictions) == (3, 0)


def test_what_is_larger_than_the_cache_is_not_kept(cache: ChunkCache) -> None:
    _use(cache, 1)
    cache.put([(Key("store", 2), bytes(cache.capacity))])
    assert cache.get(_keys(1, 2)).keys() == {Key("store", 1)}


def test_a_put_of_what_is_there_changes_nothing(cache: ChunkCache) -> None:
    for _ in range(3):
        cache.put([(Key("store", 1), _content(1))])
    assert cache.counters().chunks == 1


def test_a_cache_can_be_resized_and_cleared(cache: ChunkCache) -> None:
    for _ in range(3):
        _use(cache, *range(_ROOM))
    capacity = cache.capacity
    cache.resize(capacity // 4)
    assert 0 < cache.counters().bytes <= capacity // 4
    cache.clear()
    assert cache.counters().bytes == cache.counters().chunks == 0
    cache.resize(0)
    assert _use(cache, 1, 1) == [False, False]
    assert cache.counters().bytes == 0


def test_threads_find_only_right_contents(cache: ChunkCache) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(2000):
                _use(cache, rng.randrange(3 * _ROOM), reader=seed)
        except BaseException as error:  # told in the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    counters = cache.counters()
    assert counters.hits + counters.misses == 4 * 2000
    assert counters.bytes <= cache.capacity


class _Counting:
    """A store's reader that remembers what it was asked."""

    def __init__(self, reader: ChunkReader) -> None:
        self._reader = reader
        self.asked: list[int] = []

    def read(self, numbers: npt.NDArray[np.uint64]) -> list[bytes | memoryview]:
        self.asked += numbers.tolist()
        return self._reader.read(numbers)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store:
        put(store, entry(b"a", noise(300_000)) + entry(b"b", b"words " * 5000) + END)
        yield store


def _count(store: Store) -> int:
    with store.read() as txn:
        return store.index.count(txn)


def test_a_chunk_is_decoded_once_and_comes_in_the_order_asked(store: Store) -> None:
    counting = _Counting(store.reader)
    reader = CachedReader("s", counting, ChunkCache())  # type: ignore[arg-type]  # a ChunkReader, counted
    numbers = np.arange(1, _count(store) + 1, dtype="u8")
    twice = np.concatenate([numbers[::-1], numbers])
    expected = [bytes(content) for content in store.reader.read(twice)]
    assert reader.read(twice) == expected
    assert reader.read(twice) == expected
    assert sorted(counting.asked) == numbers.tolist()
    assert reader.read(np.empty(0, "u8")) == []


def test_contents_do_not_keep_the_buffers_that_they_were_decoded_in(store: Store) -> None:
    reader = CachedReader("s", store.reader, ChunkCache())
    assert {type(content) for content in reader.read(np.array([1, 2], "u8"))} == {bytes}


def test_a_damaged_chunk_is_an_error_each_time(store: Store) -> None:
    reader = CachedReader("s", store.reader, ChunkCache())
    with store.read() as txn:
        address = int(store.index.places(txn, np.array([1], "u8"))["address"][0])
    with store.layout.chunks.open("r+b") as file:
        file.seek(address + 10)
        file.write(b"\xff\x00\xff\x00")
    for _ in range(2):
        with pytest.raises(DamagedChunks):
            reader.read(np.array([1, 2], "u8"))


def test_a_store_that_is_opened_twice_is_cached_once_and_two_stores_never_mix(
    store: Store, tmp_path: Path
) -> None:
    cache = ChunkCache()
    number = np.array([1], "u8")
    content = cached_reader(store, cache).read(number)
    with Store(store.layout.root, create=False, read_only=True) as again:
        assert cached_reader(again, cache).read(number) == content
    counters = cache.counters()
    assert (counters.hits, counters.misses) == (1, 1)
    assert counters.shared_bytes == len(content[0])
    with Store(tmp_path / "other", create=True) as other:
        put(other, entry(b"c", noise(20_000, 9)) + END)
        assert cached_reader(other, cache).read(number) != content


def test_all_views_share_the_cache_of_the_process() -> None:
    assert process_cache() is process_cache()
