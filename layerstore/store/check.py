"""Is every byte still what was stored? Structure of the tables, every reachable chunk, every layer and blob whole.

Nothing is changed. A damaged chunk does not end the check: all that is wrong is named, and whom it hits.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.errors import CorruptStore
from layerstore.store.catalog import Wrapping
from layerstore.store.reader import DamagedChunks
from layerstore.tree import HOLE, Kind, concat_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from layerstore.digest import Digest
    from layerstore.formats.recipe import Part
    from layerstore.store.catalog import BlobRecord, Stretch
    from layerstore.store.database import Transaction
    from layerstore.store.store import Store

__all__ = ["Damage", "VerifyReport", "verify_store"]

_MAX_PATHS = 20  # named for each damage; the rest is counted


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong.

    Attributes:
        what: `layer`, `blob`, `index`, `space`, `image` or `ref`.
        name: its digest or name; empty for the tables.
        problem: in words.
        chunks: damaged chunk numbers.
        paths: files of the layer that hold them, at most 20.
    """

    what: str
    name: str
    problem: str
    chunks: tuple[int, ...] = ()
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at, in numbers, and what is wrong."""

    layers: int
    blobs: int
    chunks: int
    bytes: int
    damages: tuple[Damage, ...]


def verify_store(
    store: Store,
    *,
    start: Callable[[str, int], object] = lambda name, size: None,
    done: Callable[[int], object] = lambda size: None,
) -> VerifyReport:
    """Check the tables, then read every layer and kept blob to its last byte.

    Every chunk that a layer or blob reaches is decoded and compared with its ID on the way, and the joined whole with
    its digest. `start` is told the number of bytes to come, `done` of each that was checked, from several threads.

    Raises: CorruptStore: the tables themselves cannot be read.
    """
    damages = [*_check_index(store), *_check_space(store), *_check_links(store)]
    with store.read() as txn:
        layers = list(store.catalog.layers(txn))
        records = list(store.catalog.blobs(txn))
        chunks = store.index.count(txn)
    blobs = [(digest, record) for digest, record in records if record.wrapping is Wrapping.KEPT]
    for digest, record in records:
        if record.wrapping is Wrapping.REGENERATED:
            damages += _check_recipe(store, digest, record)
    streams = [
        *(_Stream("layer", digest, record.size, record.stretches) for digest, record in layers),
        *(_Stream("blob", digest, record.size, record.stretches) for digest, record in blobs),
    ]
    total = sum(stream.size for stream in streams)
    start("verify", total)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8), "layerstore-verify") as pool:
        found = pool.map(lambda stream: _check_stream(store, stream, done), streams)
        damages += [damage for damage in found if damage is not None]
    return VerifyReport(len(layers), len(blobs), chunks, total, tuple(damages))


class _Stream(NamedTuple):
    """A layer's tar or a kept blob."""

    what: str
    digest: Digest
    size: int
    stretches: tuple[Stretch, ...]


def _check_stream(store: Store, stream: _Stream, done: Callable[[int], object]) -> Damage | None:
    hasher, count = hashlib.sha256(), 0
    try:
        for block in store.reader.iter_stream(stream.stretches):
            hasher.update(block)
            count += len(block)
            done(len(block))
    except CorruptStore as error:
        done(stream.size - count)
        return _diagnosis(store, stream, str(error))
    got = "sha256:" + hasher.hexdigest()
    if got != stream.digest or count != stream.size:
        problem = f"comes out as {got}, {count} bytes instead of {stream.size}"
        return Damage(stream.what, stream.digest, problem)
    return None


def _check_recipe(store: Store, digest: Digest, record: BlobRecord) -> Iterator[Damage]:
    """The recipe of a blob is what was stored; whether the blob comes out of it is not tried here."""
    try:
        for _ in store.reader.iter_stream(record.stretches):
            pass
    except CorruptStore as error:
        numbers = [number for stretch in record.stretches for number in stretch.literals]
        damaged = tuple(sorted(_damaged(store, np.array(numbers, "u8"))))
        yield Damage("blob", digest, str(error), damaged, ("(the recipe itself)",))


def _diagnosis(store: Store, stream: _Stream, problem: str) -> Damage:
    """All damaged chunks of a stream, and the files they belong to."""
    damaged: set[int] = set()
    parts: list[Part] = []
    is_recipe_damaged = False
    for stretch in stream.stretches:
        meta = _damaged(store, np.array(stretch.literals + stretch.part, "u8"))
        damaged |= meta
        is_recipe_damaged |= bool(meta)
        if stretch.part and not meta & set(stretch.part):
            part = store.reader.part(stretch)
            numbers = part.extents["number"]
            damaged |= _damaged(store, np.unique(numbers[numbers != HOLE]))
            parts.append(part)
    # Without all parts nobody can say which extents are whose.
    whole = sum(part.length for part in parts) == stream.size
    paths = _paths_of(parts, damaged) if whole else []
    if is_recipe_damaged:
        paths.insert(0, "(the recipe itself)")
    if len(paths) > _MAX_PATHS:
        paths[_MAX_PATHS:] = [f"and {len(paths) - _MAX_PATHS} more"]
    return Damage(stream.what, stream.digest, problem, tuple(sorted(damaged)), tuple(paths))


def _damaged(store: Store, numbers: npt.NDArray[np.uint64]) -> set[int]:
    bad: set[int] = set()
    for at in range(0, len(numbers), 1024):
        try:
            store.reader.read(numbers[at : at + 1024])
        except DamagedChunks as error:
            bad.update(error.numbers)
        except CorruptStore:
            bad.update(numbers[at : at + 1024].tolist())
    return bad


def _paths_of(parts: Sequence[Part], bad: set[int]) -> list[str]:
    """Files of a layer that hold a damaged chunk: rows and extents run side by side."""
    if not parts:
        return []
    extents = np.concatenate([part.extents for part in parts])
    is_bad = np.isin(extents["number"], np.array(sorted(bad), "u8"))
    ends = np.cumsum(extents["length"], dtype="u8")
    paths, at = [], 0
    for entry in concat_entries([part.entries for part in parts]):
        first, at = at, at + entry.stored
        # An extent never belongs to two files: the last of this one ends where the file does.
        low, high = np.searchsorted(ends, [first, at], side="right")
        if entry.stored and entry.kind is Kind.FILE and is_bad[low:high].any():
            paths.append(entry.path.decode("utf-8", "backslashreplace"))
    return paths


def _check_index(store: Store) -> Iterator[Damage]:
    """Every number has one place inside the file, and its chunk ID leads to it, or to another chunk of that ID, or nowhere.

    Chunks that are condemned are not found by their ID, nor are those that came back after the same bytes had been
    stored again (docs/durability.md, "Garbage collection"): that costs deduplication, and nothing else.
    """
    with store.read() as txn:
        size = store.chunkfile.size(txn)
        for first, run in store.index.runs(txn):
            ids = [bytes(chunk_id) for chunk_id in run["id"]]
            known = store.index.lookup(txn, ids)
            lost = tuple(
                first + row
                for row, chunk_id in enumerate(ids)
                if not _leads_back(store, txn, chunk_id, first + row, known.get(chunk_id))
            )
            if lost:
                yield Damage("index", "", "chunk IDs do not lead back to their numbers", lost)
            ends = run["address"] + run["encoded"]
            if (ends > size).any():
                outside = (np.flatnonzero(ends > size) + first).tolist()
                yield Damage("index", "", "chunks lie outside the chunk file", tuple(outside))


def _leads_back(
    store: Store, txn: Transaction, chunk_id: bytes, number: int, found: int | None
) -> bool:
    if found in (None, number):
        return True
    try:
        return bytes(store.index.places(txn, np.array([found], "u8"))["id"][0]) == chunk_id
    except CorruptStore:
        return False


def _check_space(store: Store) -> Iterator[Damage]:
    """No two chunks overlap, and none lies in free space."""
    with store.read() as txn:
        runs = [run for _, run in store.index.runs(txn)]
        free = list(store.chunkfile.free_extents(txn))
    if not runs:
        return
    places = np.concatenate(runs)
    starts = np.concatenate([places["address"].astype("i8"), [extent.start for extent in free]])
    ends = np.concatenate(
        [places["address"].astype("i8") + places["encoded"], [extent.end for extent in free]]
    )
    order = np.argsort(starts, kind="stable")
    overlaps = int(np.count_nonzero(starts[order][1:] < ends[order][:-1]))
    if overlaps:
        yield Damage("space", "", f"{overlaps} chunks or free extents overlap")


def _check_links(store: Store) -> Iterator[Damage]:
    """Records lead to records: names to images, images to documents and layers, blobs to layers."""
    with store.read() as txn:
        layers = {diff_id for diff_id, _ in store.catalog.layers(txn)}
        blobs = dict(store.catalog.blobs(txn))
        for digest, image in store.catalog.images(txn):
            missing = [d for d in (digest, image.config) if d not in blobs]
            missing += [d for d in image.diff_ids if d not in layers]
            if missing:
                yield Damage("image", digest, f"{missing[0]} is missing")
        for name, target in store.catalog.refs(txn):
            if target not in blobs:
                yield Damage("ref", name, f"{target} is missing")
        for digest, record in blobs.items():
            if record.diff_id is not None and record.diff_id not in layers:
                yield Damage("blob", digest, f"its layer {record.diff_id} is missing")
