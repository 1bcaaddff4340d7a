"""How long does garbage collection of a large store take, how much memory, and how long can another writer have to wait?

Unit: seconds, bytes, milliseconds. Input: a made index (10^7 chunks, 10^4 layers of 1000 references each, a tenth of them
garbage; the layers' recipes are real chunks, the others only rows). Baseline: the same references put into a Python set.

    python -m benchmarks.bench_gc [--chunks 10000000] [--layers 10000] [--root DIR]    one JSON line
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import commit, machine
from layerstore.digest import DiffID, digest_of
from layerstore.formats.recipe import OP, Part, encode_part
from layerstore.store.catalog import ImageRecord, LayerRecord, Stretch
from layerstore.store.database import pack_u64
from layerstore.store.gc import GcStep, collect_garbage
from layerstore.store.index import PLACE
from layerstore.store.layout import SEGMENT
from layerstore.store.reach import NumberSet, stream_numbers
from layerstore.store.store import Store
from layerstore.tree import EXTENT, ROW, Entries

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENCODED = 8000  # bytes of a frame, about what a real one has
_RUN = 510
_GROUP = 100  # runs in one transaction
_LAYERS_OF_IMAGE = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=10_000_000)
    parser.add_argument("--layers", type=int, default=10_000)
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="layerstore-gc-", dir=options.root))
    try:
        with Store(root / "store", create=True) as store:
            print(json.dumps(_measure(store, options.chunks, options.layers)))
    finally:
        shutil.rmtree(root)


def _measure(store: Store, chunks: int, layers: int) -> dict[str, Any]:
    first = _add_rows(store, chunks)
    _add_layers(store, first, chunks, layers)
    with store.read() as txn:
        streams = [record.stretches for _, record in store.catalog.layers(txn)]
        count = store.index.count(txn)
    _reset_peak()
    begin = time.perf_counter()
    marks, references = NumberSet(count), 0
    for numbers in stream_numbers(store, streams):
        marks.add(numbers)
        references += len(numbers)
    read_and_mark_s = time.perf_counter() - begin
    arrays = list(stream_numbers(store, streams))
    begin = time.perf_counter()
    again = NumberSet(count)
    for numbers in arrays:
        again.add(numbers)
    mark_s = time.perf_counter() - begin
    sample = arrays[: max(1, len(arrays) // 20)]
    begin = time.perf_counter()
    plain: set[int] = set()
    for numbers in sample:
        plain.update(numbers.tolist())
    set_s = (time.perf_counter() - begin) * len(arrays) / len(sample)
    del arrays, sample, plain, marks, again
    steps: list[tuple[str, float]] = []

    def at(step: GcStep) -> None:
        steps.append((step.value, time.perf_counter()))

    _reset_peak()
    begin = time.perf_counter()
    report = collect_garbage(store, at=at)
    end = time.perf_counter()
    ends = [moment for _, moment in steps[1:]] + [end]
    return {
        **machine(),
        "commit": commit(Path(__file__).parent),
        "chunks": count,
        "layers": layers,
        "references": references,
        "read_and_mark_s": round(read_and_mark_s, 3),
        "mark_s": round(mark_s, 3),
        "python_set_s": round(set_s, 3),
        "gc_s": round(end - begin, 2),
        "steps_s": [
            [name, round(until - moment, 2)]
            for (name, moment), until in zip(steps, ends, strict=True)
        ],
        "gc_peak_rss_bytes": _peak(),
        "longest_lock_ms": round(report.longest_lock_s * 1000, 1),
        "freed_chunks": report.chunks,
        "freed_bytes": report.bytes,
    }


def _add_rows(store: Store, chunks: int) -> int:
    """Rows of chunks that are nowhere; returns the number of the first."""
    rng = np.random.default_rng(1)
    with store.write() as txn:
        size = chunks * _ENCODED // SEGMENT * SEGMENT + SEGMENT
        store.database.put(txn, "state", b"file_size", pack_u64(size))
    os.truncate(store.layout.chunks, size)
    for at in range(0, chunks, _GROUP * _RUN):
        count = min(_GROUP * _RUN, chunks - at)
        places = np.zeros(count, PLACE)
        places["address"] = (np.arange(count, dtype="u8") + np.uint64(at)) * np.uint64(_ENCODED)
        places["encoded"], places["decoded"] = _ENCODED, 4 * _ENCODED
        places["id"] = np.frombuffer(rng.bytes(count * 32), "V32")
        with store.write() as txn:
            store.index.insert(txn, [bytes(one) for one in places["id"]], places)
    return 1


def _add_layers(store: Store, first: int, chunks: int, layers: int) -> None:
    """Layers that need the chunks in order, in images of ten; the last tenth belongs to no image."""
    each = chunks // layers
    diff_ids = [DiffID(digest_of(b"%d" % number)) for number in range(layers)]
    with store.begin() as session:
        for at in range(0, layers, 1000):
            parts = [session.put_bytes(part) for part in _parts(first, each, at, at + 1000)]
            with session.commit() as txn:
                for diff_id, part in zip(diff_ids[at : at + 1000], parts, strict=True):
                    stretch = Stretch((), tuple(session.numbers_of(part).tolist()))
                    record = LayerRecord(each * 4 * _ENCODED, 0, (stretch,), 0)
                    session.catalog.put_layer(txn, diff_id, record)
    with store.write() as txn:
        for at in range(0, layers * 9 // 10, _LAYERS_OF_IMAGE):
            own = tuple(diff_ids[at : at + _LAYERS_OF_IMAGE])
            image = ImageRecord(digest_of(b"config"), own, 0)
            store.catalog.put_image(txn, digest_of(b"image %d" % at), image)


def _parts(first: int, each: int, start: int, end: int) -> Iterator[bytes]:
    nothing = Entries(np.empty(0, ROW), b"", b"", b"")
    for number in range(start, end):
        extents = np.empty(each, EXTENT)
        extents["number"] = np.arange(first + number * each, first + (number + 1) * each)
        extents["length"] = 4 * _ENCODED
        yield encode_part(Part(np.array([(0, each)], OP), extents, nothing))


def _reset_peak() -> None:
    """Let the kernel forget the peak so far (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
