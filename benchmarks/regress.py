"""Is this run faster or slower than that one? Reads two files of JSON lines that benchmarks wrote.

    python -m benchmarks.regress OLD NEW [--fail-over PERCENT]

Results are joined by benchmark, result, subject and corpus. A change counts only when the two ranges (least to most)
of wall time do not touch, and less than three rounds have a range of 10 % at least; with --fail-over, the exit code is 1 when such a change is slower, or disk has grown, by more.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__: list[str] = []

_Key = tuple[str, ...]


def main(arguments: Sequence[str]) -> int:
    """Print the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(prog="regress", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--fail-over", type=float, metavar="PERCENT")
    options = parser.parse_args(arguments)
    old, new = _read(options.old), _read(options.new)
    worst = 0.0
    print(f"{'result':44}{'old s':>9}{'new s':>9}{'time':>9}{'disk':>9}")
    for key in sorted(old.keys() & new.keys()):
        before, after = old[key], new[key]
        is_clear = _is_clear(before, after)
        time = _change(before["median_s"], after["median_s"])
        disk = _change(before.get("disk_bytes", 0), after.get("disk_bytes", 0))
        worst = max(worst, time if is_clear else 0.0, disk)
        print(
            f"{' '.join(key[1:]):44}{before['median_s']:9.2f}{after['median_s']:9.2f}"
            f"{time:+8.1f}%{disk:+8.1f}%{'' if is_clear else '   (within the noise)'}"
        )
    for key in sorted(old.keys() ^ new.keys()):
        print(f"{' '.join(key[1:]):44}only in {'the old' if key in old else 'the new'}")
    return 1 if options.fail_over is not None and worst > options.fail_over else 0


def _read(path: Path) -> dict[_Key, dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    names = ("bench", "result", "subject", "corpus")
    return {
        tuple(str(record.get(name, "")) for name in names): record
        for record in records
        if "median_s" in record
    }


def _is_clear(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether the ranges of two results are apart."""
    ranges = []
    for record in (before, after):
        slack = 0.05 * record["median_s"] if record["rounds"] < 3 else 0.0
        ranges.append((record["min_s"] - slack, record["max_s"] + slack))
    (low, high), (new_low, new_high) = ranges
    return bool(new_low > high or new_high < low)


def _change(before: float, after: float) -> float:
    """Percent."""
    return 100 * (after / before - 1) if before else 0.0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
