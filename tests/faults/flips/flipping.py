"""Every byte of a small store, flipped one at a time: what verify says, what reads give, what repair brings back.

    flip a byte  >  open, verify everything, read every layer and document  >  repair from the archive  >  verify, read
                                                                            >  all files as they were

A store of two small layers is some 10 kB of frames and journal and 60 kB of tables, most of it unused room in LMDB's
pages. Processes take turns at it, each with its own copy in memory; one that a flip ends by a signal is a violation.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

import lmdb
import numpy as np

from layerstore.api import open_store, repair_store
from layerstore.digest import digest_of
from layerstore.errors import LayerstoreError
from tests.support.archive_builders import Image, docker_archive_of, layer_tar
from tests.support.stores import payload

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from layerstore.api import LayerStore

__all__ = ["FILES", "Flip", "Flips", "Outcome", "World", "flip_all", "make_world"]

FILES = ("FORMAT", "journal", "chunks", "meta/data.mdb")
_WRITE_EVERY = (
    64  # of the flips that nobody noticed, those after which the store is also written to
)

_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["layerstore.images.repair", "tests.faults.flips.flipping"])


class Outcome(StrEnum):
    """What came of a flip; the last four must never be."""

    HEALED = "healed"  # noticed, and repaired
    ENDED = "ended"  # the same, and a read that went on after verify had noticed it ended the process: LMDB trusts its map
    SILENT = "silent"  # nobody noticed, and all is right: the byte has no meaning
    WRONG = "wrong bytes"
    MISSED = "not noticed by verify"
    LEFT = "not repaired"
    BROKEN = "an exception or a signal"


_NEVER = (Outcome.WRONG, Outcome.MISSED, Outcome.LEFT, Outcome.BROKEN)


class Flip(NamedTuple):
    """A byte of a file, and the bits that change."""

    file: str
    offset: int
    mask: int


@dataclass(frozen=True, slots=True)
class World:
    """A store, the archive that it was loaded from, and what must come out of it.

    Attributes:
        used: bytes of the chunk file up to the end of the last block with a frame.
    """

    root: Path
    archive: Path
    image: Image
    used: int

    def flips(self, every: int = 1, seed: int = 0) -> list[Flip]:
        """All bytes, or one of each `every` of a file, each with other bits."""
        rng = random.Random(seed)
        found = []
        for name in FILES:
            size = self.used if name == "chunks" else (self.root / name).stat().st_size
            first = rng.randrange(min(every, size))
            found += [Flip(name, at, rng.randrange(1, 256)) for at in range(first, size, every)]
        return found


@dataclass(slots=True)
class Flips:
    """What came of many: counts by file and outcome, and the flips that must never be."""

    counts: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    violations: list[tuple[Flip, str]] = field(default_factory=list)

    def add(self, flip: Flip, outcome: Outcome, words: str = "") -> None:
        """Count one."""
        self.counts[flip.file, outcome] += 1
        if outcome in _NEVER:
            self.violations.append((flip, f"{outcome} {words}".strip()))


def make_world(folder: Path) -> World:
    """A store of one image of two layers with a few small files, in a folder."""
    lower = layer_tar(
        {"etc/words": payload(1, 300), "usr/lib/a.so": payload(2, 2500), "etc/empty": b""}
    )
    upper = layer_tar(
        {"etc/words": payload(3, 200), "app/zeros": bytes(9000), "app/b": payload(4, 700)}
    )
    image = Image.of([lower, upper], "test/flips:1")
    archive = folder / "archive.tar"
    archive.write_bytes(docker_archive_of([image]))
    root = folder / "model"
    with open_store(root) as store:
        store.load(archive)
        with store.store.read() as txn:
            runs = [run for _, run in store.store.index.runs(txn)]
    _compact(root / "meta")
    with open_store(root):  # begins a journal of these tables
        pass
    places = np.concatenate(runs)
    end = int((places["address"] + places["encoded"]).max())
    return World(root, archive, image, -(-end // 4096) * 4096)


def _compact(meta: Path) -> None:
    """Tables without free pages, as LMDB's own copy makes them: in those no byte has a meaning."""
    with lmdb.open(str(meta), max_dbs=64, map_size=1 << 30) as environment:
        environment.copy(str(meta.parent / "tmp"), compact=True)
    (meta.parent / "tmp" / "data.mdb").replace(meta / "data.mdb")


def flip_all(world: World, flips: Sequence[Flip], folder: Path, jobs: int = 1) -> Flips:
    """Do all flips, in `jobs` processes with a copy of the store each."""
    found = Flips()
    shares = [flips[number::jobs] for number in range(jobs)]
    runs = [_Run(world, share, folder / f"copy-{number}") for number, share in enumerate(shares)]
    while any(run.is_going for run in runs):
        for run in runs:
            if run.is_going:
                run.step(found)
    return found


class _Run:
    """A child that does its share; when it dies, another goes on behind the flip that it died of."""

    def __init__(self, world: World, flips: Sequence[Flip], root: Path) -> None:
        self._world, self._flips, self._root = world, list(flips), root
        self._done = 0
        self._noticed = False  # whether verify has said so of the flip that is being done
        self._ended = -1  # the last flip whose reads ended the process
        self._start()

    @property
    def is_going(self) -> bool:
        return self._done < len(self._flips)

    def step(self, found: Flips) -> None:
        """Take a result."""
        try:
            outcome, words = self._results.recv()
        except EOFError:
            self._child.join()
            if self._noticed and self._ended != self._done:
                self._ended = self._done  # once more, without reads
                self._start()
                return
            self._count(found, Outcome.BROKEN, f"exit code {self._child.exitcode}")
            if self.is_going:
                self._start()
            return
        if outcome is None:
            self._noticed = True
            return
        if self._ended == self._done and outcome is Outcome.HEALED:
            outcome = Outcome.ENDED
        self._count(found, outcome, words)
        if not self.is_going:
            self._child.join()

    def _count(self, found: Flips, outcome: Outcome, words: str) -> None:
        found.add(self._flips[self._done], outcome, words)
        self._done += 1
        self._noticed = False

    def _start(self) -> None:
        self._results, theirs = _children.Pipe(duplex=False)
        self._noticed = False
        left = self._flips[self._done :]
        arguments = (self._world, left, self._root, theirs, self._ended != self._done)
        self._child = _children.Process(target=_do, args=arguments)
        self._child.start()
        theirs.close()


def _do(
    world: World, flips: Sequence[Flip], root: Path, results: Connection, first_is_read: bool
) -> None:
    """In a child: each flip on a store that is as new. Tells when verify has noticed one, then what came of it."""
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["cp", "-a", "--sparse=always", world.root, root], check=True)
    kept = {name: (root / name).read_bytes() for name in FILES if name != "chunks"}
    with (root / "chunks").open("rb") as file:
        kept["chunks"] = file.read(world.used)
    for number, flip in enumerate(flips):
        _write(root / flip.file, flip.offset, bytes([kept[flip.file][flip.offset] ^ flip.mask]))
        try:
            read = number > 0 or first_is_read
            outcome, words = _outcome(world, root, number, results if read else None)
        except Exception as error:  # whatever is not ours is what is looked for
            outcome, words = Outcome.BROKEN, repr(error)
        results.send((outcome, words))
        _restore(root, kept)
    results.close()


def _outcome(world: World, root: Path, number: int, told: Connection | None) -> tuple[Outcome, str]:
    noticed, wrong = _look(world, root, told)
    if wrong:
        return (Outcome.WRONG if wrong == "bytes" else Outcome.MISSED), wrong
    if not noticed:
        if number % _WRITE_EVERY == 0:
            with open_store(root, create=False) as store:
                store.tag(world.image.tags[0], "test/more:1")
                store.prune()
            noticed, wrong = _look(world, root)
            if noticed or wrong:
                return Outcome.MISSED, f"after it was written to: {noticed} {wrong}"
        return Outcome.SILENT, ""
    try:
        report = repair_store(root, sources=[world.archive])
    except LayerstoreError as error:
        return Outcome.LEFT, f"{noticed}: {error!r}"
    if report.left:
        return Outcome.LEFT, f"{noticed}: {report.left}"
    after, wrong = _look(world, root)
    return (
        (Outcome.LEFT, f"{noticed}, then {after} {wrong}")
        if after or wrong
        else (Outcome.HEALED, "")
    )


def _look(world: World, root: Path, told: Connection | None = None) -> tuple[str, str]:
    """What verify, or the way to it, says; and what is wrong about what reads give, if they give anything.

    Damaged tables are read only when that is told before.
    """
    try:
        with open_store(root, create=False, read_only=True) as store:
            damages = store.verify(jobs=1).damages
            noticed = str(damages[0].damage) if damages else ""
            if noticed and told is None:
                return noticed, ""
            if noticed and told is not None:
                told.send((None, ""))
            return noticed, _read(world, store, may_fail=bool(noticed))
    except LayerstoreError as error:
        return f"{type(error).__name__} {error}", ""


def _read(world: World, store: LayerStore, *, may_fail: bool) -> str:
    """Read all that the image has: `bytes` if others come out, what was raised where nothing may be."""
    config = digest_of(world.image.config)
    wanted = [(store.iter_layer(digest_of(layer)), layer) for layer in world.image.layers]
    wanted.append((store.iter_blob(config), world.image.config))
    for blocks, data in wanted:
        try:
            if b"".join(blocks) != data:
                return "bytes"
        except LayerstoreError as error:
            if not may_fail:
                return repr(error)
    try:
        if [store.inspect(tag).summary.id for tag in world.image.tags] != [config]:
            return "bytes"
    except LayerstoreError as error:
        return "" if may_fail else repr(error)
    return ""


def _restore(root: Path, kept: dict[str, bytes]) -> None:
    """All files as they were."""
    for name in ("damaged", "journal.new"):
        shutil.rmtree(root / name, ignore_errors=True)
    for path in (root / "tmp").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, data in kept.items():
        if name != "chunks":
            (root / name).write_bytes(data)
    _write(root / "chunks", 0, kept["chunks"])


def _write(path: Path, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)
