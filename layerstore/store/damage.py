"""What is wrong, and whom it hits: from damaged chunks to the layers, blobs and files that need them.

    damaged numbers  ->  streams whose literals, parts or extents have one  ->  paths, by rows and extents side by side

Works on stores whose recipes are damaged themselves: what cannot be read any more is named, and the rest is looked at.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.errors import CorruptStore
from layerstore.store.catalog import Wrapping
from layerstore.store.reach import stream_numbers
from layerstore.store.reader import DamagedChunks
from layerstore.tree import HOLE, Kind, concat_entries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    import numpy.typing as npt

    from layerstore.digest import Digest
    from layerstore.formats.recipe import Part
    from layerstore.store.catalog import Stretch
    from layerstore.store.database import Transaction
    from layerstore.store.reader import ChunkReader
    from layerstore.store.store import Store

__all__ = ["Damage", "Stream", "damaged_among", "hit_streams", "streams_of", "tolerant_numbers"]

_MAX_PATHS = 20  # named for each damage; the rest is counted
_MAX_CHUNKS = 5  # named in words
_ONE_BY_ONE = 256  # streams behind one whose recipe is damaged that are looked at alone


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong.

    Attributes:
        what: `layer`, `blob`, `chunk`, `index`, `space`, `image`, `ref`, `tables` or `journal`.
        name: its digest or name; empty for what has none.
        problem: in words.
        chunks: damaged chunk numbers.
        paths: files of the layer that hold them, at most 20.
    """

    what: str
    name: str
    problem: str
    chunks: tuple[int, ...] = ()
    paths: tuple[str, ...] = ()


class Stream(NamedTuple):
    """What is stored of a record: a layer's tar, a kept blob, or the recipe that a blob is made again from.

    Attributes:
        what: `layer` or `blob`.
        digest: of the layer's tar, of the blob.
        size: bytes of the stream; 0 for a recipe, whose record does not say it.
        stretches: that it is joined from.
        is_recipe: whether the digest is that of the blob, and not of these bytes.
    """

    what: str
    digest: Digest
    size: int
    stretches: tuple[Stretch, ...]
    is_recipe: bool = False

    @property
    def key(self) -> str:
        """What streams are sorted by."""
        return f"{self.what} {self.digest}"


def streams_of(store: Store, txn: Transaction) -> list[Stream]:
    """All layers, kept blobs and recipes of blobs, in the order of their keys; records that cannot be read are left out."""
    streams = []
    for diff_id in store.catalog.layer_digests(txn):
        try:
            layer = store.catalog.layer(txn, diff_id)
        except CorruptStore:
            continue
        if layer is not None:
            streams.append(Stream("layer", diff_id, layer.size, layer.stretches))
    for digest in store.catalog.blob_digests(txn):
        try:
            blob = store.catalog.blob(txn, digest)
        except CorruptStore:
            continue
        if blob is not None and blob.wrapping is Wrapping.KEPT:
            streams.append(Stream("blob", digest, blob.size, blob.stretches))
        elif blob is not None and blob.wrapping is Wrapping.REGENERATED:
            streams.append(Stream("blob", digest, 0, blob.stretches, is_recipe=True))
    return sorted(streams, key=lambda stream: stream.key)


def tolerant_numbers(store: Store, streams: Sequence[Stream]) -> Iterator[npt.NDArray[np.uint64]]:
    """The chunks of each stream, in the order of the streams; of a damaged recipe those that are known."""
    at = 0
    while at < len(streams):
        try:
            for numbers in stream_numbers(store, [one.stretches for one in streams[at:]]):
                yield numbers
                at += 1
        except (CorruptStore, OSError) as error:
            _raise_unless_damage(error)
            for stream in streams[at : at + _ONE_BY_ONE]:
                yield _known_numbers(store, stream)
                at += 1


def damaged_among(reader: ChunkReader, numbers: npt.NDArray[np.uint64]) -> set[int]:
    """Which of these chunks cannot be read, or are not what was stored, or have no place."""
    try:
        reader.read(numbers)
    except DamagedChunks as error:
        return set(error.numbers)
    except (CorruptStore, OSError) as error:
        _raise_unless_damage(error)
    else:
        return set()
    if len(numbers) == 1:
        return {int(numbers[0])}
    half = len(numbers) // 2
    return damaged_among(reader, numbers[:half]) | damaged_among(reader, numbers[half:])


def hit_streams(store: Store, streams: Sequence[Stream], bad: AbstractSet[int]) -> Iterator[Damage]:
    """A damage for each stream that needs a damaged chunk, with the paths of the files that do."""
    table = np.array(sorted(bad), "u8")
    for stream, numbers in zip(streams, tolerant_numbers(store, streams), strict=True):
        hit = numbers[np.isin(numbers, table)]
        if len(hit):
            yield _hit(store, stream, set(hit.tolist()))


def _known_numbers(store: Store, stream: Stream) -> npt.NDArray[np.uint64]:
    found = [np.empty(0, "u8")]
    for stretch in stream.stretches:
        found.append(np.array([*stretch.literals, *stretch.part], "u8"))
        if stretch.part:
            try:
                found.append(store.reader.part(stretch).extents["number"].astype("u8"))
            except (CorruptStore, OSError) as error:
                _raise_unless_damage(error)
    numbers: npt.NDArray[np.uint64] = np.setdiff1d(np.concatenate(found), [np.uint64(HOLE)])
    return numbers


def _hit(store: Store, stream: Stream, bad: set[int]) -> Damage:
    parts: list[Part] = []
    is_recipe_hit = False
    for stretch in stream.stretches:
        is_recipe_hit |= bool(bad & {*stretch.literals, *stretch.part})
        if stretch.part and not bad & set(stretch.part):
            parts.append(store.reader.part(stretch))
    # Without all parts nobody can say which extents are whose.
    whole = sum(part.length for part in parts) == stream.size
    paths = _paths_of(parts, bad) if whole else []
    if is_recipe_hit:
        paths.insert(0, "(the recipe itself)" if stream.what == "layer" else "(the blob itself)")
    if len(paths) > _MAX_PATHS:
        paths[_MAX_PATHS:] = [f"and {len(paths) - _MAX_PATHS} more"]
    numbers = sorted(bad)
    some = ", ".join(map(str, numbers[:_MAX_CHUNKS])) + ", …" * (len(numbers) > _MAX_CHUNKS)
    problem = f"chunk {some} is damaged" if len(numbers) == 1 else f"chunks {some} are damaged"
    return Damage(stream.what, stream.digest, problem, tuple(numbers), tuple(paths))


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


def _raise_unless_damage(error: Exception) -> None:
    """A disk that cannot read a block has damaged it; other errors of the system are not the store's."""
    if isinstance(error, OSError) and error.errno != errno.EIO:
        raise error
