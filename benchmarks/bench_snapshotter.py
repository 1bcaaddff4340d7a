"""What does containerd make of the same images with layerstore, and with its own overlayfs?

Unit: seconds on the clock, bytes of disk as `du` counts (the content store apart), bytes of page cache, calls a second.
Baseline: containerd's overlayfs, in a containerd of its own, in the same run.

    import      `ctr images import` of every docker-archive, one after another
    run         `ctr run … true`, the first time and again
    cache       pages of the images' files in memory, once ten containers have read all of their /usr
    rebased     the upper layers of an image on another base: bytes that they add
    calls       Stat, and Prepare with Remove, through containerd, by 1 and 8 callers in processes of their own
    pull        `ctr images pull` of every image from a registry on the loopback; with layerstore also by a client that
                asks what is there already, into a store that has the images from `layerstore load` (needs Go, and Debian's
                containerd-dev)

    python -m benchmarks.bench_snapshotter --corpus FOLDER [--only import,run] [--images a,b] [--json F] [--markdown F]

Needs root, containerd, runc, docker-registry and skopeo. What `run` to `calls` need, `import` makes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import empty_pb2

from benchmarks.corpora import Corpus, CorpusImage, open_corpus
from benchmarks.daemons import containerd, registry, unmount_below
from benchmarks.measure import commit, disk_bytes, machine
from layerstore.api import open_store
from layerstore.serve._proto import snapshots_pb2 as pb
from layerstore.serve.snapshotter import SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__: list[str] = []

_PROJECT = Path(__file__).resolve().parent.parent
_DEBIAN_GO = Path("/usr/share/gocode")
_STEPS = ("import", "run", "cache", "rebased", "calls", "pull")
_OVERLAYFS, _OURS = "overlayfs", "layerstore"
_RUNS = 5  # of each image
_CONTAINERS = 10
_CALLS = 400  # of each caller
_KEPT = {"containerd.io/gc.root": "bench"}  # else containerd collects what it has just made
_READ_USR = "find /usr -xdev -type f -exec cat {} + >/dev/null"


@dataclass(slots=True)
class _World:
    """A containerd with one snapshotter, and where it keeps things."""

    folder: Path
    snapshotter: str
    figures: dict[str, Any] = field(default_factory=dict)

    def ctr(self, *words: str | Path) -> str:
        return _run(["ctr", "-a", f"{self.folder}/c.sock", *words])

    def snapshot_bytes(self) -> int:
        """Bytes of disk of the snapshots, without blobs."""
        if self.snapshotter == _OURS:
            return disk_bytes(self.folder / "layers")
        return disk_bytes(self.folder / "root/io.containerd.snapshotter.v1.overlayfs")

    def lower_files(self) -> Iterator[Path]:
        """The files that the images' contents are read from."""
        if self.snapshotter == _OURS:
            folders = [self.folder / "layers/run/data"]
        else:
            folders = [self.folder / "root/io.containerd.snapshotter.v1.overlayfs/snapshots"]
        for folder in folders:
            for parent, _, names in os.walk(folder):
                paths = (Path(parent, name) for name in names)
                yield from (path for path in paths if path.is_file() and not path.is_symlink())

    def import_image(self, name: str, archive: Path) -> float:
        start = time.perf_counter()
        words = ["--snapshotter", self.snapshotter, "--digests=false", "--base-name", _name(name)]
        self.ctr("images", "import", *words, archive)
        return time.perf_counter() - start

    def run(self, image: str, key: str, *words: str) -> float:
        start = time.perf_counter()
        options = ["--rm", "--net-host", "--snapshotter", self.snapshotter]
        self.ctr("run", *options, f"{_name(image)}:latest", key, *words)
        return time.perf_counter() - start


def _name(image: str) -> str:
    return f"docker.io/corpus/{image}"


@contextmanager
def _world(folder: Path, snapshotter: str) -> Iterator[_World]:
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        stack.callback(unmount_below, folder)
        if snapshotter == _OURS:
            stack.enter_context(_service(folder))
        proxy = folder / "s.sock" if snapshotter == _OURS else None
        stack.enter_context(containerd(folder, folder / "root", proxy))
        yield _World(folder, snapshotter)


@contextmanager
def _service(folder: Path) -> Iterator[None]:
    """`layerstore serve snapshotter` on FOLDER/layers."""
    words = [sys.executable, "-m", "layerstore", "--root", f"{folder}/layers", "serve"]
    words += ["snapshotter", "--listen", f"unix://{folder}/s.sock", "--ready-fd"]
    read, write = os.pipe()
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [*words, str(write)], stdin=subprocess.DEVNULL, stderr=log, pass_fds=[write]
        )
    os.close(write)
    try:
        with os.fdopen(read, "rb") as ready:
            if ready.read() != b"\n":
                raise RuntimeError((folder / "service.log").read_text()[-2000:])
        yield
    finally:
        process.terminate()
        process.wait()


def _import(worlds: Sequence[_World], corpus: Corpus) -> None:
    """Every image in turn for all, so that what else the machine does meets all alike."""
    for world in worlds:
        world.figures["import_s"] = 0.0
    for image in corpus.images:
        for world in worlds:
            os.sync()  # what another one left to be written is not for this one to pay
            world.figures["import_s"] += world.import_image(image.name, _archive(image))
    for world in worlds:
        _settle(world)
        world.figures["snapshot_bytes"] = world.snapshot_bytes()


def _archive(image: CorpusImage) -> Path:
    if image.archive is None:
        raise ValueError(f"{image.name} has no docker-archive")
    return image.archive


def _time_runs(worlds: Sequence[_World], corpus: Corpus) -> None:
    for world in worlds:
        first, again = [], []
        for image in corpus.images:
            times = [world.run(image.name, f"run-{n}", "true") for n in range(1 + _RUNS)]
            first.append(times[0])
            again += times[1:]
        world.figures["run_first_s"] = median(first)
        world.figures["run_again_s"] = median(again)


def _fill_cache(worlds: Sequence[_World], corpus: Corpus) -> None:
    """Pages that ten containers of different images need: whoever shares files by content needs fewer."""
    images = [image.name for image in corpus.images][:_CONTAINERS]
    for world in worlds:
        options = ["--detach", "--net-host", "--snapshotter", world.snapshotter]
        for name in images:
            world.ctr("run", *options, f"{_name(name)}:latest", f"c-{name}", "sleep", "3600")
        os.sync()
        _forget(world)
        for name in images:
            world.ctr("task", "exec", "--exec-id", "read", f"c-{name}", "sh", "-c", _READ_USR)
        world.figures["cache_bytes"] = _resident(world)
        for name in images:
            world.ctr("task", "kill", "--signal", "SIGKILL", f"c-{name}")
            _until_gone(world, f"c-{name}")


def _until_gone(world: _World, container: str) -> None:
    for _ in range(100):
        try:
            world.ctr("task", "delete", container)
            break
        except RuntimeError:
            time.sleep(0.1)
    world.ctr("container", "delete", container)


def _forget(world: _World) -> None:
    """Drop the pages of the images' files, which unpacking has left in memory."""
    for path in world.lower_files():
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _resident(world: _World) -> int:
    """Bytes of the images' files that are in memory, by fincore(1)."""
    paths = list(world.lower_files())
    total = 0
    for at in range(0, len(paths), 500):
        words = ["fincore", "--bytes", "--noheadings", "--output", "RES"]
        total += sum(map(int, _run([*words, *paths[at : at + 500]]).split()))
    return total


def _rebase(worlds: Sequence[_World], corpus: Corpus, work: Path) -> None:
    """An image whose upper layers are all known, on a base that is known too: a chain that is new."""
    by_name = {image.name: image for image in corpus.images}
    names = ("base-bookworm-upd", "py-flask") if "py-flask" in by_name else tuple(by_name)[:2]
    base, other = by_name[names[0]], by_name[names[1]]
    layers = (*base.layers, *other.layers[1:])
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
    ).encode()
    archive = work / "rebased.tar"
    with tarfile.open(archive, "w") as tar:
        paths = []
        for number, layer in enumerate(layers):
            info = tarfile.TarInfo(f"{number}/layer.tar")
            info.size = layer.tar_size
            paths.append(info.name)
            with layer.archive.open("rb") as source:
                source.seek(layer.offset)
                tar.addfile(info, source)
        manifest = [{"Config": "config.json", "RepoTags": ["rebased:latest"], "Layers": paths}]
        for name, data in (
            ("config.json", config),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    for world in worlds:
        _settle(world)
        before = world.snapshot_bytes()
        world.figures["rebased_s"] = world.import_image("rebased", archive)
        _settle(world)
        world.figures["rebased_bytes"] = world.snapshot_bytes() - before
    archive.unlink()


def _settle(world: _World) -> None:
    """Wait until what containers and commits have left is deleted."""
    world.ctr(
        "content", "prune", "references"
    )  # a garbage collection, which also removes snapshots
    for _ in range(600):
        if not list((world.folder / "layers/snapshots").glob("gone-*")):
            break
        time.sleep(0.1)
    os.sync()


def _time_calls(worlds: Sequence[_World]) -> None:
    for world in worlds:
        parent = _top_snapshot(world)
        socket = f"unix:{world.folder}/c.sock"
        for operation in ("stat", "prepare_remove"):
            for callers in (1, 8):
                with ProcessPoolExecutor(callers, get_context("spawn")) as pool:
                    work = [
                        (socket, world.snapshotter, parent, operation, n) for n in range(callers)
                    ]
                    list(pool.map(_warm_up, work))
                    start = time.perf_counter()
                    times = [one for some in pool.map(_call, work) for one in some]
                    wall = time.perf_counter() - start
                cuts = quantiles(times, n=100)
                world.figures[f"{operation}_{callers}"] = {
                    "calls_per_s": len(times) / wall,
                    "p50_s": median(times),
                    "p99_s": cuts[98],
                }


def _top_snapshot(world: _World) -> str:
    """A committed snapshot that has no children."""
    rows = [
        line.split()
        for line in world.ctr("snapshots", "--snapshotter", world.snapshotter, "ls").splitlines()[
            1:
        ]
    ]
    parents = {row[1] for row in rows if len(row) == 3}
    return next(row[0] for row in rows if row[-1] == "Committed" and row[0] not in parents)


def _warm_up(work: tuple[str, str, str, str, int]) -> None:
    _call(work, 20)


def _call(work: tuple[str, str, str, str, int], count: int = _CALLS) -> list[float]:
    """Seconds of each call; those of a pair together. Raises: RuntimeError, as gRPC's own cannot go to another process."""
    try:
        return _timed_calls(work, count)
    except grpc.RpcError as error:
        raise RuntimeError(f"{work[1]}: {error.code()} {error.details()}") from None


def _timed_calls(work: tuple[str, str, str, str, int], count: int) -> list[float]:
    address, snapshotter, parent, operation, caller = work
    times = []
    metadata = (("containerd-namespace", "default"),)
    with grpc.insecure_channel(address) as channel:
        stat, prepare, remove = (
            channel.unary_unary(f"/{SERVICE}/{name}", kind.SerializeToString, answer.FromString)
            for name, kind, answer in (
                ("Stat", pb.KeyRequest, pb.InfoResponse),
                ("Prepare", pb.MakeRequest, pb.MountsResponse),
                ("Remove", pb.KeyRequest, empty_pb2.Empty),
            )
        )
        for number in range(count):
            key = f"bench-{caller}-{number}"
            start = time.perf_counter()
            if operation == "stat":
                stat(pb.KeyRequest(snapshotter=snapshotter, key=parent), metadata=metadata)
            else:
                request = pb.MakeRequest(
                    snapshotter=snapshotter, key=key, parent=parent, labels=_KEPT
                )
                prepare(request, metadata=metadata)
                remove(pb.KeyRequest(snapshotter=snapshotter, key=key), metadata=metadata)
            times.append(time.perf_counter() - start)
    return times


def _pull(corpus: Corpus, work: Path) -> dict[str, float]:
    """Seconds to pull everything into empty stores, and into one that has it."""
    figures: dict[str, float] = {}
    (work / "registry").mkdir()
    with registry(work / "registry", work / "registry/blobs") as (_, address):
        for image in corpus.images:
            target = f"docker://{address}/{image.name}:latest"
            words = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
            _run([*words, f"oci:{image.layout}:latest", target])
        with ExitStack() as stack:
            worlds = [
                stack.enter_context(_world(work / f"pull-{name}", name))
                for name in (_OVERLAYFS, _OURS)
            ]
            for world in worlds:
                figures[world.snapshotter] = 0.0
            for image in corpus.images:
                for world in worlds:
                    os.sync()
                    start = time.perf_counter()
                    words = ["--plain-http", "--snapshotter", world.snapshotter]
                    world.ctr("images", "pull", *words, f"{address}/{image.name}:latest")
                    figures[world.snapshotter] += time.perf_counter() - start
        for world in worlds:
            shutil.rmtree(world.folder, ignore_errors=True)
        puller = _puller(work)
        if puller is not None:
            figures["known"] = _pull_known(corpus, work, puller, address)
    return figures


def _pull_known(corpus: Corpus, work: Path, puller: Path, address: str) -> float:
    """By a client that asks the snapshotter for each layer, before it fetches it."""
    folder = work / "pull-known"
    folder.mkdir()
    with open_store(folder / "layers") as store:
        for image in corpus.images:
            store.load(_archive(image))
    with _world(folder, _OURS):
        start = time.perf_counter()
        for image in corpus.images:
            _run([puller, folder / "c.sock", _OURS, f"{address}/{image.name}:latest"])
        return time.perf_counter() - start


def _puller(work: Path) -> Path | None:
    """tools/pull_image, built; None where it cannot be."""
    target = work / "pull_image"
    gopath = f"{_PROJECT}/tools/pull_image:{_DEBIAN_GO}"
    done = subprocess.run(
        ["go", "build", "-o", str(target), "pull_image"],
        env={**os.environ, "GO111MODULE": "off", "GOPATH": gopath, "CGO_ENABLED": "0"},
        check=False,
        capture_output=True,
    )
    return target if done.returncode == 0 else None


def _run(words: Sequence[str | Path]) -> str:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, words[:6]))}: {done.returncode}\n{done.stderr[-2000:]}"
        )
    return done.stdout


def _markdown(corpus: Corpus, report: dict[str, Any]) -> str:
    overlayfs, ours = report[_OVERLAYFS], report[_OURS]
    rows: list[tuple[str, ...]] = [("", _OVERLAYFS, _OURS)]

    def add(what: str, key: str, unit: str, scale: float) -> None:
        if key in ours:
            rows.append((what, *(f"{side[key] * scale:,.1f} {unit}" for side in (overlayfs, ours))))

    add(f"import of {len(corpus.images)} images", "import_s", "s", 1)
    add("snapshots on disk", "snapshot_bytes", "MB", 1e-6)
    add("`ctr run … true`, first", "run_first_s", "ms", 1e3)
    add("`ctr run … true`, again", "run_again_s", "ms", 1e3)
    add("page cache of ten containers", "cache_bytes", "MB", 1e-6)
    add("rebased image: time", "rebased_s", "s", 1)
    add("rebased image: disk", "rebased_bytes", "MB", 1e-6)
    add(f"pull of {len(corpus.images)} images", "pull_s", "s", 1)
    add("pull of what `layerstore load` has loaded", "pull_known_s", "s", 1)
    for operation, text in (("stat", "Stat"), ("prepare_remove", "Prepare + Remove")):
        for callers in (1, 8):
            if (key := f"{operation}_{callers}") in ours:
                cells = (
                    f"{c['calls_per_s']:,.0f}/s, p50 {c['p50_s'] * 1e3:.2f}, p99 {c['p99_s'] * 1e3:.2f} ms"
                    for c in (overlayfs[key], ours[key])
                )
                rows.append((f"{text}, {callers} caller{'s' if callers > 1 else ''}", *cells))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---|--:|--:|", *lines[1:]]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--only", default=",".join(_STEPS), help="comma-separated steps")
    parser.add_argument("--images", default="", help="comma-separated names; all without")
    parser.add_argument("--work", type=Path, help="where everything is made and deleted")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    steps = set(options.only.split(","))
    if unknown := steps - set(_STEPS):
        parser.error(f"no such step: {', '.join(sorted(unknown))}")
    corpus = open_corpus(options.corpus)
    if options.images:
        chosen = options.images.split(",")
        images = tuple(image for image in corpus.images if image.name in chosen)
        corpus = Corpus(corpus.name, images)
    report: dict[str, Any] = {"machine": machine(), "commit": commit(_PROJECT)}
    report["images"] = [image.name for image in corpus.images]
    with tempfile.TemporaryDirectory(prefix="bench-snapshotter-", dir=options.work) as name:
        report |= _measure(corpus, steps, Path(name))
    table = _markdown(corpus, report)
    print(table)
    if options.json:
        options.json.write_text(json.dumps(report) + "\n")
    if options.markdown:
        options.markdown.write_text(table)


def _measure(corpus: Corpus, steps: set[str], work: Path) -> dict[str, Any]:
    figures: dict[str, dict[str, Any]] = {_OVERLAYFS: {}, _OURS: {}}
    if steps - {"pull"}:
        with ExitStack() as stack:
            worlds = [
                stack.enter_context(_world(work / name, name)) for name in (_OVERLAYFS, _OURS)
            ]
            _import(worlds, corpus)
            if "run" in steps:
                _time_runs(worlds, corpus)
            if "calls" in steps:
                _time_calls(worlds)
            if "cache" in steps:
                _fill_cache(worlds, corpus)
            if "rebased" in steps:
                _rebase(worlds, corpus, work)
            figures = {world.snapshotter: world.figures for world in worlds}
        for world in worlds:
            shutil.rmtree(world.folder, ignore_errors=True)
    if "pull" in steps:
        times = _pull(corpus, work)
        figures[_OVERLAYFS]["pull_s"], figures[_OURS]["pull_s"] = times[_OVERLAYFS], times[_OURS]
        if "known" in times:
            # overlayfs has nothing of the kind: there it is fetched and unpacked
            figures[_OVERLAYFS]["pull_known_s"] = times[_OVERLAYFS]
            figures[_OURS]["pull_known_s"] = times["known"]
    return figures


if __name__ == "__main__":
    main()
