"""The full exploration: `make crash-states`.

    python -m tests.faults.crash [--jobs N] [--states N] [--bug BUG] [--write] [OPERATION …]

Without `--states` all of them are checked; `--write` puts the table into docs/durability.md. Exit code 1: a violation.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from tests.faults.crash.explore import Exploration, explore
from tests.faults.crash.operations import OPERATIONS
from tests.faults.crash.program import BUGS

_DOCUMENT = Path(__file__).parents[3] / "docs" / "durability.md"
_BUG_STATES = 60  # that are checked of `load` with each planted bug

_BEGIN, _END = "<!-- crash states: begin -->\n", "<!-- crash states: end -->\n"


def _table(found: list[Exploration], caught: dict[str, int]) -> str:
    rows = [
        f"| {one.name} | {one.steps:,} | {one.found:,} | {one.checked:,} | {len(one.violations)} |"
        for one in found
    ]
    checked, bad = sum(one.checked for one in found), sum(len(one.violations) for one in found)
    bugs = ", ".join(f"{name} ({count:,} states)" for name, count in caught.items())
    return "\n".join(
        [
            "| operation | recorded steps | different states | checked | violations |",
            "|---|---|---|---|---|",
            *rows,
            f"| **all** | | | **{checked:,}** | **{bad}** |",
            "",
            f"Planted bugs found: {sum(map(bool, caught.values()))} of {len(caught)} (in {_BUG_STATES} states of `load` each): {bugs}.",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("operations", nargs="*", metavar="OPERATION", default=list(OPERATIONS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--states", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bug", choices=list(BUGS), default="none")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    run = partial(explore, jobs=options.jobs, seed=options.seed)
    found = []
    for name in options.operations:
        one = run(OPERATIONS[name], states=options.states, bug=options.bug)
        found.append(one)
        print(
            f"{name}: {one.steps} steps, {one.checked} of {one.found} states, "
            f"{len(one.violations)} violations, {one.seconds:.0f} s",
            flush=True,
        )
        for violation in one.violations[:20]:
            print(f"    {violation.state}\n        {violation.problem}")
    if options.write:
        caught = {
            bug: len(run(OPERATIONS["load"], states=_BUG_STATES, bug=bug).violations)
            for bug in BUGS
            if bug != "none"
        }
        text = _DOCUMENT.read_text()
        before, rest = text.split(_BEGIN)
        after = rest.split(_END)[1]
        _DOCUMENT.write_text(before + _BEGIN + _table(found, caught) + _END + after)
    return 1 if any(one.violations for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
