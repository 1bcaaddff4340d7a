"""Why something is in the store: who holds an image, a layer, a blob, a chunk, or what is at a path.

    text > what it names > which roots lead to it: images by name, snapshots, mounts, leases, sessions

A path is looked up in the recipes of all layers; nothing is merged and no content is read, so that thousands of images
can be asked at once.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.digest import DiffID, Digest
from layerstore.errors import InvalidArgument, NotFound
from layerstore.images.lookup import find_target
from layerstore.sharing import files_of
from layerstore.store.leases import LeaseTable
from layerstore.store.mountstate import MountTable
from layerstore.store.reach import Reach, records_of, stream_numbers
from layerstore.store.sessionstate import SessionTable
from layerstore.store.snapstate import SnapshotTable
from layerstore.tree import HOLE, Kind, concat_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from layerstore.formats.recipe import Part
    from layerstore.store.catalog import LayerRecord
    from layerstore.store.database import Transaction
    from layerstore.store.reach import Records
    from layerstore.store.store import Store
    from layerstore.tree import Entries

__all__ = ["Held", "Holder", "why"]

_DIGITS = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")
_CHUNK = re.compile(r"(?:blake3:)?([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody that needs it.

    Attributes:
        kind: image, index, snapshot, mount, lease or session.
        name: an image's first name or its digest, a snapshot's key, a mount's folder, a lease's or session's number.
        hidden: it is in a layer of the image, and a layer above hides it.
    """

    kind: str
    name: str
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """One thing, and all that need it.

    Attributes:
        kind: image, index, layer, blob, chunk; of a path file, directory, symlink or another kind of entry.
        name: its digest, or the path.
        size: bytes: of a layer's tar, a blob, a chunk or a file as they are; of an image, of its layers' tars.
        stored: encoded bytes of its chunks.
        layers: diff IDs of the layers that have it; empty for images, indexes and layers.
        holders: empty for what the next `prune` frees.
    """

    kind: str
    name: str
    size: int
    stored: int
    layers: tuple[DiffID, ...]
    holders: tuple[Holder, ...]


def why(store: Store, text: str) -> list[Held]:
    """What `text` names and who needs it: a path with a slash in front, a digest or 12 digits of it, or an image's name.

    A path gives one answer for each different content, that of most holders first.

    Raises: NotFound: nothing in the store is named so. InvalidArgument. CorruptStore.
    """
    with store.hold(everything=True), store.read() as txn:
        asked = _Question(store, txn)
        if text.startswith("/"):
            return asked.path(text)
        if (match := _DIGITS.fullmatch(text)) and (found := asked.digest(match[1])):
            return found
        if match := _CHUNK.fullmatch(text):
            return asked.chunk(bytes.fromhex(match[1]))
        return [asked.record(find_target(store, text))]


class _Root(NamedTuple):
    """A holder, and all that it leads to."""

    holder: Holder
    records: Records


class _Question:
    """What is asked of one moment of the store."""

    def __init__(self, store: Store, txn: Transaction) -> None:
        self._store, self._txn = store, txn
        self._images = dict(store.catalog.images(txn))
        self._layers = dict(store.catalog.layers(txn))
        self._roots = list(self._read_roots())

    def record(self, digest: Digest) -> Held:
        """An image, an index, a layer or a blob."""
        layer = self._layers.get(DiffID(digest))
        blob = self._store.catalog.blob(self._txn, digest)
        reached = records_of(self._store, [digest], self._txn)
        holders = self._holders(
            lambda records: (
                digest in records.images
                or digest in records.blobs
                or DiffID(digest) in records.layers
            )
        )
        if digest in self._images or (reached.images and layer is None):
            stacks = {self._images[one].diff_ids for one in reached.images if one in self._images}
            size = sum(self._layers[diff_id].size for stack in stacks for diff_id in stack)
            kind = "image" if digest in self._images else "index"
            return Held(kind, digest, size, self._stored(reached), (), holders)
        if layer is not None:
            return Held("layer", digest, layer.size, self._stored(reached), (), holders)
        if blob is None:
            raise NotFound(f"no {digest} in this store")
        inside = (blob.diff_id,) if blob.diff_id else ()
        own = next(stream_numbers(self._store, [blob.stretches]))
        return Held("blob", digest, blob.size, self._bytes_of(own), inside, holders)

    def digest(self, digits: str) -> list[Held]:
        """Everything whose sha256 begins so; an image also by that of its config."""
        wanted = "sha256:" + digits
        blobs = [digest for digest, _ in self._store.catalog.blobs(self._txn)]
        images = {d for d, one in self._images.items() if one.config.startswith(wanted)}
        named = {one for one in (*self._images, *self._layers, *blobs) if one.startswith(wanted)}
        # An image ID means the image, and not the document that it is the digest of.
        found = images | (named - {self._images[one].config for one in images})
        return [self.record(digest) for digest in sorted(found)]

    def chunk(self, chunk_id: bytes) -> list[Held]:
        """A chunk by its BLAKE3."""
        numbers = self._store.index.lookup(self._txn, [chunk_id])
        if chunk_id not in numbers:
            raise NotFound(f"no chunk {chunk_id.hex()} in this store")
        number = np.array([numbers[chunk_id]], "u8")
        place = self._store.index.places(self._txn, number)[0]
        reach = Reach(self._store)
        layers = tuple(
            diff_id
            for diff_id, needed in reach.layers(self._layers).items()
            if np.isin(number, needed)[0]
        )
        blobs = {
            digest
            for digest, needed in reach.blobs(
                [digest for digest, _ in self._store.catalog.blobs(self._txn)]
            ).items()
            if np.isin(number, needed)[0]
        }
        holders = self._holders(
            lambda records: (
                not records.layers.isdisjoint(layers) or not records.blobs.isdisjoint(blobs)
            )
        )
        return [
            Held(
                "chunk",
                chunk_id.hex(),
                int(place["decoded"]),
                int(place["encoded"]),
                tuple(sorted(layers)),
                holders,
            )
        ]

    def path(self, text: str) -> list[Held]:
        """What is at a path, in any layer of any image."""
        path = text.strip("/").encode("utf-8", "surrogateescape")
        if {b"", b".", b".."} & set(path.split(b"/")):
            raise InvalidArgument(f"{text}: give a path below the root, without . and ..")
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 4), "layerstore-why") as pool:
            each = pool.map(lambda one: _in_layer(self._store, one, path), self._layers.values())
            seen = dict(zip(self._layers, each, strict=True))
        contents: dict[_Content, list[DiffID]] = {}
        for diff_id, one in seen.items():
            if one.content is not None:
                contents.setdefault(one.content, []).append(diff_id)
        if not contents:
            raise NotFound(f"no layer of this store has {text}")
        found = []
        for content, layers in contents.items():
            holders = []
            for root in self._roots:
                if root.records.layers.isdisjoint(layers):
                    continue
                shown = [
                    _shown(self._images[one].diff_ids, seen, content)
                    for one in root.records.images
                    if one in self._images and set(self._images[one].diff_ids) & set(layers)
                ]
                hidden = bool(shown) and not any(shown)
                holders.append(Holder(root.holder.kind, root.holder.name, hidden))
            stored = self._bytes_of(np.array(content.numbers, "u8"))
            shown_path = "/" + path.decode("utf-8", "surrogateescape")
            found.append(
                Held(
                    content.kind.name.lower(),
                    shown_path,
                    content.size,
                    stored,
                    tuple(sorted(layers)),
                    tuple(holders),
                )
            )
        return sorted(found, key=lambda held: (-len(held.holders), held.layers))

    def _holders(self, needs: Callable[[Records], bool]) -> tuple[Holder, ...]:
        return tuple(root.holder for root in self._roots if needs(root.records))

    def _read_roots(self) -> Iterator[_Root]:
        store, txn = self._store, self._txn
        names: dict[Digest, list[str]] = {}
        for name, target in store.catalog.refs(txn):
            names.setdefault(target, []).append(name)
        for target in sorted({*names, *self._images}, key=lambda one: (names.get(one, ["~"]), one)):
            kind = "image" if target in self._images else "index"
            for name in names.get(target, [target]):
                yield self._root(kind, name, [target])
        for snapshot in SnapshotTable(store.database).records(txn):
            yield self._root("snapshot", snapshot.key, map(Digest, snapshot.stack))
        for _, mount in MountTable(store.database).items(txn):
            yield self._root("mount", mount.target, map(Digest, mount.diff_ids))
        for number, lease in LeaseTable(store.database).items(txn):
            yield self._root("lease", lease.label or str(number), lease.holds)
        for number, session in SessionTable(store.database).items(txn):
            if session.holds:
                yield self._root("session", str(number), session.holds)

    def _root(self, kind: str, name: str, targets: Iterable[Digest]) -> _Root:
        return _Root(Holder(kind, name), records_of(self._store, targets, self._txn))

    def _stored(self, records: Records) -> int:
        layers = [self._layers[one].stretches for one in records.layers]
        found = (self._store.catalog.blob(self._txn, one) for one in records.blobs)
        blobs = [blob.stretches for blob in found if blob is not None]
        arrays = list(stream_numbers(self._store, [*layers, *blobs]))
        return self._bytes_of(np.unique(np.concatenate([np.empty(0, "u8"), *arrays])))

    def _bytes_of(self, numbers: npt.NDArray[np.uint64]) -> int:
        if not len(numbers):
            return 0
        return int(self._store.index.places(self._txn, numbers)["encoded"].sum(dtype="u8"))


class _Content(NamedTuple):
    """What a layer has at a path. `link` is the target of a symbolic link."""

    kind: Kind
    key: int
    size: int
    numbers: tuple[int, ...]
    link: bytes


@dataclass(slots=True)
class _InLayer:
    """What a layer says of a path: its content, or that it hides what is below."""

    content: _Content | None = None
    hides: bool = False


def _in_layer(store: Store, record: LayerRecord, path: bytes) -> _InLayer:
    parts = [store.reader.part(stretch) for stretch in record.stretches if stretch.part]
    entries = concat_entries([part.entries for part in parts])
    found = _InLayer()
    for above in _ancestors(path):
        for row in _rows_of(entries, above):
            kind = Kind(int(entries.rows["kind"][row]))
            # An opaque mark hides what lower layers have in it, and so does whatever is no directory.
            found.hides |= kind not in (Kind.DIRECTORY, Kind.OTHER)
    rows = _rows_of(entries, path)
    for row in rows:
        kind = Kind(int(entries.rows["kind"][row]))
        if kind is Kind.OPAQUE:
            continue
        found.hides |= kind is not Kind.OTHER
        if kind not in (Kind.WHITEOUT, Kind.OTHER):
            found.content = _content(parts, entries, row)
    return found


def _content(parts: Sequence[Part], entries: Entries, row: int) -> _Content:
    kind = Kind(int(entries.rows["kind"][row]))
    link = b""
    if kind in (Kind.SYMLINK, Kind.HARDLINK):
        ends = np.cumsum(entries.rows["link"], dtype="i8")
        link = entries.links[int(ends[row]) - int(entries.rows["link"][row]) : int(ends[row])]
    if kind is Kind.HARDLINK:
        # The content is that of the other name; a layer may also link to a name of a lower layer.
        others = [r for r in _rows_of(entries, link) if entries.rows["kind"][r] == Kind.FILE]
        if not others:
            return _Content(Kind.HARDLINK, 0, 0, (), link)
        kind, row, link = Kind.FILE, others[-1], b""
    if kind is not Kind.FILE:
        return _Content(kind, 0, 0, (), link)
    table = np.concatenate([part.extents for part in parts])
    files = files_of(table["number"], table["length"], entries.rows["stored"])
    first, count = int(files.first[row]), int(files.counts[row])
    numbers = np.unique(table["number"][first : first + count])
    size = int(entries.rows["size"][row])
    return _Content(kind, int(files.keys[row]), size, tuple(numbers[numbers != HOLE].tolist()), b"")


def _rows_of(entries: Entries, path: bytes) -> list[int]:
    """The rows of a path, in their order."""
    lengths = entries.rows["path"].astype("i8")
    starts = np.cumsum(lengths) - lengths
    rows = np.flatnonzero(lengths == len(path)).tolist()
    return [r for r in rows if entries.paths.startswith(path, int(starts[r]))]


def _ancestors(path: bytes) -> list[bytes]:
    """The directories above a path, the root first."""
    names = path.split(b"/")
    return [b"/".join(names[:depth]) for depth in range(len(names))]


def _shown(stack: Sequence[DiffID], seen: Mapping[DiffID, _InLayer], content: _Content) -> bool:
    """Whether a stack shows this content at the path."""
    for diff_id in reversed(stack):
        if (one := seen.get(diff_id)) is None:
            continue
        if one.content is not None:
            return one.content == content
        if one.hides:
            return False
    return False
