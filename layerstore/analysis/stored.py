"""Images of a store, for the analysis: their chunk lists come from recipes and the index, and no content is read.

What a layer takes as gzip is known where a manifest names it compressed; else a sample of its chunks is compressed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from isal import isal_zlib

from layerstore import emit
from layerstore.analysis.layer import CACHES, NAMED_FROM, CutLayer, cache_of, named_files
from layerstore.analysis.sources import FoundImage
from layerstore.errors import CorruptStore
from layerstore.formats import oci
from layerstore.images.lookup import find_image, manifests_of, names_by_target
from layerstore.sharing import files_of
from layerstore.tree import EXTENT, HOLE, concat_entries

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from layerstore.digest import DiffID, Digest
    from layerstore.store.store import Store

__all__ = ["layer_of_store", "store_images"]

_SAMPLE = 64  # chunks of a layer that are compressed to estimate its gzip


def store_images(store: Store, names: Sequence[str]) -> list[FoundImage]:
    """These images of a store, or all of it. Raises: NotFound, InvalidArgument, CorruptStore."""
    by_image: dict[Digest, list[str]] = {}
    for target, refs in names_by_target(store).items():
        for digest in manifests_of(store, target):
            by_image.setdefault(digest, []).extend(refs)
    wanted = [find_image(store, name) for name in names]
    found: dict[Digest, FoundImage] = {}
    with store.read() as txn:
        records = dict(store.catalog.images(txn))
    for digest in dict.fromkeys(wanted) if names else sorted(records):
        record = records[digest]
        manifest = oci.parse_manifest(emit.read_document(store, digest), digest)
        blobs = tuple(
            0 if blob.digest == diff_id else blob.size
            for blob, diff_id in zip(manifest.layers, record.diff_ids, strict=True)
        )
        own = tuple(sorted(by_image.get(digest, [])))
        image = found.setdefault(
            record.config, FoundImage(record.config, own, "store", record.diff_ids, blobs)
        )
        image.names = tuple(dict.fromkeys((*image.names, *own)))
        image.blobs = tuple(a or b for a, b in zip(image.blobs, blobs, strict=True))
    return list(found.values())


def layer_of_store(store: Store, diff_id: DiffID) -> CutLayer:
    """One layer, as `cut_layer` would find it. Raises: CorruptStore."""
    with store.read() as txn:
        record = store.catalog.layer(txn, diff_id)
    if record is None:
        raise CorruptStore(f"layer {diff_id} is missing; run `layerstore verify`")
    parts = [store.reader.part(stretch) for stretch in record.stretches if stretch.part]
    table = np.concatenate([np.empty(0, EXTENT), *(part.extents for part in parts)])
    entries = concat_entries([part.entries for part in parts])
    stored = entries.rows["stored"].astype("u8")
    numbers, inverse = np.unique(table["number"], return_inverse=True)
    real = numbers != HOLE
    keys = np.zeros(len(numbers), "u8")
    with store.read() as txn:
        places = store.index.places(txn, numbers[real])
    heads = np.ascontiguousarray(places["id"]).view("<u8").reshape(-1, 4)[:, 0]
    keys[real] = heads
    files = files_of(keys[inverse], table["length"], stored)
    is_file = stored > 0
    contents, first = np.unique(files.keys[is_file], return_index=True)
    order = np.argsort(heads)
    paths = _paths(entries.paths, entries.rows["path"].astype("i8"), stored)
    caches = dict.fromkeys(CACHES, 0)
    for row, path in paths.items():
        if manager := cache_of(path):
            caches[manager] += int(stored[row])
    large = {row: path for row, path in paths.items() if stored[row] >= NAMED_FROM}
    return CutLayer(
        record.size,
        int(stored.sum(dtype="u8")),
        record.entries,
        _gzip_estimate(store, numbers[real], places, np.bincount(inverse)[real]),
        True,
        np.ascontiguousarray(heads[order]),
        places["decoded"][order],
        places["encoded"][order],
        contents,
        stored[is_file][first],
        named_files(contents, {row: (files.keys[row], int(stored[row])) for row in large}, large),
        {manager: total for manager, total in caches.items() if total},
    )


def _paths(
    heap: bytes, lengths: npt.NDArray[np.int64], stored: npt.NDArray[np.uint64]
) -> dict[int, bytes]:
    """The paths of files that are not empty, by row."""
    ends = np.cumsum(lengths)
    return {
        row: heap[int(ends[row] - lengths[row]) : int(ends[row])]
        for row in np.flatnonzero(stored).tolist()
    }


def _gzip_estimate(
    store: Store,
    numbers: npt.NDArray[np.uint64],
    places: npt.NDArray[np.void],
    uses: npt.NDArray[np.int64],
) -> int:
    """From a sample of chunks how much larger they are as gzip than as frames; gzip does not see what repeats."""
    if not len(numbers):
        return 0
    sample = np.unique(np.linspace(0, len(numbers) - 1, _SAMPLE).astype("i8"))
    contents = store.reader.read(numbers[sample])
    encoder = isal_zlib.compressobj(3, isal_zlib.DEFLATED, 31)
    packed = sum(len(encoder.compress(content)) for content in contents) + len(encoder.flush())
    ratio = packed / int(places["encoded"][sample].sum(dtype="u8"))
    return int(int((places["encoded"] * uses).sum()) * ratio)
