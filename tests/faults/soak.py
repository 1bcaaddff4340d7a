"""Random work on one store by several processes, with garbage collection among it, each against a model of its own.

    python -m tests.faults.soak --seconds 600 --operations 100000 [--processes 4] [--root DIR] [--seed N]

Every process has names of its own, and all draw images from one pool, so that layers and chunks are shared, removed and
stored again by all at once. What a process was told is there must come out byte for byte, until it removes it; in the end
`verify` is clean, and after a last prune the chunk file has no block that no chunk touches. One JSON line tells.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.api import LayerStore, open_store
from layerstore.digest import digest_of
from layerstore.errors import Busy, NotFound
from layerstore.images.prune import PruneOptions
from layerstore.mount.mounter import release_lowers
from layerstore.store.layout import BLOCK
from layerstore.store.snapstate import SnapshotDirectories
from layerstore.store.spacemap import chunk_blocks, unowned_extents
from tests.support.archive_builders import Image, docker_archive_of, layer_tar
from tests.support.lock_holds import Hold, in_milliseconds, measured_holds, measured_syncs
from tests.support.stores import payload

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

__all__ = ["SoakReport", "soak"]

_LAYERS = 24
_IMAGES = 40
_NAMES = 12  # of each process
_HOLDS = 12  # of the writer's lock, that are told

_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["layerstore.api"])


@dataclass(slots=True)
class SoakReport:
    """What happened. `lost` must be empty, and `leaked_bytes` 0.

    Attributes:
        holds: the longest of the writer's lock.
        lock_ms: of all holds how long they were, what of each was not LMDB's commit, and what was work; and how long a sync of one
            block took meanwhile. Milliseconds.
    """

    operations: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    damages: int = 0
    live_bytes: int = 0
    disk_bytes: int = 0
    leaked_bytes: int = 0
    holds: list[Hold] = field(default_factory=list)
    lock_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0


def soak(root: Path, seconds: float, operations: int, processes: int, seed: int) -> SoakReport:
    """Work until the time is over or each process has done its share; then look at what is left."""
    with open_store(root):
        pass
    with measured_syncs(root.parent) as syncs:
        report, models = _run(root, seconds, operations, processes, seed)
    report.lock_ms = {
        "hold": in_milliseconds([hold.seconds for hold in report.holds]),
        "without commit": in_milliseconds([hold.seconds - hold.commit for hold in report.holds]),
        "work": in_milliseconds([hold.cpu for hold in report.holds]),
        "sync of a block": in_milliseconds(syncs),
    }
    report.holds = sorted(report.holds, reverse=True)[:_HOLDS]
    with open_store(root) as store:
        _look_at_the_end(store, models, report)
    return report


def _run(
    root: Path, seconds: float, operations: int, processes: int, seed: int
) -> tuple[SoakReport, list[dict[str, Image]]]:
    """What the processes have done, with all their holds, and what each of them takes for there."""
    started = time.monotonic()
    running = []
    for who in range(processes):
        ours, theirs = _children.Pipe(duplex=False)
        work = (str(root), who, seed, seconds, operations // processes, theirs)
        child = _children.Process(target=_work, args=work)
        child.start()
        theirs.close()
        running.append((child, ours))
    report = SoakReport()
    models: list[dict[str, Image]] = []
    for child, told in running:
        try:
            done, counts, lost, model, holds = told.recv()
        except EOFError:
            report.lost.append(f"process {child.pid} ended without a word")
            continue
        finally:
            child.join()
        report.operations += done
        report.counts += counts
        report.lost += lost
        report.holds += holds
        models.append(model)
    report.seconds = time.monotonic() - started
    return report, models


def _look_at_the_end(store: LayerStore, models: list[dict[str, Image]], report: SoakReport) -> None:
    if (store.store.layout.root / "run").is_dir():
        release_lowers(store.store)
    store.prune()
    report.damages = len(store.verify().damages)
    for model in models:
        for name, image in model.items():
            problem = _problem(store, name, image)
            if problem:
                report.lost.append(problem)
    with store.store.read() as txn:
        report.live_bytes = chunk_blocks(store.store, txn) * BLOCK
        report.leaked_bytes = sum(e.end - e.start for e in unowned_extents(store.store, txn))
    report.disk_bytes = store.store.chunkfile.allocated_bytes()
    store.prune(PruneOptions(everything=True))
    with store.store.read() as txn:
        left = sum(len(run) for _, run in store.store.index.runs(txn))
    if left or store.images():
        report.lost.append(f"{left} chunks are left of an empty store")


def pool() -> list[Image]:
    """The images that all processes draw from: layers are shared, and so are files of different layers."""
    rng = random.Random(7)
    layers = []
    for number in range(_LAYERS):
        files = {
            f"usr/{i}": payload(rng.randrange(60), rng.randrange(100, 30_000)) for i in range(4)
        }
        layers.append(layer_tar({**files, f"own/{number}": payload(1000 + number, 9000)}))
    return [Image.of(rng.sample(layers, rng.randint(1, 4))) for _ in range(_IMAGES)]


def _work(
    root: str, who: int, seed: int, seconds: float, operations: int, told: Connection
) -> None:
    with (
        measured_holds() as holds,
        open_store(root) as store,
        tempfile.TemporaryDirectory() as scratch,
    ):
        worker = _Worker(store, who, random.Random(seed * 100 + who), Path(scratch))
        end = time.monotonic() + seconds
        while worker.done < operations and time.monotonic() < end and not worker.lost:
            worker.step()
        told.send((worker.done, worker.counts, worker.lost, worker.model, holds))


class _Worker:
    """One process: its names, and what they must show."""

    def __init__(self, store: LayerStore, who: int, rng: random.Random, scratch: Path) -> None:
        self.store, self.who, self.rng, self.scratch = store, who, rng, scratch
        self.model: dict[str, Image] = {}
        self.counts: Counter[str] = Counter()
        self.lost: list[str] = []
        self.done = 0
        self.pool = pool()
        self.archives = [docker_archive_of([image]) for image in self.pool]
        self.actions: list[tuple[Callable[[], object], int]] = [
            (self.load, 16),
            (self.tag, 14),
            (self.remove, 18),
            (self.read, 36),
            (self.view, 6),
            (self.lease, 4),
            (self.snapshot, 2),
            (self.mount, 1),
            (self.names, 2),
            (self.prune, 1),
        ]

    def step(self) -> None:
        actions, weights = zip(*self.actions, strict=True)
        (action,) = self.rng.choices(actions, weights)
        try:
            action()
        except Exception as error:  # the report names it
            self.lost.append(f"{action.__name__}: {error!r}")
        self.counts[action.__name__] += 1
        self.done += 1

    def load(self) -> None:
        number = self.rng.randrange(len(self.pool))
        name = self._any_name()
        self.store.load(io.BytesIO(self.archives[number]), name=name)
        self.model[name] = self.pool[number]

    def tag(self) -> None:
        if self.model:
            source, name = self.rng.choice(sorted(self.model)), self._any_name()
            self.store.tag(source, name)
            self.model[name] = self.model[source]

    def remove(self) -> None:
        name = self._any_name()
        try:
            self.store.remove(name)
            assert name in self.model
        except NotFound:
            assert name not in self.model
        self.model.pop(name, None)

    def read(self) -> None:
        if self.model:
            name = self.rng.choice(sorted(self.model))
            problem = _problem(self.store, name, self.model[name], self.rng)
            if problem:
                self.lost.append(problem)

    def view(self) -> None:
        """Read on through a view while the image is removed and pruned."""
        if not self.model:
            return
        name = self.rng.choice(sorted(self.model))
        view = self.store.view(name)
        paths = [path for path in view.glob("/**") if view.is_file(path)]
        self.store.remove(name)
        del self.model[name]
        self.prune()
        for path in paths:
            assert view.read_bytes(path) is not None

    def lease(self) -> None:
        """A leased image gives its bytes after it was removed."""
        if not self.model:
            return
        name = self.rng.choice(sorted(self.model))
        with self.store.lease(name, ttl=300):
            image = self.model.pop(name)
            self.store.remove(name)
            self.prune()
            for layer in image.layers:
                assert b"".join(self.store.iter_layer(digest_of(layer))) == layer

    def snapshot(self) -> None:
        """Fork, change, commit, remove; sometimes with a prune in between."""
        if not self.model:
            return
        source, name = self.rng.choice(sorted(self.model)), self._any_name()
        key = f"key-{self.who}-{self.done}"
        self.store.fork(source, [key])
        if self.rng.random() < 0.5:
            self.store.remove(source)
            del self.model[source]
            self.prune()
        with self.store.store.read() as txn:
            record = self.store.snapshots._table.get(txn, key)
        assert record is not None
        upper = SnapshotDirectories(self.store.store.layout).upper(record.id)
        (upper / "new").write_bytes(payload(self.done % 9, 5000))
        report = self.store.commit(key, name)
        self.store.snapshots.remove(key)
        details = self.store.inspect(name)
        layers = [b"".join(self.store.iter_layer(layer.diff_id)) for layer in details.layers]
        config = b"".join(self.store.iter_blob(report.id))
        self.model[name] = Image(layers, config, ())

    def mount(self) -> None:
        if not self.model:
            return
        target = self.scratch / "mnt"
        target.mkdir(exist_ok=True)
        name = self.rng.choice(sorted(self.model))
        with self.store.mount(name, target):
            for path in target.rglob("*"):
                if path.is_file():
                    path.read_bytes()

    def names(self) -> None:
        mine = {
            name.removeprefix("docker.io/"): image.id
            for image in self.store.images()
            for name in image.names
            if name.startswith(f"docker.io/p{self.who}/")
        }
        assert mine == {name: digest_of(image.config) for name, image in self.model.items()}

    def prune(self) -> None:
        try:
            report = self.store.prune().garbage
        except Busy:
            self.counts["prune busy"] += 1
            return
        self.counts["chunks freed"] += report.chunks
        self.counts["chunks given back"] += report.given_back
        self.counts["chunks left to a later run"] += report.waiting

    def _any_name(self) -> str:
        return f"p{self.who}/app:{self.rng.randrange(_NAMES)}"


def _problem(
    store: LayerStore, name: str, image: Image, rng: random.Random | None = None
) -> str | None:
    """What is wrong with an image, if anything; with `rng` only one of its layers is read."""
    details = store.inspect(name)
    if [layer.diff_id for layer in details.layers] != [digest_of(one) for one in image.layers]:
        return f"{name} has other layers"
    layers = image.layers if rng is None else [rng.choice(list(image.layers))]
    for layer in layers:
        if b"".join(store.iter_layer(digest_of(layer))) != layer:
            return f"{name}: a layer came out wrong"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    with ExitStack() as stack:
        root = options.root
        if root is None:
            root = Path(tempfile.mkdtemp(prefix="layerstore-soak-"))
            stack.callback(shutil.rmtree, root, ignore_errors=True)
        report = soak(
            root / "store", options.seconds, options.operations, options.processes, options.seed
        )
    print(json.dumps({name: getattr(report, name) for name in SoakReport.__slots__}, default=dict))
    if report.lost or report.damages or report.leaked_bytes:
        sys.exit(1)


if __name__ == "__main__":
    main()
