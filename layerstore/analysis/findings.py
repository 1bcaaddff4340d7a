"""What stands out: files and layers that are there several times, caches that nobody reads, and what to do about them. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.analysis.compare import groups_of, pair_matrix
from layerstore.analysis.report import DuplicatedFile, LayerFamily, Suggestion
from layerstore.sharing import distinct

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from layerstore.analysis.compare import Comparison
    from layerstore.analysis.layer import CutLayer
    from layerstore.digest import DiffID

__all__ = ["Subject", "duplicated_files", "layer_families", "suggestions"]

_FILES = 50  # duplicated files that are reported
_FAMILY_LAYERS = 1000  # the largest layers; a matrix of their pairs is in memory
_WORTH = 1 << 20  # bytes below which nothing is reported
_SAME = 0.5  # of the smaller layer's bytes are in the other


class Subject(NamedTuple):
    """What is looked at: layers, their diff IDs, and images as stacks of positions in both."""

    diff_ids: Sequence[DiffID]
    layers: Sequence[CutLayer]
    stacks: Sequence[Sequence[int]]

    def images_with(self, layers: set[int]) -> tuple[int, ...]:
        """The images that have one of these layers."""
        return tuple(i for i, stack in enumerate(self.stacks) if not layers.isdisjoint(stack))


def duplicated_files(subject: Subject) -> tuple[DuplicatedFile, ...]:
    """The contents of large files that waste most by being in several layers."""
    rows = [np.array([p for p, _ in layer.named], "i8") for layer in subject.layers]
    keys = np.concatenate(
        [np.empty(0, "u8")]
        + [np.unique(layer.files[row]) for layer, row in zip(subject.layers, rows, strict=True)]
    )
    owners = np.repeat(np.arange(len(rows)), [len(np.unique(row)) for row in rows])
    contents, first, copies = np.unique(keys, return_index=True, return_counts=True)
    sizes = np.zeros(len(contents), "u8")
    for layer, row in zip(subject.layers, rows, strict=True):
        sizes[np.searchsorted(contents, layer.files[row])] = layer.sizes[row]
    wasted = sizes * (copies - 1).astype("u8")
    found = []
    for best in np.argsort(wasted, kind="stable")[::-1][:_FILES].tolist():
        if not wasted[best]:
            break
        layer = subject.layers[int(owners[first[best]])]
        path = next(path for at, path in layer.named if layer.files[at] == contents[best])
        found.append(DuplicatedFile(path, int(sizes[best]), int(copies[best]), int(wasted[best])))
    return tuple(found)


def layer_families(subject: Subject, comparison: Comparison) -> tuple[LayerFamily, ...]:
    """Layers that share at least half of the smaller one's bytes, as families; those that waste most first.

    Only the 1000 largest layers are compared.
    """
    stored = np.array([int(layer.encoded.sum(dtype="u8")) for layer in subject.layers], "i8")
    largest = np.argsort(stored, kind="stable")[::-1][:_FAMILY_LAYERS]
    largest = largest[stored[largest] >= _WORTH]
    sets = [comparison.numbered[position] for position in largest.tolist()]
    holders = np.zeros(len(comparison.encoded), "u4")
    for mine in sets:
        holders[mine] += 1
    groups = groups_of(sets, holders, comparison.encoded, comparison.encoded)
    pairs = pair_matrix(groups, len(sets))
    smaller = np.minimum(stored[largest][:, None], stored[largest][None, :])
    found = []
    for members in _connected(pairs >= smaller * _SAME):
        positions = [int(largest[member]) for member in members]
        together = distinct(np.concatenate([comparison.numbered[p] for p in positions]))
        total = int(stored[positions].sum())
        duplicated = total - int(comparison.encoded[together].sum(dtype="u8"))
        if duplicated < _WORTH:
            continue
        unpacked = sum(subject.layers[p].unpacked for p in positions)
        uses = {p: len(subject.images_with({p})) for p in positions}
        order = sorted(positions, key=lambda p: (-uses[p], subject.diff_ids[p]))
        found.append(
            LayerFamily(
                tuple(subject.diff_ids[p] for p in order),
                subject.images_with(set(positions)),
                all(p not in stack[1:] for stack in subject.stacks for p in positions),
                total,
                duplicated,
                unpacked * duplicated // max(total, 1),
            )
        )
    return tuple(sorted(found, key=lambda family: (-family.duplicated, family.layers)))


def suggestions(
    subject: Subject, comparison: Comparison, families: Sequence[LayerFamily]
) -> tuple[Suggestion, ...]:
    """What could be done, that which saves most first."""
    found = [_of_family(family) for family in families]
    found += _repeated_files(subject, comparison)
    found += _package_caches(subject)
    return tuple(sorted(found, key=lambda one: (-one.saves, one.text))[:30])


def _of_family(family: LayerFamily) -> Suggestion:
    count = len(family.layers)
    if family.is_base:
        kind = "rebuilt-base"
        text = (
            f"{_images(len(family.images))} stand on {count} builds of what is nearly the same base layer; "
            "build them on one (pin the base by digest) and it is stored and pulled once"
        )
    else:
        kind = "similar-layers"
        text = (
            f"{count} layers of {_images(len(family.images))} hold mostly the same files under different digests; "
            "build that step once, in a base image or stage that they share"
        )
    return Suggestion(kind, text, family.unpacked_duplicated, True, family.images)


def _repeated_files(subject: Subject, comparison: Comparison) -> list[Suggestion]:
    """Layers that have files again which a layer below has: chown, chmod, or a copy of what is there."""
    wasted: dict[int, tuple[int, set[int]]] = {}
    for image, repeated in enumerate(comparison.repeated):
        for position, size in repeated:
            if size >= _WORTH:
                least, images = wasted.get(position, (size, set()))
                wasted[position] = (min(least, size), images | {image})
    return [
        Suggestion(
            "repeated-files",
            f"layer {subject.diff_ids[position][7:19]} repeats files of the layers below it "
            "(chown, chmod or a copy in a step of its own); set owner and mode where the files are made, as with COPY --chown",
            size,
            False,
            tuple(sorted(images)),
        )
        for position, (size, images) in wasted.items()
    ]


def _package_caches(subject: Subject) -> list[Suggestion]:
    totals: dict[str, tuple[int, set[int]]] = {}
    for position, layer in enumerate(subject.layers):
        for manager, size in layer.caches.items():
            total, layers = totals.get(manager, (0, set()))
            totals[manager] = (total + size, layers | {position})
    return [
        Suggestion(
            "package-cache",
            f"{len(layers)} {'layer keeps' if len(layers) == 1 else 'layers keep'} the package cache of {manager}; "
            "remove it in the step that installs, or put it on a cache mount",
            total,
            False,
            subject.images_with(layers),
        )
        for manager, (total, layers) in totals.items()
        if total >= _WORTH
    ]


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _connected(edges: npt.NDArray[np.bool_]) -> list[list[int]]:
    """The components of more than one node of an undirected graph."""
    left = set(np.flatnonzero(edges.sum(axis=1) > edges.diagonal()).tolist())
    found = []
    while left:
        pending = [left.pop()]
        members = []
        while pending:
            node = pending.pop()
            members.append(node)
            near = [other for other in np.flatnonzero(edges[node]).tolist() if other in left]
            left.difference_update(near)
            pending += near
        if len(members) > 1:
            found.append(sorted(members))
    return found
