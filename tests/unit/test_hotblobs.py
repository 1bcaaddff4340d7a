"""Ranges of blobs are slices of them, whatever kind they are of; what is held of regenerated ones keeps to its budget."""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import threading
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zstandard

from layerstore import emit, kernels
from layerstore.api import LayerStore, open_store
from layerstore.digest import Digest, digest_of
from layerstore.errors import CorruptStore, InvalidArgument, NotFound
from layerstore.hotblobs import HotBlobs
from layerstore.store.catalog import Wrapping
from tests.support.archive_builders import Image, layer_tar, oci_layout_of, tar_of
from tests.support.gzips import text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(kernels.NAME != "native", reason="recipes need the native kernels")


def frames(tar: bytes) -> bytes:
    """zstd, a frame for every 100,000 bytes."""
    encoder = zstandard.ZstdCompressor()
    return b"".join(encoder.compress(tar[at : at + 100_000]) for at in range(0, len(tar), 100_000))


def members(tar: bytes) -> bytes:
    """gzip in three members, as estargz has many."""
    third = len(tar) // 3
    return b"".join(
        gzip.compress(part, 6, mtime=0)
        for part in (tar[:third], tar[third : 2 * third], tar[2 * third :])
    )


def of_no_known_encoder(tar: bytes) -> bytes:
    encoder = zlib.compressobj(6, zlib.DEFLATED, 28, 1)
    return encoder.compress(tar) + encoder.flush()


ENCODERS: dict[str, tuple[Callable[[bytes], bytes], Wrapping]] = {
    "gzip": (lambda tar: gzip.compress(tar, 6, mtime=0), Wrapping.REGENERATED),
    "members": (members, Wrapping.REGENERATED),
    "unknown": (of_no_known_encoder, Wrapping.KEPT),
    "zstd": (frames, Wrapping.KEPT),
    "plain": (bytes, Wrapping.PLAIN),
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as opened:
        yield opened


def load(store: LayerStore, encode: Callable[[bytes], bytes], size: int, seed: int = 1) -> bytes:
    """Load an image whose one layer is encoded so; returns the blob."""
    tar = layer_tar({f"usr/lib/{i}": text_of(size // 4, seed + i) for i in range(4)})
    blob = encode(tar)
    name = {"org.opencontainers.image.ref.name": f"test/{digest_of(blob)[7:19]}:1"}
    files = oci_layout_of([(Image.of([tar]), name)], "gzip", {tar: blob})
    store.load(io.BytesIO(tar_of(files)))
    return blob


def ranges(size: int, seed: int) -> list[tuple[int, int]]:
    """Around both ends, single bytes, and anywhere."""
    rng = random.Random(seed)
    found = [(0, 0), (0, 1), (0, size - 1), (1, size), (size - 1, size), (size, size), (0, size)]
    for _ in range(12):
        start = rng.randrange(size)
        longest = rng.choice([1, 2, 300, 70_000, size])
        found.append((start, min(size, start + rng.randint(0, longest))))
    return found


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_a_range_of_a_blob_of_any_kind_is_its_slice(store: LayerStore, kind: str) -> None:
    encode, wrapping = ENCODERS[kind]
    blob = load(store, encode, 2_600_000)
    digest = digest_of(blob)
    assert emit.blob_record(store.store, digest).wrapping is wrapping
    for attempt in range(2):  # made each time, and (if it is at all) out of what is held
        for start, end in ranges(len(blob), attempt):
            assert b"".join(store.iter_blob(digest, start, end)) == blob[start:end], (start, end)
            assert b"".join(emit.iter_blob(store.store, digest, start, end)) == blob[start:end]
        assert b"".join(store.iter_blob(digest, 5)) == blob[5:]
        assert b"".join(store.iter_blob(digest)) == blob
    assert (store.hot_blobs.counters().hits > 15) == (wrapping is Wrapping.REGENERATED)


def test_there_is_no_range_outside_of_a_blob(store: LayerStore) -> None:
    blob = load(store, members, 30_000)
    digest, size = digest_of(blob), len(blob)
    for start, end in ((-1, 4), (0, size + 1), (5, 4), (size + 1, None)):
        with pytest.raises(InvalidArgument, match="range"):
            list(store.iter_blob(digest, start, end))
    with pytest.raises(NotFound):
        list(store.iter_blob(digest_of(b"nothing"), 0, 1))


def test_a_short_range_regenerates_only_what_it_touches(store: LayerStore) -> None:
    blob = load(store, ENCODERS["gzip"][0], 12_000_000)
    digest = digest_of(blob)
    record = emit.blob_record(store.store, digest)
    assert record.diff_id is not None
    with store.store.read() as txn:
        layer = store.store.catalog.layer(txn, record.diff_id)
    assert layer is not None
    read: list[int] = []
    store.store.reader._pace = read.append
    assert b"".join(store.iter_blob(digest, len(blob) // 2, len(blob) // 2 + 100))
    touched = sum(read)
    read.clear()
    assert b"".join(store.iter_blob(digest)) == blob
    assert touched < sum(read) / 2


def test_all_threads_get_right_bytes_and_the_budget_holds(store: LayerStore) -> None:
    blobs = [load(store, ENCODERS["gzip"][0], 500_000, seed) for seed in (1, 20, 40, 60)]
    budget = 2 * max(map(len, blobs)) + 1000
    hot = HotBlobs(store.store, budget)
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(40):
            blob = rng.choice(blobs)
            start = rng.choice([0, rng.randrange(len(blob))])
            end = rng.choice([len(blob), rng.randint(start, len(blob))])
            parts = []
            for block in hot.iter_blob(digest_of(blob), start, end):
                parts.append(block)
                if hot.counters().bytes > budget:
                    wrong.append(hot.counters())
                if rng.randrange(20) == 0:  # a client that goes away
                    break
            else:
                if b"".join(parts) != blob[start:end]:
                    wrong.append((start, end))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counters = hot.counters()
    assert wrong == []
    assert counters.hits > 5
    assert counters.misses > 10
    assert counters.evictions > 0
    assert 0 < counters.blobs <= 2
    assert sum(len(one) for one in blobs) > budget >= counters.bytes
    hot.close()
    assert (hot.counters().blobs, hot.counters().bytes) == (0, 0)


def test_the_least_recently_read_blob_goes_first(store: LayerStore) -> None:
    blobs = [load(store, ENCODERS["gzip"][0], 200_000, seed) for seed in (1, 20, 40)]
    hot = HotBlobs(store.store, sum(map(len, blobs)) - 1)
    for turn in (0, 1, 0, 2, 0):
        assert b"".join(hot.iter_blob(digest_of(blobs[turn]))) == blobs[turn]
    assert (hot.counters().hits, hot.counters().evictions) == (2, 1)
    list(hot.iter_blob(digest_of(blobs[1])))
    assert hot.counters().misses == 4
    hot.close()


def test_a_read_that_stops_and_a_blob_that_does_not_fit_leave_nothing(store: LayerStore) -> None:
    blob = load(store, ENCODERS["gzip"][0], 3_000_000)
    stopped = store.iter_blob(digest_of(blob))
    next(stopped)
    assert store.hot_blobs.counters().bytes == len(blob)
    stopped.close()  # type: ignore[attr-defined]  # a generator
    assert store.hot_blobs.counters().bytes == 0
    for capacity in (0, len(blob) - 1, 2 * shutil.disk_usage(store.store.layout.tmp).free):
        hot = HotBlobs(store.store, capacity)
        assert b"".join(hot.iter_blob(digest_of(blob))) == blob
        assert (hot.counters().blobs, hot.counters().bytes) == (0, 0), capacity
    assert list(store.store.layout.tmp.iterdir()) == []


def test_a_store_that_is_open_for_reading_is_not_written_to(store: LayerStore) -> None:
    blob = load(store, ENCODERS["gzip"][0], 200_000)
    with open_store(store.store.layout.root, read_only=True) as reading:
        for _ in range(2):
            assert b"".join(reading.iter_blob(digest_of(blob))) == blob
        assert reading.hot_blobs.counters().hits == 0


def test_a_held_blob_that_the_disk_damages_is_made_again(store: LayerStore) -> None:
    blob = load(store, ENCODERS["gzip"][0], 3_000_000)
    digest = digest_of(blob)
    list(store.iter_blob(digest))
    spool = store.hot_blobs._spools[digest]
    os.pwrite(spool._file.fileno(), b"damage", len(blob) - 100)
    assert b"".join(store.iter_blob(digest)) == blob
    assert store.hot_blobs.counters().blobs == 0
    list(store.iter_blob(digest))
    os.ftruncate(store.hot_blobs._spools[digest]._file.fileno(), len(blob) // 2)
    assert b"".join(store.iter_blob(digest, 10)) == blob[10:]


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_no_range_over_damage_gives_a_wrong_byte(store: LayerStore, kind: str) -> None:
    blob = load(store, ENCODERS[kind][0], 2_600_000)
    digest = digest_of(blob)
    damage(store, digest)
    refused = given = 0
    for start, end in ranges(len(blob), 3):
        found = bytearray()
        try:
            for block in store.iter_blob(digest, start, end):
                found += block
        except CorruptStore:
            refused += 1
        else:
            given += 1
            assert len(found) == end - start
        assert found == blob[start : start + len(found)]
    assert refused
    assert given
    assert store.hot_blobs.counters().bytes == 0


def damage(store: LayerStore, digest: Digest) -> None:
    """Flip a byte in a chunk about the middle of what a blob is made from."""
    record = emit.blob_record(store.store, digest)
    stretches = record.stretches
    if record.wrapping is not Wrapping.KEPT:
        assert record.diff_id is not None
        with store.store.read() as txn:
            layer = store.store.catalog.layer(txn, record.diff_id)
        assert layer is not None
        stretches = layer.stretches
    extents = store.store.reader.part(stretches[len(stretches) // 2]).extents
    number = int(extents["number"][len(extents) // 2])
    with store.store.read() as txn:
        place = store.store.index.places(txn, np.array([number], "u8"))[0]
    at = int(place["address"]) + int(place["encoded"]) // 2
    with (store.store.layout.root / "chunks").open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
