"""Where the bytes of a store are: what each image has of its own, its share of the rest, and what belongs to no image.

    recipes > chunks of each image > holders of each chunk > shares, blocks that come back

Everything is counted in whole bytes, so that it adds up exactly:

    sum of the images' shares = contents + recipes + kept blobs
    that sum + overhead       = what `du -sx` says of the store

Chunks are counted with their encoded bytes, as they lie in the chunk file; what goes beyond (blocks that are partly
used) is slack. While somebody writes to the store, files and tables are not those of one moment, and slack takes the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.digest import Digest
from layerstore.errors import CorruptStore
from layerstore.formats import oci
from layerstore.images.contents import read_contents
from layerstore.images.wrapped import blob_kinds
from layerstore.sharing import distinct, divide
from layerstore.store.catalog import Wrapping
from layerstore.store.layout import BLOCK
from layerstore.store.reach import NumberSet, records_of, stream_numbers
from layerstore.store.roots import read_roots
from layerstore.store.spacemap import NOBODY, SHARED, blocks_of_owners, unowned_extents

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from layerstore.digest import DiffID
    from layerstore.images.contents import StoredLayer
    from layerstore.images.wrapped import BlobKind
    from layerstore.store.catalog import BlobRecord
    from layerstore.store.database import Transaction
    from layerstore.store.reach import Records
    from layerstore.store.store import Store

__all__ = ["DiskUsage", "ImageUsage", "Overhead", "Split", "account"]


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """One image. All in bytes.

    Attributes:
        names: full references; of an index, those of the index.
        id: digest of the config, Docker's image ID.
        digest: of the manifest.
        unpacked: files of all its layers, as a driver that unpacks layers stores them, without blocks.
        blobs: layers as the manifest's registry has them; plain tars for an image of a docker-archive.
        stored: chunks that it needs, as if it were alone.
        alone: of these, what nothing else needs.
        share: of `stored`, each chunk divided by the number of images that hold it.
        freed: of the disk, in whole blocks, when only this image is removed and the store pruned.
    """

    names: tuple[str, ...]
    id: Digest
    digest: Digest
    layers: int
    unpacked: int
    blobs: int
    stored: int
    alone: int
    share: int
    freed: int


@dataclass(frozen=True, slots=True)
class Split:
    """What is left of all images after each step. All in bytes.

    Attributes:
        unpacked: every image has its own files.
        layers: every layer is there once.
        files: every file content is there once.
        chunks: every chunk of files is there once, and zeros not at all.
        contents: the same, compressed.
        recipes: chunks of tar headers, recipes, manifests and configs that hold no contents.
        kept_blobs: chunks of compressed layers that are kept, or of their gzip recipes, that hold nothing of the above.
    """

    unpacked: int
    layers: int
    files: int
    chunks: int
    contents: int
    recipes: int
    kept_blobs: int


@dataclass(frozen=True, slots=True)
class Overhead:
    """What is on the disk and in no image's share. All in bytes.

    Attributes:
        held: chunks that only snapshots, mounts, leases, sessions or indexes need.
        garbage: chunks that nothing needs; `prune` frees them.
        slack: what the chunk file takes beyond its chunks: blocks partly used, room that a session has reserved.
        tables: LMDB and its journal.
        caches: metadata images, objects and links of mounts.
        writable: changes of snapshots and mounts, and plain lower layers.
        other: folders, FORMAT, locks.
    """

    held: int
    garbage: int
    slack: int
    tables: int
    caches: int
    writable: int
    other: int


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """The whole store.

    Attributes:
        images: in the order of their names; those without one last.
        layers: distinct layers of images.
        chunks: that have a place, garbage included.
        blobs: layers as registries have them, by how their bytes are had.
        total: what all files of the store take, as `du -sx`.
        reclaimable: of the disk, in whole blocks, that `prune` would free now.
    """

    images: tuple[ImageUsage, ...]
    layers: int
    chunks: int
    split: Split
    overhead: Overhead
    blobs: tuple[BlobKind, ...]
    total: int
    reclaimable: int


def account(store: Store) -> DiskUsage:
    """Account for every byte of the store. It reads the recipes of all layers, and no contents.

    Raises: CorruptStore: a record or a recipe is damaged; or a prune took it away meanwhile: ask again then.
    """
    with store.hold(everything=True):
        with store.read() as txn:
            found = _Account(store, txn).run()
        blobs = blob_kinds(store)
    # Only now: the tables have grown a little by what was held.
    return _with_disk(found, blobs, store.sizes_on_disk())


class _Found(NamedTuple):
    """What the tables say; `held` and `garbage` as in `Overhead`."""

    images: tuple[ImageUsage, ...]
    layers: int
    chunks: int
    split: Split
    held: int
    garbage: int
    reclaimable: int


class _Account:
    """One accounting, in one transaction."""

    def __init__(self, store: Store, txn: Transaction) -> None:
        self._store, self._txn = store, txn
        self._images = dict(store.catalog.images(txn))
        self._layers = dict(store.catalog.layers(txn))
        self._blobs = dict(store.catalog.blobs(txn))
        count = store.index.count(txn)
        self._encoded, self._decoded = np.zeros(count + 1, "u4"), np.zeros(count + 1, "u4")
        for first, run in store.index.runs(txn):
            self._encoded[first : first + len(run)] = run["encoded"]
            self._decoded[first : first + len(run)] = run["decoded"]

    def run(self) -> _Found:
        records, names, held = self._records()
        layers = self._contents(records)
        blobs = self._blob_chunks(records)
        order = sorted(records, key=lambda digest: (not names[digest], names[digest], digest))
        chunks = [self._chunks_of(records[digest], layers, blobs) for digest in order]
        holders = np.zeros(len(self._encoded), "u4")
        for mine in chunks:
            holders[mine] += 1
        split, owned = self._split(records, layers, blobs)
        otherwise = self._held_by_others(held)
        freed, reclaimable = self._freed(chunks, holders, otherwise)
        taken = np.zeros(len(self._encoded), "u4")
        images = []
        for digest, mine, blocks in zip(order, chunks, freed, strict=True):
            sizes, shared_by = self._encoded[mine], holders[mine]
            is_alone = (shared_by == 1) & ~otherwise.has(mine)
            images.append(
                ImageUsage(
                    names[digest],
                    self._images[digest].config,
                    digest,
                    len(self._images[digest].diff_ids),
                    sum(layers[diff_id].unpacked for diff_id in self._images[digest].diff_ids),
                    self._registry_bytes(digest),
                    int(sizes.sum(dtype="u8")),
                    int(sizes[is_alone].sum(dtype="u8")),
                    divide(sizes, shared_by, taken[mine]),
                    int(blocks) * BLOCK,
                )
            )
            taken[mine] += 1
        all_chunks = int(self._encoded.sum(dtype="u8"))
        held_bytes = self._bytes_of(
            np.flatnonzero((holders == 0) & otherwise.window(0, len(holders))).astype("u8")
        )
        return _Found(
            tuple(images),
            len(layers),
            int(np.count_nonzero(self._encoded)),
            split,
            held_bytes,
            all_chunks - owned - held_bytes,
            reclaimable,
        )

    def _records(self) -> tuple[dict[Digest, Records], dict[Digest, tuple[str, ...]], Records]:
        """Of each image its records and names; and the records that something else needs.

        The documents of an index are those of each of its images.
        """
        found = {digest: records_of(self._store, [digest], self._txn) for digest in self._images}
        names: dict[Digest, list[str]] = {digest: [] for digest in self._images}
        roots = read_roots(self._store, self._txn)
        others = set(roots.used)
        if roots.all_leased:
            others |= {*self._images, *self._layers, *self._blobs}
        for name, target in self._store.catalog.refs(self._txn):
            if target in self._images:
                names[target].append(name)
                continue
            reached = records_of(self._store, [target], self._txn)
            if not reached.images:
                others.add(target)
                continue
            own = set[Digest]().union(*(found[digest].blobs for digest in reached.images))
            for digest in reached.images:
                names[digest].append(name)
                found[digest].blobs.update(reached.blobs - own)
        held = records_of(self._store, others, self._txn)
        return found, {digest: tuple(sorted(names[digest])) for digest in names}, held

    def _contents(self, records: Mapping[Digest, Records]) -> dict[DiffID, StoredLayer]:
        wanted = {diff_id for digest in records for diff_id in self._images[digest].diff_ids}
        wanted.update(*(found.layers for found in records.values()))
        if missing := wanted - self._layers.keys():
            raise CorruptStore(f"layer {min(missing)} is missing; run `layerstore verify`")
        return read_contents(self._store, {diff_id: self._layers[diff_id] for diff_id in wanted})

    def _blob_chunks(
        self, records: Mapping[Digest, Records]
    ) -> dict[Digest, npt.NDArray[np.uint64]]:
        wanted = sorted(set[Digest]().union(*(found.blobs for found in records.values())))
        streams = [self._blobs[digest].stretches for digest in wanted]
        return dict(zip(wanted, stream_numbers(self._store, streams), strict=True))

    def _chunks_of(
        self,
        records: Records,
        layers: Mapping[DiffID, StoredLayer],
        blobs: Mapping[Digest, npt.NDArray[np.uint64]],
    ) -> npt.NDArray[np.uint64]:
        arrays = [blobs[digest] for digest in records.blobs]
        for diff_id in records.layers:
            arrays += (layers[diff_id].numbers, layers[diff_id].recipe)
        return _union(arrays)

    def _split(
        self,
        records: Mapping[Digest, Records],
        layers: Mapping[DiffID, StoredLayer],
        blobs: Mapping[Digest, npt.NDArray[np.uint64]],
    ) -> tuple[Split, int]:
        """The steps; and the encoded bytes of all chunks that images hold."""
        stacks = [self._images[digest].diff_ids for digest in records]
        files = np.concatenate([np.empty(0, "u8"), *(one.files for one in layers.values())])
        sizes = np.concatenate([np.empty(0, "u8"), *(one.sizes for one in layers.values())])
        _, distinct = np.unique(files, return_index=True)
        contents = _union([one.numbers for one in layers.values()])
        recipes = [one.recipe for one in layers.values()]
        recipes += [numbers for d, numbers in blobs.items() if not _is_kept(self._blobs[d])]
        with_recipes = _union([contents, *recipes])
        everything = _union([with_recipes, *blobs.values()])
        stored = [self._bytes_of(one) for one in (contents, with_recipes, everything)]
        split = Split(
            sum(layers[diff_id].unpacked for stack in stacks for diff_id in stack),
            sum(one.unpacked for one in layers.values()),
            int(sizes[distinct].sum(dtype="u8")),
            int(self._decoded[contents].sum(dtype="u8")),
            stored[0],
            stored[1] - stored[0],
            stored[2] - stored[1],
        )
        return split, stored[2]

    def _bytes_of(self, numbers: npt.NDArray[np.uint64]) -> int:
        return int(self._encoded[numbers].sum(dtype="u8"))

    def _held_by_others(self, held: Records) -> NumberSet:
        found = NumberSet(len(self._encoded) - 1)
        streams = [self._layers[one].stretches for one in held.layers]
        streams += [self._blobs[one].stretches for one in held.blobs]
        for numbers in stream_numbers(self._store, streams):
            found.add(numbers)
        return found

    def _freed(
        self,
        chunks: list[npt.NDArray[np.uint64]],
        holders: npt.NDArray[np.uint32],
        otherwise: NumberSet,
    ) -> tuple[npt.NDArray[np.int64], int]:
        """Blocks that come back with each image; and bytes that a prune would free now."""
        owners = np.where(holders > 1, np.int32(SHARED), np.int32(NOBODY))
        for position, mine in enumerate(chunks):
            owners[mine[holders[mine] == 1]] = position
        owners[otherwise.window(0, len(holders))] = SHARED
        freed = blocks_of_owners(self._store, self._txn, owners, len(chunks))

        def is_kept(first: int, count: int) -> npt.NDArray[np.bool_]:
            kept: npt.NDArray[np.bool_] = owners[first : first + count] != NOBODY
            return kept

        unowned = unowned_extents(self._store, self._txn, is_kept)
        return freed, sum(end - start for start, end in unowned)

    def _registry_bytes(self, digest: Digest) -> int:
        stretches = self._blobs[digest].stretches
        data = b"".join(self._store.reader.iter_stream(stretches))
        return sum(layer.size for layer in oci.parse_manifest(data, digest).layers)


def _with_disk(found: _Found, blobs: tuple[BlobKind, ...], sizes: dict[str, int]) -> DiskUsage:
    """What was found, and what the files take beyond it."""
    total = sum(sizes.values())
    in_images = sum(image.share for image in found.images)

    def take(*names: str) -> int:
        return sum(sizes.pop(name, 0) for name in names)

    overhead = Overhead(
        found.held,
        found.garbage,
        take("chunks") - in_images - found.held - found.garbage,
        take("meta", "journal", "journal.new"),
        take("images", "objects", "links"),
        take("snapshots", "uppers", "lowers", "containers"),
        sum(sizes.values()),
    )
    return DiskUsage(
        found.images,
        found.layers,
        found.chunks,
        found.split,
        overhead,
        blobs,
        total,
        found.reclaimable,
    )


def _is_kept(blob: BlobRecord) -> bool:
    """Whether it is a compressed layer that is kept, or can be made again; and no document."""
    return blob.wrapping in (Wrapping.KEPT, Wrapping.REGENERATED) and blob.diff_id is not None


def _union(arrays: list[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    return distinct(np.concatenate([np.empty(0, "u8"), *arrays]))
