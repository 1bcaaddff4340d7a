"""Similar things stand side by side."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.analysis.order import similar_side_by_side


@given(st.integers(0, 12), st.integers(0, 5), st.integers(0, 1000))
def test_every_row_comes_once_whatever_the_ties(count: int, values: int, seed: int) -> None:
    half = np.random.default_rng(seed).integers(0, values + 1, (count, count)) / 5
    assert sorted(similar_side_by_side(np.maximum(half, half.T))) == list(range(count))


@pytest.mark.parametrize("seed", range(5))
def test_clusters_stay_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cluster = rng.permutation(np.repeat(np.arange(5), 8))
    noise = rng.random((40, 40)) / 5
    similarity = (cluster[:, None] == cluster) * 0.5 + np.maximum(noise, noise.T)
    order = similar_side_by_side(similarity)
    assert sum(cluster[a] != cluster[b] for a, b in pairwise(order)) == 4
