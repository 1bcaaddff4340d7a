"""How fast is an image there, and how fast is it read, beside other ways to show the same files?

Unit: seconds of wall time, and ratios to the same work on plain files (ext4) in the same round: below 1 is faster for
times, all ratios here are of times. Medians of some rounds; in each, everything is done once for everybody before the
next thing begins, so that what else the machine does meets all alike.

    first ls      mount (or unpack) until the root is listed; `first` has nothing of the image's prepared, `again` has
    find, stat, sequential, random    see `reading`

cold: the filesystem is mounted afresh, and the kernel has dropped pages, names and inodes. warm: the same once more.

    python -m benchmarks.bench_mount [--corpus FOLDER] [--image NAME] [--rounds 5] [--only erofs,ext4] [--json FILE]

Needs root. Prints tables; FILE gets one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.corpora import CorpusImage, add_image_options, chosen_image
from benchmarks.filesystems import (
    BASELINE,
    DRIVERS,
    Containerd,
    Filesystem,
    drop_caches,
    image_filesystems,
)
from benchmarks.measure import commit, machine
from benchmarks.reading import jobs_for, load_programs
from layerstore.api import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from layerstore.api import LayerStore

__all__: list[str] = []

_PROJECT = Path(__file__).resolve().parent.parent
_NAMES = (BASELINE, "overlayfs", *DRIVERS, "squashfs", "mkfs.erofs")
_MOUNTS = 20  # warm mounts of each driver in a round


@dataclass(slots=True)
class _Times:
    """Seconds by (what, how, who), one for each round."""

    seconds: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)

    def add(self, what: str, how: str, who: str, seconds: float) -> None:
        self.seconds.setdefault((what, how, who), []).append(seconds)
        print(f"  {what:10} {how:5} {who:10} {seconds:9.4f} s", file=sys.stderr, flush=True)

    def records(self) -> Iterator[dict[str, Any]]:
        for (what, how, who), own in self.seconds.items():
            base = self.seconds.get((what, how, BASELINE), [])
            ratios = [mine / its for mine, its in zip(own, base, strict=False)]
            yield {
                "bench": "mount",
                "result": f"{what} {how}",
                "subject": who,
                "rounds": len(own),
                "median_s": round(median(own), 6),
                "min_s": round(min(own), 6),
                "max_s": round(max(own), 6),
                "x_ext4": round(median(ratios), 3) if ratios else None,
            }


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit code."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="layerstore-bench-", dir=options.work) as name:
        folder = Path(name)
        image = chosen_image(options, folder)
        times = _Times()
        box = machine()
        with open_store(folder / "store") as store:
            reference = store.load(image.archive or image.layout).images[0].names[0]
            facts = _facts(store, reference)
            if options.starts:
                _measure_starts(store, reference, image, folder, options, times)
            with image_filesystems(store, reference, image, folder, options.only) as found:
                ways, absent = found
                jobs = jobs_for(store, reference)
                for number in range(options.rounds):
                    _measure_reads(ways, jobs, folder, times, number)
                for target in [mount.target for mount in store.mounts()]:
                    store.umount(target)
        context = {
            "image": image.name,
            **facts,
            "notes": {way.name: way.note for way in ways if way.note},
            "absent": absent,
            "commit": commit(_PROJECT),
            "machine": {**box, "load_average_end": round(os.getloadavg()[0], 2)},
        }
    records = list(times.records())
    _print_report(records, context)
    if options.json:
        lines = [json.dumps({**record, **context}) + "\n" for record in records]
        options.json.write_text("".join(lines))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench_mount", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_image_options(parser)
    parser.add_argument("--only", default=",".join(_NAMES), help=f"some of {','.join(_NAMES)}")
    parser.add_argument("--rounds", type=int, default=5, help="of each thing (5)")
    parser.add_argument(
        "--no-starts", dest="starts", action="store_false", help="measure no first ls"
    )
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(_NAMES):
        parser.error(f"no such filesystems: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("mounting, and dropping caches, needs root")
    return options


def _facts(store: LayerStore, reference: str) -> dict[str, int]:
    tree = store.view(reference).tree
    return {"inodes": len(tree), "file_bytes": int(tree.inodes["size"].sum())}


# How long until the first `ls`?


def _measure_starts(
    store: LayerStore,
    reference: str,
    image: CorpusImage,
    folder: Path,
    options: argparse.Namespace,
    times: _Times,
) -> None:
    for _ in range(options.rounds):
        for driver in [name for name in options.only if name in DRIVERS]:
            _start_driver(store, reference, folder, driver, times)
        if "overlayfs" in options.only and shutil.which("containerd") is not None:
            _start_containerd(image, folder, times)
    if shutil.which("umoci") is not None:
        command = [
            "umoci",
            "unpack",
            "--image",
            f"{image.layout}:{_tag(image)}",
            str(folder / "bundle"),
        ]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        _ls(folder / "bundle" / "rootfs")
        times.add("first ls", "first", "umoci", time.perf_counter() - start)
        shutil.rmtree(folder / "bundle")


def _start_driver(
    store: LayerStore, reference: str, folder: Path, driver: str, times: _Times
) -> None:
    """With none of the images that layerstore makes, then with them."""
    target = folder / "start"
    target.mkdir(exist_ok=True)

    def start() -> float:
        begin = time.perf_counter()
        with store.mount(reference, target, driver=driver):
            _ls(target)
            return time.perf_counter() - begin

    for name in ("images", "objects"):
        shutil.rmtree(store.store.layout.root / name, ignore_errors=True)
    times.add("first ls", "first", driver, start())
    repeats = 1 if driver == "checkout" else _MOUNTS
    times.add("first ls", "again", driver, median(start() for _ in range(repeats)))


def _start_containerd(image: CorpusImage, folder: Path, times: _Times) -> None:
    """Unpacking an image that was imported without, and preparing a snapshot; then preparing once more."""
    place = folder / "start"
    with Containerd.running(folder / "starting") as containerd:
        name = containerd.load(image, unpack=False)
        for how in ("first", "again"):
            start = time.perf_counter()
            with containerd.show(name, place, rw=True):
                _ls(place)
                times.add("first ls", how, "ctr", time.perf_counter() - start)
    shutil.rmtree(folder / "starting")


def _ls(root: Path) -> None:
    with os.scandir(root) as entries:
        next(entries)


def _tag(image: CorpusImage) -> str:
    index = json.loads((image.layout / "index.json").read_bytes())
    tag: str = index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"]
    return tag


# How fast is it read?


def _measure_reads(
    ways: Sequence[Filesystem],
    jobs: Mapping[str, Callable[[Path], None]],
    folder: Path,
    times: _Times,
    number: int,
) -> None:
    """One round; who is first changes from round to round."""
    turn = number % len(ways)
    for what, job in jobs.items():
        for way in (*ways[turn:], *ways[:turn]):
            with way.show() as root:
                drop_caches()
                load_programs(folder)
                times.add(what, "cold", way.name, _timed(job, root))
                times.add(what, "warm", way.name, _timed(job, root))


def _timed(job: Callable[[Path], None], root: Path) -> float:
    start = time.perf_counter()
    job(root)
    return time.perf_counter() - start


def _print_report(records: Sequence[dict[str, Any]], context: dict[str, Any]) -> None:
    box = context["machine"]
    print(f"{box['cpu']}, {box['cores']} cores, Linux {box['kernel']}; commit {context['commit']}")
    print(f"load average {box['load_average']} at the start, {box['load_average_end']} at the end")
    size = context["file_bytes"]
    print(f"image {context['image']}: {context['inodes']} inodes, {size / 1e6:.0f} MB")
    for name, note in {**context["notes"], **context["absent"]}.items():
        print(f"  {name}: {note}")
    by_place = {(record["result"], record["subject"]): record for record in records}
    subjects = list(dict.fromkeys(record["subject"] for record in records))
    results = list(dict.fromkeys(record["result"] for record in records))
    starts = [name for name in results if name.startswith("first ls")]
    print("\n| ms until the first `ls` | first | again |\n|---|---|---|")
    for subject in subjects:
        cells = [by_place.get((name, subject)) for name in starts]
        if any(cells):
            shown = [f"{cell['median_s'] * 1e3:.1f}" if cell else "-" for cell in cells]
            print(f"| {subject} | {' | '.join(shown)} |")
    reads = [name for name in results if name not in starts]
    print(f"\n| time, x ext4 | {' | '.join(reads)} |\n|---|{'---|' * len(reads)}")
    for subject in subjects:
        cells = [by_place.get((name, subject)) for name in reads]
        if any(cells):
            print(f"| {subject} | {' | '.join(map(_cell, cells))} |")


def _cell(record: dict[str, Any] | None) -> str:
    """The ratio; of the baseline, what it stands for."""
    if record is None:
        return "-"
    if record["subject"] == BASELINE or record["x_ext4"] is None:
        return f"{record['median_s'] * 1e3:.0f} ms"
    return f"{record['x_ext4']:.2f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
