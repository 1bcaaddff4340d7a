"""Are files that were read before read as fast through a mount as plain files are?

Unit: time over that of plain files (ext4) in the same round; wall and processor (user and system, of the reader). All are
mounted at once and read once; then come rounds, each doing everything once for everybody, the order turned around from
one to the next, until there were `--rounds` or, after at least 15, the time is over. Each ratio is the median over the
rounds, with the two that hold the true median in 95 of 100 cases (order statistics; no law of noise is assumed), and that of the fastest
runs. The answer is `yes` or `no` where that whole interval lies on one side of the aim, and `unclear` where it does not.

    python -m benchmarks.bench_warm [--corpus FOLDER] [--image NAME] [--rounds 31] [--seconds 75] [--only ext4,erofs,fuse]

Needs root. Run nothing beside it. Prints a table; --json FILE gets one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from contextlib import ExitStack
from math import comb
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.corpora import add_image_options, chosen_image
from benchmarks.filesystems import BASELINE, DRIVERS, image_filesystems
from benchmarks.measure import commit, machine
from benchmarks.reading import jobs_for, load_programs
from layerstore.api import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__: list[str] = []

_PROJECT = Path(__file__).resolve().parent.parent
_LEAST_ROUNDS = 15
_LIKELY = 0.95
# The speed to reach, as a share of ext4's.
_AIMS = {("erofs", "sequential"): 0.95, ("erofs", "random"): 0.95} | {
    ("fuse", what): 0.9 for what in ("sequential", "random")
}


class _Run(NamedTuple):
    wall_s: float
    cpu_s: float


_Runs = dict[tuple[str, str], list[_Run]]  # by job and filesystem, one for each round


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit code."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="layerstore-bench-", dir=options.work) as name:
        folder = Path(name)
        image = chosen_image(options, folder)
        with open_store(folder / "store") as store:
            reference = store.load(image.archive or image.layout).images[0].names[0]
            jobs = jobs_for(store, reference)
            with image_filesystems(store, reference, image, folder, options.only) as (ways, absent):
                load_programs(folder)
                with ExitStack() as stack:
                    roots = {way.name: stack.enter_context(way.show()) for way in ways}
                    runs = _measure(jobs, roots, options.rounds, options.seconds)
            for mount in store.mounts():
                mount_target = mount.target
                store.umount(mount_target)
    records = [record for place in runs if (record := _record(runs, *place)) is not None]
    context = {
        "image": image.name,
        "absent": absent,
        "commit": commit(_PROJECT),
        "machine": machine(),
    }
    _print_report(records, context)
    if options.json:
        options.json.write_text("".join(json.dumps({**one, **context}) + "\n" for one in records))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench_warm", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_image_options(parser)
    parser.add_argument(
        "--only", default="ext4,overlayfs,erofs,objects,fuse", help="ext4 and some others"
    )
    parser.add_argument("--rounds", type=int, default=31, help="at most (31)")
    parser.add_argument(
        "--seconds", type=float, default=75, help=f"for the rounds; {_LEAST_ROUNDS} there are (75)"
    )
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if BASELINE not in options.only or not set(options.only) & set(DRIVERS):
        parser.error(f"--only needs {BASELINE} and one of {', '.join(DRIVERS)}")
    if os.geteuid() != 0:
        parser.error("mounting needs root")
    return options


def _measure(
    jobs: dict[str, Callable[[Path], None]], roots: dict[str, Path], rounds: int, seconds: float
) -> _Runs:
    for what in jobs:  # brings everything into memory
        for root in roots.values():
            jobs[what](root)
    runs: _Runs = {(what, who): [] for what in jobs for who in roots}
    end = time.monotonic() + seconds
    order = list(roots)
    for number in range(rounds):
        if number >= _LEAST_ROUNDS and time.monotonic() > end:
            break
        for what, job in jobs.items():
            for who in order:
                runs[what, who].append(_timed(job, roots[who]))
        order = order[1:] + order[:1] if number % 2 else order[::-1]
    return runs


def _timed(job: Callable[[Path], None], root: Path) -> _Run:
    cpu, start = _processor_s(), time.perf_counter()
    job(root)
    return _Run(time.perf_counter() - start, _processor_s() - cpu)


def _processor_s() -> float:
    """Of this process and those that it waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def _record(runs: _Runs, what: str, who: str) -> dict[str, Any] | None:
    own, base = runs[what, who], runs[what, BASELINE]
    ratios = sorted(mine.wall_s / its.wall_s for mine, its in zip(own, base, strict=True))
    low, high = _interval(ratios)
    record = {
        "bench": "warm",
        "result": what,
        "subject": who,
        "rounds": len(own),
        "median_s": round(median(run.wall_s for run in own), 6),
        "min_s": round(min(run.wall_s for run in own), 6),
        "cpu_s": round(median(run.cpu_s for run in own), 6),
        "x": round(median(ratios), 3),
        "x_low": round(low, 3),
        "x_high": round(high, 3),
        "x_min": round(min(r.wall_s for r in own) / min(r.wall_s for r in base), 3),
        "x_cpu": round(median(r.cpu_s for r in own) / median(r.cpu_s for r in base), 3),
    }
    if (who, what) in _AIMS:
        most = 1 / _AIMS[who, what]
        record["aim_x"] = round(most, 3)
        record["reached"] = "yes" if high <= most else "no" if low > most else "unclear"
    return record


def _interval(ordered: Sequence[float]) -> tuple[float, float]:
    """The narrowest two order statistics, as far from either end, between which the median of all lies as likely."""
    count = len(ordered)
    for at in range((count - 1) // 2, 0, -1):
        if 1 - 2 * sum(comb(count, k) for k in range(at + 1)) / 2**count >= _LIKELY:
            return ordered[at], ordered[count - 1 - at]
    return ordered[0], ordered[-1]


def _print_report(records: Sequence[dict[str, Any]], context: dict[str, Any]) -> None:
    box = context["machine"]
    print(f"{box['cpu']}, {box['cores']} cores, Linux {box['kernel']}; commit {context['commit']}")
    print(f"image {context['image']}, load average {os.getloadavg()[0]:.2f} at the end")
    print("\n| | rounds | ms | x ext4 | 95 % | fastest | processor | aim | reached |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    for one in records:
        print(
            f"| {one['result']}, {one['subject']} | {one['rounds']} | {one['median_s'] * 1e3:.1f} | {one['x']:.2f} | "
            f"{one['x_low']:.2f} to {one['x_high']:.2f} | {one['x_min']:.2f} | {one['x_cpu']:.2f} | "
            f"{one.get('aim_x', '')} | {one.get('reached', '')} |"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
