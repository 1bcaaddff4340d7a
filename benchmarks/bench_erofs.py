"""How long does it take to write the EROFS images of a root filesystem, and how large are they?

Unit: milliseconds and bytes for each inode. Input: a made tree of 25,000 inodes (1 of 12 a directory, files of 1 to 5
chunks, some links and attributes), sorted as `tree.merge` gives it. Baseline: what of it is copying the bytes of the
image once; reading it back is beside it.

    pytest benchmarks/bench_erofs.py
    python -m benchmarks.bench_erofs [INODES]    one JSON line per result
"""

from __future__ import annotations

import json
import platform
import random
import sys
import time
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from layerstore.formats.erofs import (
    SPAN,
    DataFiles,
    read_image,
    write_data_image,
    write_image,
    write_metadata_image,
)
from layerstore.tree import EXTENT, INODE, Kind, Tree

if TYPE_CHECKING:
    from collections.abc import Callable

INODES = 25_000
ROUNDS = 9
UUID = bytes(16)
DEVICE_BYTES = 1 << 40
_FANOUT = 12


class Case(NamedTuple):
    """A call, and how large its result is."""

    call: Callable[[], object]
    size: int


@cache
def cases(inodes: int = INODES) -> dict[str, Case]:
    """Everything measured, by name."""
    tree, spans = made_tree(inodes)
    files = np.flatnonzero(tree.inodes["kind"] == Kind.FILE)
    names: list[bytes | None] = [None] * len(tree)
    for inode in files.tolist():
        names[inode] = b"%064x" % (inode * 0x9E3779B97F4A7C15 << 100 & (1 << 256) - 1)
    counts = tree.inodes["extents"][files].astype("i8")
    data = DataFiles([name for name in names if name], counts, spans)
    direct = write_image(tree, spans, DEVICE_BYTES, UUID)
    calls: dict[str, Callable[[], object]] = {
        "direct": lambda: write_image(tree, spans, DEVICE_BYTES, UUID),
        "metadata": lambda: write_metadata_image(tree, names, UUID),
        "data": lambda: write_data_image(data, DEVICE_BYTES, UUID),
        "baseline/copy": lambda: bytearray(direct),
        "read back": lambda: read_image(direct),
    }
    found = {}
    for name, call in calls.items():
        result = call()
        found[name] = Case(call, len(result) if isinstance(result, (bytes, bytearray)) else 0)
    return found


def made_tree(inodes: int) -> tuple[Tree, Any]:
    """A tree, and a span for each of its extents; always the same for the same number."""
    rng = random.Random(7)
    directories = 1 + inodes // _FANOUT
    rows = np.zeros(inodes, INODE)
    rows["target"] = rows["xattrs"] = -1
    rows["mode"], rows["nlink"], rows["mtime"] = 0o644, 1, 1_700_000_000
    rows["kind"] = Kind.FILE
    rows["kind"][:directories], rows["mode"][:directories] = Kind.DIRECTORY, 0o755
    links = np.arange(directories, inodes)[::_FANOUT]
    rows["kind"][links], rows["target"][links] = Kind.SYMLINK, np.arange(len(links))
    rows["xattrs"][directories + 5 :: 40] = 0
    is_file = rows["kind"] == Kind.FILE
    rows["extents"][is_file] = [1 + int(rng.random() ** 4 * 5) for _ in range(int(is_file.sum()))]
    ends = np.cumsum(rows["extents"].astype("i8"))
    rows["extent"] = ends - rows["extents"]
    extents = np.zeros(int(ends[-1]), EXTENT)
    extents["number"] = np.arange(1, len(extents) + 1)
    extents["length"] = [rng.randint(100, 100_000) for _ in range(len(extents))]
    total = np.concatenate([[0], np.cumsum(extents["length"], dtype="i8")])
    rows["size"][is_file] = (total[ends] - total[ends - rows["extents"]])[is_file]

    numbers = np.arange(1, inodes)
    parents = np.where(
        numbers < directories, numbers // _FANOUT, (numbers - directories) % directories
    )
    names = [b"%0*x" % (rng.randint(4, 24), number) for number in numbers.tolist()]
    order = sorted(range(inodes - 1), key=lambda at: (int(parents[at]), names[at]))
    tree = Tree(
        rows,
        parents[order].astype("u4"),
        numbers[order].astype("u4"),
        [names[at] for at in order],
        extents,
        [b"../lib/%d" % at for at in range(len(links))],
        [{b"security.capability": bytes(20)}],
    )
    spans = np.zeros(len(extents), SPAN)
    spans["decoded"], spans["encoded"] = extents["length"], extents["length"] // 2
    spans["address"] = np.cumsum(spans["encoded"], dtype="u8") - spans["encoded"]
    return tree, spans


@pytest.mark.parametrize("name", ["direct", "metadata", "data", "baseline/copy", "read back"])
def test_write(benchmark: Any, name: str) -> None:
    case = cases()[name]
    benchmark.group = "erofs"
    benchmark.pedantic(case.call, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["bytes"] = case.size


def main() -> None:
    inodes = int(sys.argv[1]) if len(sys.argv) > 1 else INODES
    for name, case in cases(inodes).items():
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            case.call()
            times.append(time.perf_counter() - start)
        line = {
            "bench": "erofs",
            "case": name,
            "median_ms": round(median(times) * 1000, 2),
            "min_ms": round(min(times) * 1000, 2),
            "inodes": inodes,
            "bytes": case.size,
            "bytes_per_inode": round(case.size / inodes, 1),
            "rounds": ROUNDS,
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
