"""How fast do images come in, how much disk do they take, and what do other programs do with the same images?

Unit: MB/s, 10**6 bytes of unique layer tars for each second of wall time, from the start of a fresh process to its
end, into a fresh store, everything durable; the median of some rounds. Disk is what `du` counts, every file included.

Baselines: the two-core bound, what the stages of ingest cost alone divided by the number of cores (stages.py); `cp` and
`zstd -3` of the layer tars; and the programs of peers.py, in the same rounds on the same warm files.

    python -m benchmarks.bench_ingest [--corpus FOLDER] [--peers all|none|restic,ctr,...] [--json FILE]

Prints a table; FILE gets one JSON object a line, for `benchmarks.regress`. The corpus is --corpus, else
$LAYERSTORE_CORPUS, else a small synthetic one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.corpora import Corpus, extract_layers, open_corpus
from benchmarks.measure import Cost, Samples, commit, cores, disk_bytes, machine, run, warm
from benchmarks.peers import GZIP, PEERS, PLAIN, Inputs, layout_tars

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__: list[str] = []

# What takes layers in as a stream, and two baselines; compare.py has everybody.
_BESIDE = ("ctr", "umoci", "restic", "borg-lz4", "borg-zstd", "casync", "zstd", "cp")
_PROJECT = Path(__file__).resolve().parent.parent


@dataclass(slots=True)
class _Result:
    """One line of the report: something that was done to `size` bytes."""

    name: str
    subject: str
    size: int
    samples: Samples = field(default_factory=Samples)
    notes: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        figures = self.samples.figures()
        rate = self.size / figures["median_s"] / 1e6
        return {
            "bench": "ingest",
            "result": self.name,
            "subject": self.subject,
            **figures,
            "bytes": self.size,
            "mb_per_s": round(rate, 1),
            **self.notes,
        }


@dataclass(slots=True)
class _Bench:
    """The run: where things are, and the results so far by (name, subject)."""

    corpus: Corpus
    source: Path
    folder: Path
    rounds: int
    results: dict[tuple[str, str], _Result] = field(default_factory=dict)

    def add(self, name: str, subject: str, size: int, cost: Cost, **notes: Any) -> None:
        result = self.results.setdefault((name, subject), _Result(name, subject, size))
        result.samples.costs.append(cost)
        result.notes.update(notes)
        print(f"  {name:12} {subject:18} {cost.wall_s:8.2f} s", file=sys.stderr, flush=True)

    def worker(self, *arguments: str | Path) -> dict[str, Any]:
        """Ask a worker something that is not measured, so that this process stays small (see measure.py)."""
        command = [sys.executable, "-m", "benchmarks.worker", *map(str, arguments)]
        done = subprocess.run(
            command, env={**os.environ, **_path()}, check=True, capture_output=True
        )
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    def layerstore(
        self, name: str, kernels: str, size: int, arguments: Sequence[str | Path]
    ) -> dict[str, Any]:
        """Run one operation of layerstore in a worker, and keep what it cost; returns what it said."""
        command = [sys.executable, "-m", "benchmarks.worker", *map(str, arguments)]
        cost = run([command], {"LAYERSTORE_KERNELS": kernels, **_path()}, self.folder)
        said: dict[str, Any] = json.loads(cost.output)
        cost = Cost(cost.wall_s, cost.cpu_s, said.pop("peak_rss_bytes"), "")
        said["inner_s"] = said.pop("seconds")
        self.add(name, f"layerstore {kernels}", size or said["bytes"], cost, **said)
        return said


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit code."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="layerstore-bench-", dir=options.work) as name:
        folder = Path(name)
        source, corpus = _corpus(options.corpus, folder)
        bench = _Bench(corpus, source, folder, options.rounds)
        sizes = {
            "corpus": corpus.name,
            "images": len(corpus.images),
            "unique_layers": len(corpus.unique_layers()),
            "tar_bytes": corpus.tar_bytes(),
            "gzip_bytes": corpus.gzip_bytes(),
            "unpacked_bytes": bench.worker("unpacked", source)["bytes"],
        }
        box = machine()
        context = {**sizes, "commit": commit(_PROJECT), "machine": box}
        bound = _run_stages(bench, options.kernels[0])
        absent = _run_rounds(bench, options)
        box["load_average_end"] = round(os.getloadavg()[0], 2)
        records = [result.record() for result in bench.results.values()]
    _print_report(records, context, bound, absent)
    if options.json:
        lines = [{**record, **context} for record in records]
        lines.append({"bench": "ingest", "result": "bound", **bound, **context})
        lines += [
            {"bench": "ingest", "result": "absent", "subject": name, **context} for name in absent
        ]
        options.json.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench_ingest", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = os.environ.get("LAYERSTORE_CORPUS")
    parser.add_argument("--corpus", type=Path, default=Path(default) if default else None)
    parser.add_argument("--peers", default="all", help=f"all, none, or some of {','.join(_BESIDE)}")
    parser.add_argument("--rounds", type=int, default=3, help="of each thing (3)")
    parser.add_argument("--slow-rounds", type=int, default=1, help="of umoci, casync, pure kernels")
    parser.add_argument("--kernels", default="native,pure", help="to measure (native,pure)")
    parser.add_argument("--work", type=Path, help="where stores go; on the disk that is measured")
    parser.add_argument("--json", type=Path, help="one line for each result")
    options = parser.parse_args(arguments)
    options.kernels = options.kernels.split(",")
    chosen = {"all": list(_BESIDE), "none": []}.get(options.peers, options.peers.split(","))
    if unknown := set(chosen) - set(_BESIDE):
        parser.error(f"no such peers: {', '.join(sorted(unknown))}")
    options.peers = chosen
    if not _native_loads():
        print("the native kernels do not load: only the pure ones are measured", file=sys.stderr)
        options.kernels = ["pure"]
    return options


def _path() -> dict[str, str]:
    """The environment in which workers, which run elsewhere, find this project."""
    paths = [str(_PROJECT), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _native_loads() -> bool:
    probe = [sys.executable, "-c", "import layerstore"]
    environment = {**os.environ, "LAYERSTORE_KERNELS": "native", "PYTHONPATH": str(_PROJECT)}
    return not subprocess.run(probe, env=environment, capture_output=True, check=False).returncode


def _corpus(given: Path | None, folder: Path) -> tuple[Path, Corpus]:
    if given is not None:
        return given.resolve(), open_corpus(given.resolve())
    source = folder / "synthetic"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.corpora", str(source)], check=True, cwd=_PROJECT
    )
    return source, open_corpus(source)


def _run_stages(bench: _Bench, kernels: str) -> dict[str, Any]:
    """The bound: processor seconds of the stages, over the cores, for gzip and for plain layers."""
    warm(image.layout for image in bench.corpus.images)
    said = bench.layerstore(
        "stages", kernels, bench.corpus.tar_bytes(), ["stages", bench.folder, bench.source]
    )
    del bench.results["stages", f"layerstore {kernels}"]
    seconds = {name: stage["cpu_s"] for name, stage in said["stages"].items()}
    plain = sum(seconds[name] for name in ("sha256 tar", "cut+hash", "zstd-3", "write"))
    plain += seconds["read"] * bench.corpus.tar_bytes() / bench.corpus.gzip_bytes()
    return {
        "subject": f"layerstore {said['kernels']}",
        "simd": said["simd"],
        "cores": cores(),
        "stages": said["stages"],
        "gzip_cpu_s": round(sum(seconds.values()), 3),
        "gzip_bound_s": round(sum(seconds.values()) / cores(), 3),
        "plain_cpu_s": round(plain, 3),
        "plain_bound_s": round(plain / cores(), 3),
    }


def _run_rounds(bench: _Bench, options: argparse.Namespace) -> list[str]:
    """Everything in turns, so that what else the machine does meets all alike; returns who is absent."""
    versions = {name: PEERS[name].found_version() for name in options.peers}
    present = [name for name, version in versions.items() if version is not None]
    needs_tars = any(PEERS[name].source == PLAIN for name in present)
    inputs = Inputs(
        bench.corpus,
        extract_layers(bench.corpus, bench.folder / "tars") if needs_tars else {},
        layout_tars(bench.corpus, bench.folder / "layouts") if "ctr" in present else {},
    )
    for number in range(max(options.rounds, options.slow_rounds)):
        for kernels in options.kernels:
            if number < (options.slow_rounds if kernels == "pure" else options.rounds):
                _run_layerstore(bench, kernels)
        for name in present:
            if number < (options.slow_rounds if PEERS[name].is_slow else options.rounds):
                _run_peer(bench, name, inputs, str(versions[name]))
    return [name for name, version in versions.items() if version is None]


def _run_layerstore(bench: _Bench, kernels: str) -> None:
    """Both loads into fresh stores; on the first, the operations that need a full store."""
    images = bench.corpus.images
    size = bench.corpus.tar_bytes()
    store = bench.folder / "store"
    archives = [image.archive or image.layout for image in images]
    warm(archives)
    bench.layerstore("load plain", kernels, size, ["load", store, *archives])
    _put_disk(bench, ("load plain", f"layerstore {kernels}"), store)
    shutil.rmtree(store)

    layouts = [image.layout for image in images]
    zstd = [image.zstd_layout for image in images if image.zstd_layout is not None]
    warm([*layouts, *zstd])
    bench.layerstore("load gzip", kernels, size, ["load", store, *layouts])
    _put_disk(bench, ("load gzip", f"layerstore {kernels}"), store)
    bench.layerstore("load again", kernels, size, ["load", store, *layouts])
    if zstd:
        twins = [image for image in images if image.zstd_layout is not None]
        layers = {layer.diff_id: layer.tar_size for image in twins for layer in image.layers}
        bench.layerstore("load zstd", kernels, sum(layers.values()), ["load", store, *zstd])
    bench.layerstore("verify", kernels, 0, ["verify", store])
    bench.layerstore("save", kernels, 0, ["save", store, bench.folder / "saved.tar"])
    (bench.folder / "saved.tar").unlink()
    shutil.rmtree(store)


def _put_disk(bench: _Bench, key: tuple[str, str], store: Path) -> None:
    bench.results[key].notes["disk_bytes"] = disk_bytes(store)


def _run_peer(bench: _Bench, name: str, inputs: Inputs, version: str) -> None:
    peer = PEERS[name]
    folder = bench.folder / name
    folder.mkdir()
    environment = peer.prepare(folder)
    warm(inputs.paths(peer.source))
    with ExitStack() as stack:
        daemons = stack.enter_context(peer.running(folder))
        commands = peer.add(inputs, folder, inputs.corpus.images)
        cost = run(commands, environment, folder, daemons)
    shown = " ".join(commands[0]).replace(str(bench.folder), "WORK")
    bench.add(
        f"load {peer.source}",
        name,
        bench.corpus.tar_bytes(),
        Cost(cost.wall_s, cost.cpu_s, cost.peak_rss, ""),
        disk_bytes=disk_bytes(folder / peer.store),
        version=version,
        first_command=shown.replace(str(bench.source), "CORPUS")[:400],
        commands=len(commands),
    )
    shutil.rmtree(folder)


def _print_report(
    records: Sequence[dict[str, Any]],
    context: dict[str, Any],
    bound: dict[str, Any],
    absent: Sequence[str],
) -> None:
    box = context["machine"]
    print(f"\n{box['cpu']}, {box['cores']} cores, Linux {box['kernel']}, Python {box['python']}")
    print(f"load average {box['load_average']} at the start, {box['load_average_end']} at the end")
    print(
        f"corpus {context['corpus']}: {context['images']} images, {context['unique_layers']} layers; "
        f"tars {_mb(context['tar_bytes'])}, gzip {_mb(context['gzip_bytes'])}, "
        f"unpacked (overlay2) {_mb(context['unpacked_bytes'])} MB; commit {context['commit']}"
    )
    for source in (GZIP, PLAIN):
        _print_loads(records, context, bound, source)
    print("\nlayerstore, other operations              MB/s       s   least    cpu s   RSS MiB")
    for record in records:
        if record["result"] not in ("load gzip", "load plain"):
            extra = ""
            if "new_chunks" in record:
                extra = f"   {record['new_chunks']} new chunks, {record['inner_s']:.3f} s inside"
            print(f"{record['result']:14}{record['subject']:22}{_figures(record)}{extra}")
    print(f"\nstages alone, one thread ({bound['subject']}, {bound['simd']})   MB/s    cpu s")
    for name, stage in bound["stages"].items():
        print(f"  {name:38}{stage['mb_per_s']:10}{stage['cpu_s']:9.2f}")
    for record in records:
        if "version" in record:
            print(f"\n{record['subject']}: {record['version']}\n  {record['first_command']}")
            if record["commands"] > 1:
                print(f"  ... {record['commands']} commands")
    if absent:
        print(f"\nabsent here: {', '.join(absent)}")


def _print_loads(
    records: Sequence[dict[str, Any]], context: dict[str, Any], bound: dict[str, Any], source: str
) -> None:
    print(
        f"\nload, {source} layers                        MB/s       s   least    cpu s   RSS MiB   disk MB"
    )
    for record in records:
        if record["result"] == f"load {source}":
            line = f"{record['subject']:36}{_figures(record)}{_mb(record['disk_bytes']):>10}"
            if record["subject"] == bound["subject"]:
                wall = record["median_s"] / bound[f"{source}_bound_s"]
                work = record["cpu_s"] / bound[f"{source}_cpu_s"]
                line += f"   {wall:.2f} x the bound, {work:.2f} x its processor time"
            print(line)
    limit = bound[f"{source}_bound_s"]
    unpacked, gzip = context["unpacked_bytes"], context["gzip_bytes"]
    for record in records:
        if record["result"] == f"load {source}" and record["subject"] == bound["subject"]:
            disk = record["disk_bytes"]
            print(
                f"  its store: {disk / gzip:.3f} of the gzip blobs, {disk / unpacked:.3f} of unpacked"
            )
    rate = context["tar_bytes"] / limit / 1e6
    cpu = bound[f"{source}_cpu_s"]
    print(f"{f'(bound on {cores()} cores)':36}{rate:10.1f}{limit:8.2f}{'':8}{cpu:9.2f}")


def _figures(record: dict[str, Any]) -> str:
    memory = record["peak_rss_bytes"] / (1 << 20)
    return (
        f"{record['mb_per_s']:10.1f}{record['median_s']:8.2f}{record['min_s']:8.2f}"
        f"{record['cpu_s']:9.2f}{memory:10.0f}"
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
