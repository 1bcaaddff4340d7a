"""Is every byte still what was stored? At three depths, each with all of the one before.

    structure    tables and journal                                          structure.py
    chunks       every chunk that a layer or blob needs is decoded and compared with its ID
    everything   all other chunks as well; every layer and kept blob is joined and compared with its digest;
                 what of the disk and of the records nobody needs

Nothing is changed but a note in `tmp/` of how far it came, from which another run can go on. Damage does not end the
check: all that is wrong is named, and whom it hits. Others may work on the store meanwhile: what looks damaged is looked
at again in the end, and counts only if somebody still needs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from layerstore.errors import CorruptStore, InvalidArgument
from layerstore.store import files
from layerstore.store.condemned import CondemnedTable
from layerstore.store.damage import (
    Damage,
    Stream,
    damaged_among,
    hit_streams,
    streams_of,
    tolerant_numbers,
)
from layerstore.store.reach import NumberSet, records_of
from layerstore.store.roots import read_roots
from layerstore.store.scan import Pace, paced_reader, scan_chunks, scanning_pool
from layerstore.store.spacemap import unowned_extents
from layerstore.store.structure import check_structure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from layerstore.store.reader import ChunkReader
    from layerstore.store.scan import Pool
    from layerstore.store.store import Store

__all__ = [
    "Damage",
    "Depth",
    "Orphans",
    "VerifyOptions",
    "VerifyReport",
    "compare_stream",
    "verify_store",
]

_SAVE_EVERY_S = 5.0  # how much work a killed run may lose
_MAX_JOBS = 8


class Depth(StrEnum):
    """How closely to look."""

    STRUCTURE = "structure"
    CHUNKS = "chunks"
    EVERYTHING = "everything"


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """How to look.

    Attributes:
        depth: how closely.
        rate: bytes of the chunk file that are read in a second at most; as many as can be, without one.
        jobs: threads; as many as there are processors, without one.
        resume: go on where the last run of this depth was stopped. What came meanwhile may be left out.
    """

    depth: Depth = Depth.EVERYTHING
    rate: int | None = None
    jobs: int | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Orphans:
    """What nobody needs, and `prune` frees.

    Attributes:
        layers: records of layers that no name, image, snapshot, mount, session or lease leads to.
        blobs: the same of blobs.
        chunks: that no record needs, those of a load under way among them.
        chunk_bytes: what they take, encoded.
        condemned: of them, those that no look-up finds any more.
        space: bytes of the chunk file that belong to nobody, or are free and take disk all the same, in whole blocks.
    """

    layers: int = 0
    blobs: int = 0
    chunks: int = 0
    chunk_bytes: int = 0
    condemned: int = 0
    space: int = 0


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at, and what is wrong.

    Attributes:
        depth: that was reached: where the tables cannot be relied on, nothing behind them is looked at.
        layers: records of layers.
        blobs: kept, or made again from a recipe.
        chunks: that were read and compared with their IDs, those of an earlier run that this one went on from included.
        bytes: of chunks, layers and blobs that were compared, the same included.
        damages: what is wrong.
        damaged: numbers of all chunks that are damaged, whether or not something is known to need them: what a damaged
            recipe needs, nobody knows.
        unlisted: chunks that no look-up by ID finds though they are not condemned: the same bytes would be stored again.
        orphans: what nobody needs; only at the depth `everything`, of a store without damage.
        notes: what is no damage and should be known.
        resumed: whether it went on from an earlier run.
    """

    depth: Depth
    layers: int
    blobs: int
    chunks: int
    bytes: int
    damages: tuple[Damage, ...]
    damaged: tuple[int, ...] = ()
    unlisted: int = 0
    orphans: Orphans | None = None
    notes: tuple[str, ...] = ()
    resumed: bool = False


def verify_store(
    store: Store,
    options: VerifyOptions = VerifyOptions(),
    *,
    start: Callable[[str, int], object] = lambda name, size: None,
    done: Callable[[int], object] = lambda size: None,
) -> VerifyReport:
    """Check a store. `start` is told the number of bytes to come, `done` of each that was checked.

    Raises: InvalidArgument.
    """
    for name, value in (("rate", options.rate), ("jobs", options.jobs)):
        if value is not None and value < 1:
            raise InvalidArgument(f"{name} {value}: give a number above 0, or none")
    structure = check_structure(store)
    if not structure.is_readable or options.depth is Depth.STRUCTURE:
        streams = [] if not structure.is_readable else _streams(store)
        return VerifyReport(
            Depth.STRUCTURE,
            sum(one.what == "layer" for one in streams),
            sum(one.what == "blob" for one in streams),
            0,
            0,
            tuple(structure.damages),
            unlisted=structure.unlisted,
            notes=tuple(structure.notes),
        )
    verifier = _Verifier(store, options, start, done)
    found = verifier.run()
    damages = (*structure.damages, *found)
    orphans = None
    if options.depth is Depth.EVERYTHING and not damages:
        orphans = verifier.orphans()
    verifier.forget()
    return VerifyReport(
        options.depth,
        sum(one.what == "layer" for one in verifier.streams),
        sum(one.what == "blob" for one in verifier.streams),
        verifier.reached.chunks,
        verifier.reached.bytes,
        damages,
        tuple(sorted(verifier.damaged)),
        structure.unlisted,
        orphans,
        tuple(structure.notes),
        verifier.is_resumed,
    )


@dataclass(slots=True)
class _Reached:
    """How far a run came: in the order of numbers through the chunks, then in that of their keys through the streams.

    Attributes:
        number: every wanted chunk below was read.
        stream: every stream up to this key was compared with its digest.
        chunks: that were read.
        bytes: that were compared.
        bad: numbers that looked damaged.
        wrong: keys of streams that did not come out as they should.
    """

    number: int = 0
    stream: str = ""
    chunks: int = 0
    bytes: int = 0
    bad: set[int] = field(default_factory=set)
    wrong: dict[str, str] = field(default_factory=dict)


class _Verifier:
    """One run behind the tables."""

    def __init__(
        self,
        store: Store,
        options: VerifyOptions,
        start: Callable[[str, int], object],
        done: Callable[[int], object],
    ) -> None:
        self._store, self._options, self._start, self._done = store, options, start, done
        self._pace = Pace(options.rate)
        self._reader = paced_reader(store, self._pace)
        self._note = store.layout.tmp / f"verify-{options.depth}.json"
        self._saved = time.monotonic()
        self.reached = _Reached()
        self.is_resumed = False
        if options.resume and (before := _load(self._note)) is not None:
            self.reached, self.is_resumed = before, True
        self.streams = _streams(store)
        self.needed = NumberSet(0)
        self.damaged: set[int] = set()

    def run(self) -> list[Damage]:
        """Read what has to be read; returns what is wrong."""
        jobs = self._options.jobs or min(os.cpu_count() or 1, _MAX_JOBS)
        try:
            with scanning_pool(jobs, self._pace) as pool:
                for numbers in tolerant_numbers(self._store, self.streams):
                    self.needed.add(numbers)
                self._start("verify", self._total())
                self._read_chunks(pool)
                if self._options.depth is Depth.EVERYTHING:
                    self._read_streams(pool)
        except BaseException:
            self._save()
            raise
        return self._damages()

    def forget(self) -> None:
        """The run is complete: nothing is to be gone on with."""
        with suppress(OSError):
            self._note.unlink(missing_ok=True)

    def orphans(self) -> Orphans:
        """What nobody needs. Raises: CorruptStore: a document is damaged."""
        store = self._store
        with store.read() as txn:
            live = records_of(store, read_roots(store, txn).targets(), txn)
            layers = sum(one not in live.layers for one in store.catalog.layer_digests(txn))
            blobs = sum(one not in live.blobs for one in store.catalog.blob_digests(txn))
            chunks = chunk_bytes = 0
            for first, run in store.index.runs(txn):
                rest = run[~self.needed.window(first, len(run))]
                chunks += len(rest)
                chunk_bytes += int(rest["encoded"].sum(dtype="u8"))
            condemned = len(CondemnedTable(store.database).numbers(txn))
            space = sum(end - begin for begin, end in unowned_extents(store, txn))
            space += sum(end - begin for begin, end in store.chunkfile.stale_extents(txn))
        return Orphans(layers, blobs, chunks, chunk_bytes, condemned, space)

    def _wanted(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        if self._options.depth is Depth.EVERYTHING:
            return np.ones(count, np.bool_)
        return self.needed.window(first, count)

    def _total(self) -> int:
        """Bytes that are still to come."""
        with self._store.read() as txn:
            total = sum(
                int(run["decoded"][self._wanted(first, len(run))].sum(dtype="u8"))
                for first, run in self._store.index.runs(txn, self.reached.number)
            )
        if self._options.depth is Depth.EVERYTHING:
            total += sum(one.size for one in self.streams if one.key > self.reached.stream)
        return total

    def _read_chunks(self, pool: Pool) -> None:
        reached = self.reached
        for scanned in scan_chunks(self._store, self._reader, pool, self._wanted, reached.number):
            reached.number = max(reached.number, scanned.until)
            reached.chunks += len(scanned.numbers)
            reached.bad |= scanned.bad
            self._advance(scanned.bytes)

    def _read_streams(self, pool: Pool) -> None:
        """Join every stream and hash it."""
        left = [one for one in self.streams if one.key > self.reached.stream]
        for stream, problem in pool.map(lambda one: compare_stream(self._reader, one), left):
            self.reached.stream = stream.key
            if problem:
                self.reached.wrong[stream.key] = problem
            self._advance(stream.size)

    def _advance(self, size: int) -> None:
        self.reached.bytes += size
        self._done(size)
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self._save()

    def _save(self) -> None:
        """Write down how far it came; where that cannot be (a store on a disk to read only) it is not."""
        document = asdict(self.reached) | {"bad": sorted(self.reached.bad)}
        with suppress(OSError):
            files.replace_file(self._note, json.dumps(document).encode())
        self._saved = time.monotonic()

    def _damages(self) -> list[Damage]:
        """What looked damaged, looked at again: others may have healed it, or collected who needed it."""
        store = self._store
        streams = _streams(store)
        bad = np.array(sorted(self.reached.bad | self._without_place()), "u8")
        still = damaged_among(store.reader, bad) if len(bad) else set[int]()
        self.damaged = still & (self._placed(still) | set(self.needed.numbers().tolist()))
        damages = list(hit_streams(store, streams, still)) if still else []
        damages += self._findable(still - {number for one in damages for number in one.chunks})
        hit = {f"{one.what} {one.name}" for one in damages}
        for stream in streams:
            if stream.key in self.reached.wrong and stream.key not in hit:
                problem = compare_stream(store.reader, stream)
                if problem:
                    damages.append(Damage(stream.what, stream.digest, problem))
        return damages

    def _without_place(self) -> set[int]:
        """Chunks that a record needs and that have no place."""
        missing = NumberSet(0)
        missing.add(self.needed.numbers())
        with self._store.read() as txn:
            for first, run in self._store.index.runs(txn):
                missing.discard(first, len(run))
        return set(missing.numbers().tolist())

    def _placed(self, numbers: set[int]) -> set[int]:
        """Those that have a place: others have been collected meanwhile, or are missing."""
        found = set[int]()
        with self._store.read() as txn:
            for number in numbers:
                with suppress(CorruptStore):
                    self._store.index.places(txn, np.array([number], "u8"))
                    found.add(number)
        return found

    def _findable(self, numbers: set[int]) -> list[Damage]:
        """Damaged chunks that no record needs, but that a load of the same bytes would rely on."""
        store, found = self._store, list[int]()
        with store.read() as txn:
            for number in sorted(numbers):
                with suppress(CorruptStore):
                    chunk_id = bytes(store.index.places(txn, np.array([number], "u8"))["id"][0])
                    if store.index.lookup(txn, [chunk_id]).get(chunk_id) == number:
                        found.append(number)
        if not found:
            return []
        problem = "damaged; nothing needs it, but a load of the same bytes would rely on it"
        return [Damage("chunk", "", problem, tuple(found))]


def _streams(store: Store) -> list[Stream]:
    with store.read() as txn:
        return streams_of(store, txn)


def compare_stream(reader: ChunkReader, stream: Stream) -> str:
    """Join a stream and compare it with its digest; what is wrong, in words, or nothing."""
    hasher, count = hashlib.sha256(), 0
    try:
        for block in reader.iter_stream(stream.stretches):
            hasher.update(block)
            count += len(block)
    except (CorruptStore, OSError) as error:
        return str(error)
    got = "sha256:" + hasher.hexdigest()
    if stream.is_recipe:  # whether the blob comes out of it is not tried here
        return ""
    if got != stream.digest or count != stream.size:
        return f"comes out as {got}, {count} bytes instead of {stream.size}"
    return ""


def _load(path: Path) -> _Reached | None:
    """How far an earlier run came; None if there is none that can be gone on with."""
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        return _Reached(
            int(document["number"]),
            str(document["stream"]),
            int(document["chunks"]),
            int(document["bytes"]),
            set(map(int, document["bad"])),
            {str(key): str(value) for key, value in document["wrong"].items()},
        )
    except (AttributeError, LookupError, OSError, OverflowError, TypeError, ValueError):
        return None
