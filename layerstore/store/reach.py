"""What leads to what: from names over documents to layers, and from those to the chunks that they need.

    target -> documents, images, layers, blobs       records_of: follow a reference, whatever it names
    record -> chunk numbers                          stream_numbers, Reach: literals, parts, extents of the parts
    numbers -> bitmap                                NumberSet

Numbers are u64 arrays, ascending and distinct, without the hole. Of a part only the extents are decoded; parts of many
streams are read in one go and by several threads, so that the chunks of 1000 images are known in seconds.

A record that is removed while this reads loses its chunks: hold what you look at (`Store.hold`), or be its remover.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.digest import DiffID
from layerstore.errors import MalformedInput, NotFound, Unsupported
from layerstore.formats import oci
from layerstore.formats.recipe import decode_extents
from layerstore.sharing import distinct
from layerstore.tree import HOLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    from layerstore.digest import Digest
    from layerstore.store.catalog import BlobRecord, Stretch
    from layerstore.store.database import Transaction
    from layerstore.store.store import Store

__all__ = ["NumberSet", "Reach", "Records", "records_of", "stream_numbers"]

_PARTS = 32  # chunks of parts that a thread decodes at once, at most 1 MiB each
_STREAMS = 256  # streams that a thread looks at in one go


class Records(NamedTuple):
    """Records that something leads to; those that are absent are not among them.

    Attributes:
        images: manifest digests.
        blobs: documents, and blobs that documents name.
        layers: diff IDs.
    """

    images: set[Digest]
    blobs: set[Digest]
    layers: set[DiffID]


def records_of(
    store: Store, targets: Iterable[Digest], within: Transaction | None = None
) -> Records:
    """All records that these digests lead to: each may be of a manifest, an index, a layer or any blob.

    As the transaction `within` sees them, or as they are by now.

    Raises: CorruptStore: a document is damaged, so that nobody can say what it names.
    """
    found = Records(set(), set(), set())
    pending = list(targets)
    while pending:
        digest = pending.pop()
        with nullcontext(within) if within is not None else store.read() as txn:
            layer = store.catalog.layer(txn, DiffID(digest))
            blob = store.catalog.blob(txn, digest)
            image = store.catalog.image(txn, digest)
        if layer is not None:
            found.layers.add(DiffID(digest))
        if image is not None:
            found.images.add(digest)
            found.layers.update(image.diff_ids)
            pending.append(image.config)
        if blob is None or digest in found.blobs:
            continue
        found.blobs.add(digest)
        if blob.diff_id is not None:
            found.layers.add(blob.diff_id)
        else:
            pending += _children(store, digest, blob)
    return found


def stream_numbers(
    store: Store, streams: Iterable[Sequence[Stretch]]
) -> Iterator[npt.NDArray[np.uint64]]:
    """The chunks of each stream, in the order of the streams; a few hundred streams are in memory at once.

    Raises: CorruptStore: a part is damaged, or its chunks are gone.
    """
    workers = min(os.cpu_count() or 1, 4)
    groups = _groups(streams)
    with ThreadPoolExecutor(workers, "layerstore-reach") as pool:
        running: deque[Future[list[npt.NDArray[np.uint64]]]] = deque()
        while True:
            while len(running) <= workers and (group := next(groups, None)):
                running.append(pool.submit(_numbers_of, store, group))
            if not running:
                return
            yield from running.popleft().result()


class Reach:
    """The chunks of layers, blobs and images of one store, each read once while this object is used.

    Thread safety: one thread at a time. Give `layers` many at once: that is what is quick.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._layers: dict[DiffID, npt.NDArray[np.uint64]] = {}
        self._blobs: dict[Digest, npt.NDArray[np.uint64]] = {}

    def layers(self, diff_ids: Iterable[DiffID]) -> dict[DiffID, npt.NDArray[np.uint64]]:
        """What each of these layers needs to be given out and mounted.

        Raises: NotFound: a layer. CorruptStore.
        """
        wanted = list(dict.fromkeys(diff_ids))
        missing = [diff_id for diff_id in wanted if diff_id not in self._layers]
        streams = []
        with self._store.read() as txn:
            for diff_id in missing:
                record = self._store.catalog.layer(txn, diff_id)
                if record is None:
                    raise NotFound(f"no layer {diff_id} in this store")
                streams.append(record.stretches)
        self._layers.update(zip(missing, stream_numbers(self._store, streams), strict=True))
        return {diff_id: self._layers[diff_id] for diff_id in wanted}

    def layer(self, diff_id: DiffID) -> npt.NDArray[np.uint64]:
        """What one layer needs. Raises as `layers`."""
        return self.layers([diff_id])[diff_id]

    def blobs(self, digests: Iterable[Digest]) -> dict[Digest, npt.NDArray[np.uint64]]:
        """What the records of these blobs need beside their layer, whatever the wrapping. Raises as `layers`."""
        wanted = list(dict.fromkeys(digests))
        missing = [digest for digest in wanted if digest not in self._blobs]
        streams = []
        with self._store.read() as txn:
            for digest in missing:
                record = self._store.catalog.blob(txn, digest)
                if record is None:
                    raise NotFound(f"no blob {digest} in this store")
                streams.append(record.stretches)
        self._blobs.update(zip(missing, stream_numbers(self._store, streams), strict=True))
        return {digest: self._blobs[digest] for digest in wanted}

    def image(self, target: Digest) -> npt.NDArray[np.uint64]:
        """All that a manifest or an index leads to: documents, layers, the blobs that are kept of them.

        Raises: CorruptStore; NotFound: a layer of it is missing.
        """
        records = records_of(self._store, [target])
        arrays = [*self.layers(records.layers).values(), *self.blobs(records.blobs).values()]
        return distinct(np.concatenate([np.empty(0, "u8"), *arrays]))


class NumberSet:
    """A set of chunk numbers as a bitmap over all numbers of a store: one byte for each that was ever given.

    Thread safety: one thread at a time while it changes.
    """

    def __init__(self, count: int) -> None:
        """An empty set for the numbers 1 .. `count` (`ChunkIndex.count`); larger ones make it grow."""
        self._bits = np.zeros(count + 1, np.bool_)

    def add(self, numbers: npt.NDArray[np.uint64]) -> None:
        """Add numbers, in any order and repeated or not."""
        if len(numbers):
            self.grow(int(numbers.max()))
            self._bits[numbers] = True

    def grow(self, count: int) -> None:
        """Make room for the numbers up to `count` at once."""
        if count >= len(self._bits):
            more = np.zeros(count + 1 - len(self._bits), np.bool_)
            self._bits = np.concatenate([self._bits, more])

    def discard(self, first: int, length: int) -> None:
        """Take `length` consecutive numbers out."""
        self._bits[first : first + length] = False

    def has(self, numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Whether each of these is in the set."""
        found = np.zeros(len(numbers), np.bool_)
        inside = numbers < np.uint64(len(self._bits))
        found[inside] = self._bits[numbers[inside]]
        return found

    def window(self, first: int, length: int) -> npt.NDArray[np.bool_]:
        """The same of `length` consecutive numbers: what goes beside a run of places."""
        part = self._bits[first : first + length]
        return part if len(part) == length else np.pad(part, (0, length - len(part)))

    def numbers(self) -> npt.NDArray[np.uint64]:
        """The set, ascending."""
        return np.flatnonzero(self._bits).astype("u8")

    def __len__(self) -> int:
        return int(np.count_nonzero(self._bits))


def _children(store: Store, digest: Digest, blob: BlobRecord) -> list[Digest]:
    """The blobs that a document names; none for a blob that is no document."""
    if blob.size > oci.MANIFEST_LIMIT or not blob.stretches:
        return []
    data = b"".join(store.reader.iter_stream(blob.stretches))
    try:
        document = oci.parse_document(data, None, digest)
    except (MalformedInput, Unsupported):
        return []
    if isinstance(document, oci.Index):
        return [entry.digest for entry in document.manifests]
    return [document.config.digest, *(layer.digest for layer in document.layers)]


def _groups(streams: Iterable[Sequence[Stretch]]) -> Iterator[list[Sequence[Stretch]]]:
    """Streams in groups for a thread: not too many, and not too much to decode."""
    group: list[Sequence[Stretch]] = []
    parts = 0
    for stream in streams:
        group.append(stream)
        parts += sum(len(stretch.part) for stretch in stream)
        if parts >= _PARTS or len(group) >= _STREAMS:
            yield group
            group, parts = [], 0
    if group:
        yield group


def _numbers_of(store: Store, streams: Sequence[Sequence[Stretch]]) -> list[npt.NDArray[np.uint64]]:
    found = [
        [np.array([*stretch.literals, *stretch.part], "u8") for stretch in stream]
        for stream in streams
    ]
    parts = [
        (position, stretch.part)
        for position, stream in enumerate(streams)
        for stretch in stream
        if stretch.part
    ]
    at = 0
    while at < len(parts):
        until, wanted = at, list[int]()
        while until < len(parts) and len(wanted) < _PARTS:
            wanted += parts[until][1]
            until += 1
        contents = iter(store.reader.read(np.array(wanted, "u8")))
        for position, part in parts[at:until]:
            extents = decode_extents(b"".join(islice(contents, len(part))))
            found[position].append(extents["number"])
        at = until
    return [_distinct(arrays) for arrays in found]


def _distinct(arrays: Sequence[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    numbers = distinct(np.concatenate([np.empty(0, "u8"), *arrays]))
    return numbers[1:] if len(numbers) and numbers[0] == HOLE else numbers
