"""What does a fleet of near-identical environment images cost, and what does one more?

Unit: bytes on disk as `du` counts, seconds of wall time. Baseline: what overlay2 keeps, the files of each layer once in
4 KiB blocks. Images come in one by one, in the order of the lock: each by a call of its own on an open store,
so that a process's start is not in the figure of one more image.

    python -m benchmarks.bench_fleet FLEET [--run] [--work FOLDER] [--json FILE]

FLEET comes from `tools/build_fleet.py`. With --run (root), every image is mounted, and its own Python imports its
project there (chroot): the versions must be those of the lock.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import layerstore
from benchmarks.corpora import Corpus, open_corpus
from benchmarks.measure import commit, disk_bytes, machine
from tools.build_fleet import read_lock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.api import LayerStore
    from tools.build_fleet import FleetImage

__all__: list[str] = []

_PROJECT = Path(__file__).resolve().parent.parent
_LOCK = _PROJECT / "tools/fleet.lock"
_WORKS = "import importlib.metadata as m, {0}; print(m.version('{0}'))"


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code is 1 when an image's Python did not work."""
    parser = argparse.ArgumentParser(
        prog="bench_fleet", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("fleet", type=Path)
    parser.add_argument("--run", action="store_true", help="mount each image and run its Python")
    parser.add_argument("--work", type=Path, help="where the store goes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    corpus = open_corpus(options.fleet.resolve())
    images = [image for image in read_lock(_LOCK.read_text()) if image.name in _names(corpus)]
    with tempfile.TemporaryDirectory(prefix="fleet-", dir=options.work) as name:
        root = Path(name) / "store"
        with layerstore.open(root) as store:
            added = _load(store, corpus, images)
            failures = _run_all(store, images, Path(name) / "root") if options.run else []
        disk = disk_bytes(root) if not options.run else store_bytes(root)
    result = _figures(corpus, added, disk)
    result["python_ran"] = len(images) - len(failures) if options.run else None
    result["failures"] = failures
    _print(result)
    if options.json:
        options.json.write_text(json.dumps({**result, "images_added": added}, indent=1) + "\n")
    return 1 if failures else 0


def store_bytes(root: Path) -> int:
    """Bytes of the store without what mounting has made beside it, which is a cache."""
    return disk_bytes(root) - sum(
        disk_bytes(root / name) for name in ("images", "objects") if (root / name).is_dir()
    )


def _names(corpus: Corpus) -> set[str]:
    return {image.name for image in corpus.images}


def _load(store: LayerStore, corpus: Corpus, images: Sequence[FleetImage]) -> list[dict[str, Any]]:
    layouts = {image.name: image.layout for image in corpus.images}
    added = []
    for image in images:
        start = time.perf_counter()
        report = store.load(layouts[image.name], name=image.name)
        seconds = time.perf_counter() - start
        added.append({"name": image.name, "bytes": report.new_bytes, "seconds": round(seconds, 4)})
        print(
            f"  {image.name:28} {report.new_bytes / 1e6:8.2f} MB {seconds:7.2f} s", file=sys.stderr
        )
    return added


def _run_all(store: LayerStore, images: Sequence[FleetImage], target: Path) -> list[str]:
    """Mount each image and import its project with its Python; returns what did not work."""
    target.mkdir()
    failures = []
    for image in images:
        code = _WORKS.format(image.project)
        with store.mount(image.name, target):
            done = subprocess.run(
                ["chroot", str(target), "/opt/testbed/bin/python", "-B", "-c", code],
                env={"PATH": "/usr/sbin:/usr/bin:/bin"},
                capture_output=True,
                text=True,
                check=False,
            )
        if done.stdout.strip() != image.version:
            failures.append(f"{image.name}: {done.stdout}{done.stderr[-500:]}")
    return failures


def _figures(corpus: Corpus, added: Sequence[dict[str, Any]], disk: int) -> dict[str, Any]:
    overlay2 = corpus.unpacked_bytes()
    late = added[len(added) // 2 :]
    return {
        "bench": "fleet",
        "images": len(added),
        "unique_layers": len(corpus.unique_layers()),
        "tar_bytes": corpus.tar_bytes(),
        "overlay2_bytes": overlay2,
        "disk_bytes": disk,
        "ratio": round(overlay2 / disk, 2),
        "ingest_s": round(sum(image["seconds"] for image in added), 2),
        "one_more_bytes": median(image["bytes"] for image in late),
        "one_more_s": median(image["seconds"] for image in late),
        "commit": commit(_PROJECT),
        "machine": machine(),
    }


def _print(result: dict[str, Any]) -> None:
    print(
        f"{result['images']} images, {result['unique_layers']} layers; as overlay2 keeps them "
        f"{result['overlay2_bytes'] / 1e6:,.0f} MB, store {result['disk_bytes'] / 1e6:,.0f} MB: "
        f"1/{result['ratio']}\n"
        f"all loaded in {result['ingest_s']:.1f} s; one more (median of the later half): "
        f"{result['one_more_bytes'] / 1e6:.2f} MB, {result['one_more_s']:.2f} s"
    )
    if result["python_ran"] is not None:
        print(f"mounted and ran their Python: {result['python_ran']}")
    for failure in result["failures"]:
        print(failure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
