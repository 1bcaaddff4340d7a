"""What is in the store, for people and programs: images, one image in detail, its history.

Sharing is counted in encoded bytes of chunks: what a layer shares is what other layers of this store hold as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerstore import emit
from layerstore.errors import CorruptStore, NotFound
from layerstore.formats import oci
from layerstore.images.lookup import find_image, manifests_of, names_by_target
from layerstore.images.wrapped import wrapped_blob
from layerstore.store.catalog import Wrapping
from layerstore.tree import HOLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from layerstore.digest import DiffID, Digest
    from layerstore.store.catalog import ImageRecord, LayerRecord
    from layerstore.store.store import Store

__all__ = [
    "HistoryStep",
    "ImageDetails",
    "ImageSummary",
    "LayerDetails",
    "history",
    "inspect_image",
    "list_images",
]


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """One line of a list.

    Attributes:
        names: full references; empty for an image without a name.
        id: digest of the config, Docker's image ID.
        digest: of the manifest.
        created: RFC 3339 text from the config, maybe empty.
        size: bytes of the layers' tars.
        loaded_ns: when it came into this store, nanoseconds since the epoch.
    """

    names: tuple[str, ...]
    id: Digest
    digest: Digest
    platform: str
    created: str
    layers: int
    size: int
    loaded_ns: int


@dataclass(frozen=True, slots=True)
class LayerDetails:
    """One layer of an image.

    Attributes:
        diff_id: of its tar.
        blob: digest of the blob that the manifest names.
        media_type: of that blob.
        wrapping: `plain`, `regenerated`, `kept` or `dropped`: how, and whether, the blob can be had.
        size: bytes of the tar.
        entries: members of the tar.
        chunks: distinct chunks of its files.
        stored: encoded bytes of those chunks.
        shared: of `stored`, what other layers of the store hold too.
        shared_with: how many other layers hold some of it.
        blob_size: bytes of the blob.
        blob_stored: encoded bytes of what is stored for the blob beside the tar: its own bytes, or its recipe.
        model: the encoder that a regenerated blob's recipe names.
        reason: why a gzip blob is kept and not regenerated, where that was tried.
    """

    diff_id: DiffID
    blob: Digest
    media_type: str
    wrapping: str
    size: int
    entries: int
    chunks: int
    stored: int
    shared: int
    shared_with: int
    blob_size: int
    blob_stored: int
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class ImageDetails:
    """An image with its layers, bottom first. `runtime` is the config's `config` object (Env, Cmd, …)."""

    summary: ImageSummary
    author: str
    annotations: Mapping[str, str]
    runtime: Mapping[str, Any]
    layers: tuple[LayerDetails, ...]


@dataclass(frozen=True, slots=True)
class HistoryStep:
    """One build step, newest first; `diff_id` and `size` where it made a layer."""

    created: str
    created_by: str
    comment: str
    diff_id: DiffID | None
    size: int


def list_images(store: Store) -> list[ImageSummary]:
    """All images, by name; those without one come last. An index gives a line for each of its images."""
    names: dict[Digest, list[str]] = {}
    for target, refs in names_by_target(store).items():
        for manifest in manifests_of(store, target):
            names.setdefault(manifest, []).extend(refs)
    with store.read() as txn:
        images = list(store.catalog.images(txn))
    summaries = [
        _summary(store, digest, record, names.get(digest, [])) for digest, record in images
    ]
    return sorted(summaries, key=lambda image: (not image.names, image.names, image.digest))


def inspect_image(store: Store, text: str, platform: str | None = None) -> ImageDetails:
    """One image in detail.

    Raises: NotFound, InvalidArgument: as `lookup.find_image`. CorruptStore.
    """
    digest = find_image(store, text, platform)
    with store.read() as txn:
        record = store.catalog.image(txn, digest)
        layers = dict(store.catalog.layers(txn))
    assert record is not None, "find_image names images"
    if missing := [diff_id for diff_id in record.diff_ids if diff_id not in layers]:
        raise CorruptStore(f"layer {missing[0]} of {digest} is missing; run `layerstore verify`")
    manifest = oci.parse_manifest(emit.read_document(store, digest), digest)
    config = oci.parse_config(emit.read_document(store, record.config), record.config)
    sharing = _Sharing(store, layers)
    details = []
    for diff_id, blob in zip(record.diff_ids, manifest.layers, strict=True):
        wrapped = wrapped_blob(store, blob.digest)
        chunks, encoded, shared, others = sharing.of(diff_id)
        details.append(
            LayerDetails(
                diff_id,
                blob.digest,
                blob.media_type,
                wrapped.wrapping.value if wrapped else Wrapping.DROPPED.value,
                layers[diff_id].size,
                layers[diff_id].entries,
                chunks,
                encoded,
                shared,
                others,
                blob.size,
                wrapped.stored if wrapped else 0,
                wrapped.model if wrapped else "",
                wrapped.reason if wrapped else "",
            )
        )
    names = [
        name
        for target, refs in names_by_target(store).items()
        if digest in manifests_of(store, target)
        for name in refs
    ]
    return ImageDetails(
        _summary(store, digest, record, names),
        config.author,
        manifest.annotations,
        config.runtime,
        tuple(details),
    )


def history(store: Store, text: str, platform: str | None = None) -> list[HistoryStep]:
    """The build steps of an image, newest first. Raises as `inspect_image`."""
    digest = find_image(store, text, platform)
    with store.read() as txn:
        record = store.catalog.image(txn, digest)
        assert record is not None, "find_image names images"
        sizes = {
            diff_id: layer.size
            for diff_id in record.diff_ids
            if (layer := store.catalog.layer(txn, diff_id)) is not None
        }
    config = oci.parse_config(emit.read_document(store, record.config), record.config)
    layers = iter(config.diff_ids)
    steps = []
    for step in config.history:
        diff_id = None if step.empty_layer else next(layers, None)
        size = sizes.get(diff_id, 0) if diff_id else 0
        steps.append(HistoryStep(step.created, step.created_by, step.comment, diff_id, size))
    # Builders may keep no history: the layers are there all the same.
    steps += [HistoryStep("", "", "", diff_id, sizes.get(diff_id, 0)) for diff_id in layers]
    return steps[::-1]


def _summary(store: Store, digest: Digest, record: ImageRecord, names: list[str]) -> ImageSummary:
    with store.read() as txn:
        sizes = [
            layer.size
            for diff_id in record.diff_ids
            if (layer := store.catalog.layer(txn, diff_id)) is not None
        ]
    config = oci.parse_config(emit.read_document(store, record.config), record.config)
    return ImageSummary(
        tuple(sorted(names)),
        record.config,
        digest,
        str(config.platform),
        config.created,
        len(record.diff_ids),
        sum(sizes),
        record.loaded_ns,
    )


class _Sharing:
    """Which chunks which layers hold: one row of distinct chunk numbers for each layer."""

    def __init__(self, store: Store, layers: Mapping[DiffID, LayerRecord]) -> None:
        self._store = store
        self._chunks = {
            diff_id: chunks
            for diff_id, record in layers.items()
            if (chunks := _chunks_if_there(store, diff_id, record)) is not None
        }
        total = max((int(row[-1]) + 1 for row in self._chunks.values() if len(row)), default=1)
        self._holders = np.zeros(total, "u4")
        for row in self._chunks.values():
            self._holders[row] += 1

    def of(self, diff_id: DiffID) -> tuple[int, int, int, int]:
        """(distinct chunks, encoded bytes, of these shared, layers it shares with)."""
        mine = self._chunks.get(diff_id)
        if mine is None:
            raise NotFound(f"layer {diff_id} was removed meanwhile")
        if not len(mine):
            return 0, 0, 0, 0
        with self._store.read() as txn:
            encoded = self._store.index.places(txn, mine)["encoded"].astype("u8")
        is_shared = self._holders[mine] > 1
        others = sum(
            1
            for other, row in self._chunks.items()
            if other != diff_id and np.isin(mine[is_shared], row, assume_unique=True).any()
        )
        return len(mine), int(encoded.sum()), int(encoded[is_shared].sum()), others


def _chunks_if_there(
    store: Store, diff_id: DiffID, record: LayerRecord
) -> npt.NDArray[np.uint64] | None:
    """A layer's chunks; None if it was removed meanwhile: another image's, as nobody holds them for this."""
    try:
        return _distinct_chunks(store, record)
    except CorruptStore:
        with store.read() as txn:
            if store.catalog.layer(txn, diff_id) == record:
                raise
        return None


def _distinct_chunks(store: Store, record: LayerRecord) -> npt.NDArray[np.uint64]:
    numbers = [
        store.reader.part(stretch).extents["number"] for stretch in record.stretches if stretch.part
    ]
    distinct = np.unique(np.concatenate(numbers)) if numbers else np.empty(0, "u8")
    chunks: npt.NDArray[np.uint64] = distinct[distinct != HOLE]
    return chunks
