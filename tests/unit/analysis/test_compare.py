"""The arithmetic of sharing against sets of Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.analysis import compare as module
from layerstore.analysis.compare import compare
from tests.support.cut_layers import cut_layer_of, fleet_of_layers, sizes_of

_keys = st.sets(st.integers(1, 30).map(lambda n: n << 22), max_size=8)


def plain(keys: set[int]) -> int:
    return sum(sizes_of(key)[0] for key in keys)


def encoded(keys: set[int]) -> int:
    return sum(sizes_of(key)[1] for key in keys)


@given(st.lists(_keys, min_size=1, max_size=6), st.data())
@pytest.mark.parametrize("few", [2, 1000])  # pairs by the matrix, and one by one
def test_every_figure_is_that_of_sets(
    few: int, layers: list[set[int]], data: st.DataObject
) -> None:
    stack = st.lists(st.integers(0, len(layers) - 1), max_size=3)
    stacks = data.draw(st.lists(stack, min_size=1, max_size=6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FEW", few)
        found = compare([cut_layer_of(layer) for layer in layers], stacks)
    images = [set[int]().union(*(layers[i] for i in stack)) for stack in stacks]
    every = set[int]().union(*images)
    assert (found.chunk_count, found.chunks) == (len(every), plain(every))
    assert found.compressed == encoded(every) == found.share.sum()
    assert found.files == plain(every)
    assert found.counts.tolist() == [len(image) for image in images]
    assert found.image_files.tolist() == found.image_chunks.tolist() == list(map(plain, images))
    assert found.pairs.tolist() == [[encoded(a & b) for b in images] for a in images]
    others = [
        set[int]().union(*(image for i, image in enumerate(images) if i != position))
        for position in range(len(images))
    ]
    assert found.alone.tolist() == [encoded(a - b) for a, b in zip(images, others, strict=True)]
    by_holders: dict[tuple[int, ...], set[int]] = {}
    for key in every:
        holders = tuple(i for i, image in enumerate(images) if key in image)
        by_holders.setdefault(holders, set()).add(key)
    groups = found.groups
    got = {
        tuple(groups.sets[groups.starts[g] : groups.starts[g + 1]].tolist()): (
            int(groups.weights[g]),
            int(groups.lengths[g]),
        )
        for g in range(len(groups.weights))
    }
    assert got == {
        holders: (encoded(keys), plain(keys))
        for holders, keys in by_holders.items()
        if len(holders) > 1
    }


def test_groups_of_many_holders_and_of_few_give_one_matrix() -> None:
    layers, stacks = fleet_of_layers(images=150, chunks=300)
    found = compare(layers, stacks)
    sizes = np.diff(found.groups.starts)
    assert (sizes >= module._FEW).sum() < (sizes < module._FEW).sum()
    images = [set[int]().union(*(layers[i].chunks.tolist() for i in s)) for s in stacks]
    for a, b in [(0, 1), (3, 77), (149, 20), (5, 5)]:
        assert found.pairs[a, b] == found.pairs[b, a] == encoded(images[a] & images[b])
