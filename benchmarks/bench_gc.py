"""How long does garbage collection of a large store take, how much memory, and how long can another writer have to wait?

Unit: seconds, bytes, milliseconds. Input: a made index (10^7 chunks, 10^4 layers of 1000 references each, a tenth of them
garbage; the layers' recipes are real chunks, the others only rows). Baseline: the same references put into a Python set.

    python -m benchmarks.bench_gc [--chunks 10000000] [--layers 10000] [--root DIR]    one JSON line
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.made_index import add_layers, add_rows
from benchmarks.measure import commit, machine
from layerstore.store.gc import GcStep, collect_garbage
from layerstore.store.reach import NumberSet, stream_numbers
from layerstore.store.store import Store


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
    first = add_rows(store, chunks)
    add_layers(store, first, chunks, layers)
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
