"""One cache of decoded chunks for the whole process, so that all images of all stores warm one another.

    new chunk ──> small (10 %) ──touched twice or more──> main (90 %) ──untouched──> out
                       │                                    ^    └─touched: once more round─┘
                       └──else──> ghost (keys only) ──asked again, goes straight to──┘

A chunk that is read once, as in a scan, passes through the small queue and leaves; one that comes back soon after is
known by the ghost queue and goes to the main one. A hit only counts up to 3 on the entry; queues move only when something new comes.

Contents are keyed by (store, chunk number); numbers are never used twice, so nothing is ever stale.

Source: Yang, Zhang, Qiu, Yue, Vinayak, "FIFO queues are all you need for cache eviction", SOSP 2023: the algorithm
S3-FIFO, here with bytes for its counts of objects.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from layerstore.store.reader import ChunkReader
    from layerstore.store.store import Store

__all__ = [
    "DEFAULT_CAPACITY",
    "CacheCounters",
    "CachedReader",
    "ChunkCache",
    "Key",
    "cached_reader",
    "process_cache",
]

DEFAULT_CAPACITY = 128 << 20  # bytes of contents

_SMALL_SHARE = 10  # percent of the capacity
_MAX_TOUCHES = 3
_TO_MAIN = 2  # touches in the small queue that make an entry stay
_OVERHEAD = 200  # bytes that an entry takes beside its content: key, slot, dict and bytes headers


class Key(NamedTuple):
    """A chunk of a store; `store` is whatever tells stores apart."""

    store: object
    number: int


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """What a cache did since it was made.

    Attributes:
        hits: chunks that were there.
        misses: chunks that were not.
        hit_bytes: bytes of the hits: decoding that was spared.
        shared_bytes: of those, bytes that another reader had brought in: what images spared one another.
        evictions: chunks that had to go.
        chunks: held now.
        bytes: contents held now, and what it takes to hold them.
    """

    hits: int
    misses: int
    hit_bytes: int
    shared_bytes: int
    evictions: int
    chunks: int
    bytes: int


class ChunkCache:
    """Decoded chunks, at most `capacity` bytes of them.

    Thread safety: all methods, from any thread.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        """Make an empty cache; with a capacity of 0 it stays empty."""
        self._lock = threading.Lock()
        self._capacity = capacity
        self._small, self._main = _Queue(), _Queue()
        self._ghost = OrderedDict[Key, int]()
        self._ghost_bytes = 0
        self._hits = self._misses = self._hit_bytes = self._shared_bytes = self._evictions = 0

    @property
    def capacity(self) -> int:
        """Bytes that may be held."""
        return self._capacity

    def resize(self, capacity: int) -> None:
        """Change the capacity; what no longer fits goes at once."""
        with self._lock:
            self._capacity = capacity
            self._make_room(0)
            self._trim_ghost()

    def clear(self) -> None:
        """Forget all contents; counters go on."""
        with self._lock:
            self._small, self._main = _Queue(), _Queue()
            self._ghost.clear()
            self._ghost_bytes = 0

    def get(self, keys: Iterable[Key], reader: object = None) -> dict[Key, bytes]:
        """Those of the contents that are here; `reader` says who asks, for the count of shared bytes."""
        found = {}
        with self._lock:
            for key in keys:
                slot = self._small.slots.get(key) or self._main.slots.get(key)
                if slot is None:
                    self._misses += 1
                    continue
                slot.touches = min(slot.touches + 1, _MAX_TOUCHES)
                self._hits += 1
                self._hit_bytes += len(slot.content)
                if slot.reader is not reader:
                    self._shared_bytes += len(slot.content)
                found[key] = slot.content
        return found

    def put(self, contents: Iterable[tuple[Key, bytes]], reader: object = None) -> None:
        """Add contents that `get` did not find; one that is here already, or larger than the cache, changes nothing."""
        with self._lock:
            for key, content in contents:
                slot = _Slot(content, reader)
                if key in self._small.slots or key in self._main.slots:
                    continue
                if slot.size > self._capacity:
                    continue
                self._make_room(slot.size)
                ghost = self._ghost.pop(key, None)
                if ghost is not None:
                    self._ghost_bytes -= ghost
                    self._main.push(key, slot)
                else:
                    self._small.push(key, slot)

    def counters(self) -> CacheCounters:
        """All counters at one moment."""
        with self._lock:
            return CacheCounters(
                self._hits,
                self._misses,
                self._hit_bytes,
                self._shared_bytes,
                self._evictions,
                len(self._small.slots) + len(self._main.slots),
                self._small.bytes + self._main.bytes,
            )

    def _make_room(self, size: int) -> None:
        """Evict until `size` more bytes fit."""
        while self._small.bytes + self._main.bytes + size > self._capacity:
            small_share = self._capacity * _SMALL_SHARE // 100
            if self._small.slots and (self._small.bytes >= small_share or not self._main.slots):
                self._evict_small()
            elif self._main.slots:
                self._evict_main()
            else:
                return

    def _evict_small(self) -> None:
        """Take the oldest of the small queue: to the main queue when it was touched, else out."""
        key, slot = self._small.pop()
        if slot.touches >= _TO_MAIN:
            slot.touches = 0
            self._main.push(key, slot)
            return
        self._evictions += 1
        self._ghost[key] = slot.size
        self._ghost_bytes += slot.size
        self._trim_ghost()

    def _evict_main(self) -> None:
        """Take the oldest of the main queue out; those that were touched go round once more for each touch."""
        key, slot = self._main.pop()
        while slot.touches:
            slot.touches -= 1
            self._main.push(key, slot)
            key, slot = self._main.pop()
        self._evictions += 1

    def _trim_ghost(self) -> None:
        """Remember keys of as many bytes as the main queue may hold."""
        limit = self._capacity * (100 - _SMALL_SHARE) // 100
        while self._ghost_bytes > limit:
            _, size = self._ghost.popitem(last=False)
            self._ghost_bytes -= size


class CachedReader:
    """A `ChunkReader` behind a cache.

    Thread safety: all methods, from any thread. Two threads that miss the same chunk at once both decode it.
    """

    def __init__(self, store: object, reader: ChunkReader, cache: ChunkCache) -> None:
        """Read with `reader`; `store` is what the keys of its chunks begin with."""
        self._store, self._reader, self._cache = store, reader, cache
        self._token = object()  # tells readers apart, and keeps nothing alive

    def read(self, numbers: npt.NDArray[np.uint64]) -> list[bytes]:
        """The contents of these chunks, in the order asked; none may be the hole.

        Raises: DamagedChunks: at least one is not what was stored.
        """
        keys = [Key(self._store, number) for number in numbers.tolist()]
        found = self._cache.get(dict.fromkeys(keys), self._token)
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            contents = self._reader.read(np.array([key.number for key in missing], "u8"))
            # A copy of each: what the reader gives are windows on buffers of several MiB, which would stay alive.
            fresh = {key: bytes(content) for key, content in zip(missing, contents, strict=True)}
            self._cache.put(fresh.items(), self._token)
            found |= fresh
        return [found[key] for key in keys]


def cached_reader(store: Store, cache: ChunkCache | None = None) -> CachedReader:
    """Read a store through a cache, by default the process's.

    Whoever opens the same store again shares what is cached: a store is known by its FORMAT file, which is written
    once in its life.
    """
    status = store.layout.format.stat()
    identity = (status.st_dev, status.st_ino, status.st_mtime_ns)
    return CachedReader(identity, store.reader, process_cache() if cache is None else cache)


@cache
def process_cache() -> ChunkCache:
    """The cache that all views of this process read through."""
    return ChunkCache()


class _Slot:
    """A content in a queue."""

    __slots__ = ("content", "reader", "size", "touches")

    def __init__(self, content: bytes, reader: object) -> None:
        self.content, self.reader = content, reader
        self.size = len(content) + _OVERHEAD
        self.touches = 0


class _Queue:
    """Slots, oldest first, and their bytes."""

    __slots__ = ("bytes", "slots")

    def __init__(self) -> None:
        self.slots = OrderedDict[Key, _Slot]()
        self.bytes = 0

    def push(self, key: Key, slot: _Slot) -> None:
        self.slots[key] = slot
        self.bytes += slot.size

    def pop(self) -> tuple[Key, _Slot]:
        key, slot = self.slots.popitem(last=False)
        self.bytes -= slot.size
        return key, slot
