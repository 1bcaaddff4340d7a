"""One measured operation of layerstore in a process of its own; prints what it found as one JSON object.

    python -m benchmarks.worker load STORE SOURCE...      save STORE FILE      verify STORE
    python -m benchmarks.worker stages FOLDER CORPUS      what each stage of ingest costs alone (stages.py)
    python -m benchmarks.worker unpacked CORPUS           what overlay2 would keep

`LAYERSTORE_KERNELS` chooses the kernels, as ever. The image names of `save` are all that the store has.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import layerstore
from layerstore import kernels

__all__: list[str] = []


def _load(root: Path, sources: list[str]) -> dict[str, Any]:
    chunks = added = 0
    with layerstore.open(root) as store:
        for source in sources:
            report = store.load(source)
            chunks += report.new_chunks
            added += report.new_bytes
        return {"new_chunks": chunks, "new_bytes": added, "disk_bytes": store.size_on_disk()}


def _save(root: Path, target: Path) -> dict[str, Any]:
    with layerstore.open(root, create=False) as store:
        report = store.save([image.digest for image in store.images()], target)
        return {"bytes": report.bytes, "images": len(report.images)}


def _verify(root: Path) -> dict[str, Any]:
    with layerstore.open(root, create=False) as store:
        report = store.verify()
        return {"bytes": report.checked.bytes, "damages": len(report.damages)}


def _stages(folder: Path, corpus: Path) -> dict[str, Any]:
    from benchmarks.corpora import open_corpus
    from benchmarks.stages import measure_stages

    return measure_stages(open_corpus(corpus), folder)


def _main(verb: str, first: str, *rest: str) -> None:
    start = time.perf_counter()
    root = Path(first)
    match verb:
        case "load":
            result = _load(root, list(rest))
        case "save":
            result = _save(root, Path(rest[0]))
        case "verify":
            result = _verify(root)
        case "stages":
            result = _stages(root, Path(rest[0]))
        case "unpacked":
            from benchmarks.corpora import open_corpus

            result = {"bytes": open_corpus(root).unpacked_bytes()}
        case _:
            raise SystemExit(f"no such operation: {verb}")
    result["seconds"] = round(time.perf_counter() - start, 4)
    result["kernels"], result["simd"] = kernels.NAME, kernels.simd()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            result["peak_rss_bytes"] = int(line.split()[1]) * 1024
    print(json.dumps(result))


if __name__ == "__main__":
    _main(*sys.argv[1:])
