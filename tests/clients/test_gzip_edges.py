"""A sample of `gzip_edges`: every encoder that is installed, at the borders where encoders change their ways."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from layerstore import kernels
from tests.clients.gzip_edges import BORDERS, NEAR, Outcome, encoders, sweep, texts

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    kernels.NAME != "native", reason="splitting needs the native kernels"
)

UNMODELLED = {"klauspost 1", "klauspost 9"}  # exact or kept: no layer is known to be made so


def test_blobs_at_borders_come_back_exactly_from_every_encoder(tmp_path: Path) -> None:
    rng = random.Random(6)
    small = [size for size in BORDERS.values() if size <= 128 << 10]
    for name, encode in encoders(tmp_path).items():
        outcome = Outcome()
        for kind, (text, _) in texts().items():
            sizes = [0, 1, 12, 300, *(border + rng.choice(NEAR) for border in small)]
            sweep(encode, kind, text, sizes, outcome)
        assert outcome.wrong == [], name
        if name not in UNMODELLED:
            assert dict(outcome.kept) == {}, name
            assert outcome.dearest < 2, name
