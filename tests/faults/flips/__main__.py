"""Every byte: `make flips`.

    python -m tests.faults.flips [--jobs N] [--every N] [--seed N] [--write]

`--every` takes one byte of so many; `--write` puts the table into docs/durability.md. Exit code 1: a violation.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.flips.flipping import FILES, Flips, Outcome, flip_all, make_world

if TYPE_CHECKING:
    from collections.abc import Mapping

_DOCUMENT = Path(__file__).parents[3] / "docs" / "durability.md"
_BEGIN, _END = "<!-- flips: begin -->\n", "<!-- flips: end -->\n"
_MEMORY = Path("/dev/shm")


def _table(found: Flips, sizes: Mapping[str, int]) -> str:
    lines = [
        "| file | bytes | flipped | noticed and healed | a read ended by a signal | without meaning | violations |",
        "|---|---|---|---|---|---|---|",
    ]
    good = (Outcome.HEALED, Outcome.ENDED, Outcome.SILENT)
    for name in (*FILES, ""):
        counts: Counter[Outcome] = Counter()
        for (file, outcome), count in found.counts.items():
            counts[outcome] += count if name in ("", file) else 0
        numbers = [
            sum(size for file, size in sizes.items() if name in ("", file)),
            counts.total(),
            *(counts[outcome] for outcome in good),
            sum(count for outcome, count in counts.items() if outcome not in good),
        ]
        cells = [f"`{name}`" if name else "**all**", *(f"{number:,}" for number in numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        world = make_world(Path(folder))
        flips = world.flips(options.every, options.seed)
        sizes = Counter(flip.file for flip in world.flips())
        found = flip_all(world, flips, Path(folder), options.jobs)
    table = _table(found, sizes)
    print(table)
    print(f"{time.monotonic() - begin:.0f} s")
    for flip, words in found.violations[:50]:
        print(f"{flip}: {words[:500]}")
    if options.write:
        before, rest = _DOCUMENT.read_text().split(_BEGIN)
        _DOCUMENT.write_text(before + _BEGIN + table + _END + rest.split(_END)[1])
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
