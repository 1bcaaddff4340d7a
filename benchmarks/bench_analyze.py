"""How long does it take to compare images whose layers are cut already, and with how much memory?

Unit: seconds (wall and processor), bytes of the process at its peak. Input: made chunk lists of a fleet (one of 20 bases, a
popular middle and an own top for each image; by default 1000 images of 30,000 chunks). Baseline: sorting all chunk keys once.

    python -m benchmarks.bench_analyze [--images 1000] [--chunks 30000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.measure import commit, machine
from layerstore.analysis.analyzing import summarize
from tests.support.cut_layers import fleet_of_layers, images_of


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--chunks", type=int, default=30_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    layers, stacks = fleet_of_layers(options.images, options.chunks)
    images, diff_ids = images_of(stacks, len(layers))
    lists = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    begin, cpu = time.perf_counter(), time.process_time()
    found = summarize(images, diff_ids, layers)
    result = {
        **machine(),
        "commit": commit(Path(__file__).parent),
        "images": len(found.images),
        "chunks": sum(len(layer.chunks) for layer in layers),
        "distinct_chunks": found.chunk_count,
        "wall_s": round(time.perf_counter() - begin, 2),
        "processor_s": round(time.process_time() - cpu, 2),
        "lists_bytes": lists,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "baseline_sort_processor_s": _sort_once([layer.chunks for layer in layers]),
    }
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


def _sort_once(lists: list[npt.NDArray[np.uint64]]) -> float:
    keys = np.concatenate(lists)
    begin = time.process_time()
    keys.sort()
    return round(time.process_time() - begin, 2)


if __name__ == "__main__":
    main()
