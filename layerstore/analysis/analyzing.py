"""Analyze: what images would take, one way of storing them after another, without storing them.

    sources > images and layers > each distinct layer once: chunk list from the cache, a recipe, or its blob > compare > findings

Layers are cut side by side, one to a processor; each needs some tens of MiB, whatever its size, and its list stays in memory.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from layerstore.analysis.cache import LayerCache
from layerstore.analysis.compare import compare
from layerstore.analysis.findings import (
    Subject,
    duplicated_files,
    layer_families,
    suggestions,
)
from layerstore.analysis.layer import cut_layer
from layerstore.analysis.report import Analysis, Group, ImageSavings, LayerFacts, Savings
from layerstore.analysis.sources import Sources
from layerstore.analysis.stored import layer_of_store, store_images
from layerstore.errors import MalformedInput, NotFound
from layerstore.images.progress import SILENT, CountedReader
from layerstore.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.analysis.compare import Comparison, Groups
    from layerstore.analysis.layer import CutLayer
    from layerstore.analysis.sources import FoundImage, FoundLayer, Skipped
    from layerstore.digest import DiffID
    from layerstore.images.progress import Progress
    from layerstore.store.store import Store

__all__ = ["AnalyzeOptions", "analyze", "summarize"]

# Bytes of LMDB and journal for a chunk, and of recipe for an entry: measured in a store of the 18 images of the corpus
# (25.9 MB for 91,674 chunks, 3.06 MB for 92,234 entries). What they give is an estimate.
_INDEX_BYTES = 283
_RECIPE_BYTES = 33
_GROUP_MEMBERS = 200_000  # memberships of groups in a report, at most


@dataclass(frozen=True, slots=True)
class AnalyzeOptions:
    """How.

    Attributes:
        cache: folder of chunk lists; none are kept without one.
        jobs: layers that are cut at once; by default as many as there are processors.
        limits: what archives may ask for.
    """

    cache: Path | None = None
    jobs: int | None = None
    limits: Limits = field(default_factory=Limits)


def analyze(
    paths: Sequence[Path],
    options: AnalyzeOptions = AnalyzeOptions(),  # frozen
    *,
    store: Store | None = None,
    names: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Analysis:
    """Analyze archives, and of a store the images `names`, or all of it if there are no paths and no names.

    Raises:
        NotFound: a path, a name, or no image at all.
        MalformedInput: an archive that was named by itself; one in a folder is skipped.
    """
    with ExitStack() as opened:
        spool = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="layerstore-")))
        sources = opened.enter_context(closing(Sources(spool, options.limits)))
        for path in paths:
            sources.add(path)
        images = dict(sources.images)
        if store is not None:
            opened.enter_context(store.hold(everything=True))
            for image in store_images(store, names) if names or not paths else []:
                images.setdefault(image.id, image)
        if not images:
            raise NotFound("there is no image to analyze")
        wanted = list(dict.fromkeys(d for image in images.values() for d in image.diff_ids))
        reader = _Reader(LayerCache(options.cache), options.limits, sources.layers, store, progress)
        layers = reader.read(wanted, options.jobs or os.cpu_count() or 1)
    return summarize(
        list(images.values()), wanted, layers, tuple(sources.skipped), reader.cached_layers
    )


class _Reader:
    """Gets the lists of layers, many at once."""

    def __init__(
        self,
        cache: LayerCache,
        limits: Limits,
        found: dict[DiffID, FoundLayer],
        store: Store | None,
        progress: Progress,
    ) -> None:
        self._cache, self._limits, self._found = cache, limits, found
        self._store, self._progress = store, progress
        self.cached_layers = 0

    def read(self, wanted: Sequence[DiffID], jobs: int) -> list[CutLayer]:
        """The lists, in this order. The first error ends it."""
        known = {diff_id: self._cache.get(diff_id) for diff_id in wanted if diff_id in self._found}
        missing = [diff_id for diff_id in wanted if known.get(diff_id) is None]
        self.cached_layers = len(wanted) - len(missing)
        unread = [self._found[diff_id].size for diff_id in missing if diff_id in self._found]
        self._progress.start(f"{len(missing)} of {len(wanted)} layers", sum(unread))
        pool = ThreadPoolExecutor(jobs, "layerstore-analyze")
        try:
            layers = dict(zip(missing, pool.map(self._cut, missing), strict=True))
        finally:
            pool.shutdown(cancel_futures=True)
        self._progress.finish("compared" if missing else "known")
        return [known.get(diff_id) or layers[diff_id] for diff_id in wanted]

    def _cut(self, diff_id: DiffID) -> CutLayer:
        layer = self._found.get(diff_id)
        if layer is None:
            assert self._store is not None, "a layer without a blob is one of the store"
            return layer_of_store(self._store, diff_id)
        compression = layer.compression()
        with layer.open() as source:
            counted = CountedReader(source, self._progress.advance)
            try:
                cut = cut_layer(counted, layer.size, layer.expected, compression, self._limits)
            except MalformedInput as error:
                raise error.within(source=layer.expected.name) from error.__cause__
        self._cache.put(diff_id, cut)
        return cut


def summarize(
    images: Sequence[FoundImage],
    diff_ids: Sequence[DiffID],
    layers: Sequence[CutLayer],
    skipped: tuple[Skipped, ...] = (),
    cached_layers: int = 0,
) -> Analysis:
    """The analysis of images whose layers are known; `layers` in the order of `diff_ids`."""
    at = {diff_id: position for position, diff_id in enumerate(diff_ids)}
    stacks = [[at[diff_id] for diff_id in image.diff_ids] for image in images]
    subject = Subject(diff_ids, layers, stacks)
    comparison = compare(layers, stacks)
    gzip, is_estimate = _gzip_sizes(images, stacks, layers)
    families = layer_families(subject, comparison)
    groups, left = _largest_groups(comparison.groups)
    owners: list[list[int]] = [[] for _ in layers]
    for image, stack in enumerate(stacks):
        for position in dict.fromkeys(stack):
            owners[position].append(image)
    return Analysis(
        _images(images, stacks, layers, comparison, gzip, is_estimate),
        _savings(stacks, layers, comparison, gzip, is_estimate),
        comparison.chunk_count,
        tuple(
            LayerFacts(
                diff_id,
                layer.size,
                layer.unpacked,
                gzip[position],
                is_estimate[position],
                int(layer.encoded.sum(dtype="u8")),
                tuple(owners[position]),
            )
            for position, (diff_id, layer) in enumerate(zip(diff_ids, layers, strict=True))
        ),
        tuple(map(tuple, comparison.pairs.tolist())),
        duplicated_files(subject),
        families,
        suggestions(subject, comparison, families),
        groups,
        left,
        skipped,
        cached_layers,
    )


def _gzip_sizes(
    images: Sequence[FoundImage], stacks: Sequence[Sequence[int]], layers: Sequence[CutLayer]
) -> tuple[list[int], list[bool]]:
    """Of each layer, what it takes compressed, and whether that is an estimate: not if any image has it compressed."""
    sizes = [layer.gzip for layer in layers]
    is_estimate = [layer.is_estimate for layer in layers]
    for image, stack in zip(images, stacks, strict=True):
        for position, blob in zip(stack, image.blobs, strict=True):
            if blob and is_estimate[position]:
                sizes[position], is_estimate[position] = blob, False
    return sizes, is_estimate


def _savings(
    stacks: Sequence[Sequence[int]],
    layers: Sequence[CutLayer],
    comparison: Comparison,
    gzip: Sequence[int],
    is_estimate: Sequence[bool],
) -> Savings:
    entries = sum(layer.entries for layer in layers)
    overhead = comparison.chunk_count * _INDEX_BYTES + entries * _RECIPE_BYTES
    estimates: tuple[str, ...] = ("overhead", "store")
    if any(is_estimate):
        estimates = ("gzip", "registry", *estimates)
    return Savings(
        sum(layers[position].unpacked for stack in stacks for position in stack),
        sum(gzip[position] for stack in stacks for position in stack),
        sum(gzip),
        sum(layer.unpacked for layer in layers),
        comparison.files,
        comparison.chunks,
        comparison.compressed,
        overhead,
        comparison.compressed + overhead,
        estimates,
    )


def _images(
    images: Sequence[FoundImage],
    stacks: Sequence[Sequence[int]],
    layers: Sequence[CutLayer],
    comparison: Comparison,
    gzip: Sequence[int],
    is_estimate: Sequence[bool],
) -> tuple[ImageSavings, ...]:
    others = comparison.pairs.copy()
    np.fill_diagonal(others, 0)
    found = []
    for position, (image, stack) in enumerate(zip(images, stacks, strict=True)):
        closest = int(np.argmax(others[position]))
        shared = int(others[position, closest])
        found.append(
            ImageSavings(
                image.id,
                image.names,
                image.source,
                image.diff_ids,
                sum(layers[layer].unpacked for layer in stack),
                sum(gzip[layer] for layer in stack),
                any(is_estimate[layer] for layer in stack),
                int(comparison.image_files[position]),
                int(comparison.image_chunks[position]),
                int(comparison.stored[position]),
                int(comparison.alone[position]),
                int(comparison.share[position]),
                closest if shared else None,
                shared,
            )
        )
    return tuple(found)


def _largest_groups(groups: Groups) -> tuple[tuple[Group, ...], int]:
    """The groups of most bytes, as many as a report holds; and the bytes of the others."""
    sizes = np.diff(groups.starts)
    order = np.argsort(groups.weights, kind="stable")[::-1]
    kept = order[np.cumsum(sizes[order]) <= _GROUP_MEMBERS]
    left = int(groups.weights.sum()) - int(groups.weights[kept].sum())
    return tuple(
        Group(
            tuple(groups.sets[groups.starts[row] : groups.starts[row + 1]].tolist()),
            int(groups.weights[row]),
            int(groups.lengths[row]),
        )
        for row in kept.tolist()
    ), left
