"""What the recipes of layers say about files: the chunks and the files of each layer, read once, by several threads.

    layer record > parts > extents and rows > distinct chunk numbers, distinct files

Nothing of the files is read. Hold the layers (`Store.hold`) while this reads, or a prune may take them away.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.sharing import distinct, files_of
from layerstore.tree import EXTENT, HOLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from layerstore.digest import DiffID
    from layerstore.store.catalog import LayerRecord, Stretch
    from layerstore.store.store import Store

__all__ = ["StoredLayer", "read_contents"]


class StoredLayer(NamedTuple):
    """One layer of the store. Arrays of distinct values, ascending.

    Attributes:
        numbers: chunks of its files.
        recipe: chunks of its recipe: tar headers, padding, parts.
        files: keys of its file contents, as `sharing.files_of` makes them; without empty files.
        sizes: bytes of each of `files`.
        unpacked: bytes of all its files, each entry counted.
    """

    numbers: npt.NDArray[np.uint64]
    recipe: npt.NDArray[np.uint64]
    files: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.uint64]
    unpacked: int


def read_contents(store: Store, layers: Mapping[DiffID, LayerRecord]) -> dict[DiffID, StoredLayer]:
    """The contents of these layers. Raises: CorruptStore: a part is damaged, or its chunks are gone."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4), "layerstore-contents") as pool:
        found = pool.map(lambda record: _read(store, record.stretches), layers.values())
        return dict(zip(layers, found, strict=True))


def _read(store: Store, stretches: Sequence[Stretch]) -> StoredLayer:
    extents, sizes = [np.empty(0, EXTENT)], [np.empty(0, "u8")]
    recipe: list[int] = []
    for stretch in stretches:
        recipe += (*stretch.literals, *stretch.part)
        if stretch.part:
            part = store.reader.part(stretch)
            extents.append(part.extents)
            sizes.append(part.entries.rows["stored"])
    table, stored = np.concatenate(extents), np.concatenate(sizes)
    files = files_of(table["number"], table["length"], stored)
    keys, positions = np.unique(files.keys[stored > 0], return_index=True)
    used = int(files.counts.sum())
    return StoredLayer(
        _distinct(table["number"][:used]),
        # Behind the last file is the end of the archive: zeros, or whatever its writer left there.
        _distinct(np.concatenate([np.array(recipe, "u8"), table["number"][used:]])),
        keys,
        stored[stored > 0][positions],
        int(stored.sum(dtype="u8")),
    )


def _distinct(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    chunks = distinct(numbers)
    return chunks[1:] if len(chunks) and chunks[0] == HOLE else chunks
