"""Chunk lists without layers: small ones from sets of integers, and a fleet of any size for benchmarks.

A chunk's sizes follow from its key, so that equal keys are equal chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerstore.analysis.layer import CutLayer
from layerstore.analysis.sources import FoundImage
from layerstore.digest import DiffID, digest_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

__all__ = ["cut_layer_of", "fleet_of_layers", "images_of", "sizes_of"]


def sizes_of(key: int) -> tuple[int, int]:
    """(plain, encoded) bytes of the chunk of a key."""
    plain = 2000 + (key >> 20) % 40_000
    return plain, plain // 3 + 20


def cut_layer_of(chunks: Iterable[int] | npt.NDArray[np.uint64]) -> CutLayer:
    """A layer with these chunks, each a file of its own."""
    keys = np.unique(np.array(chunks if isinstance(chunks, np.ndarray) else list(chunks), "u8"))
    lengths = (2000 + (keys >> np.uint64(20)) % np.uint64(40_000)).astype("u4")
    total = int(lengths.sum(dtype="u8"))
    encoded = lengths // 3 + np.uint32(20)
    return CutLayer(
        total, total, len(keys), total // 3, True, keys, lengths, encoded, keys,
        lengths.astype("u8"), (), {},
    )  # fmt: skip


def fleet_of_layers(
    images: int, chunks: int, seed: int = 1
) -> tuple[list[CutLayer], list[list[int]]]:
    """`images` stacks of three layers with `chunks` chunks in all: one of 20 bases, a popular middle, an own top."""
    rng = np.random.default_rng(seed)

    def fresh(count: int) -> npt.NDArray[np.uint64]:
        return rng.integers(1, 1 << 63, count, "u8")

    tenth = chunks // 10
    layers = [cut_layer_of(fresh(4 * tenth)) for _ in range(20)]
    pool = fresh(67 * chunks)
    stacks = []
    for _ in range(images):
        start = int(rng.integers(0, 200)) * 3 * tenth
        middle = np.concatenate([pool[start : start + 3 * tenth], fresh(tenth)])
        top = np.concatenate([pool[rng.integers(0, len(pool), tenth)], fresh(tenth)])
        layers += [cut_layer_of(middle), cut_layer_of(top)]
        stacks.append([int(rng.integers(20)), len(layers) - 2, len(layers) - 1])
    return layers, stacks


def images_of(
    stacks: Sequence[Sequence[int]], layers: int
) -> tuple[list[FoundImage], list[DiffID]]:
    """Images of these stacks of `layers` layers, and the layers' diff IDs: what `summarize` wants besides the layers."""
    diff_ids = [DiffID(digest_of(b"layer %d" % number)) for number in range(layers)]
    images = [
        FoundImage(
            digest_of(b"image %d" % number),
            (f"docker.io/made/{number}:1",),
            "made",
            tuple(diff_ids[position] for position in stack),
            (0,) * len(stack),
        )
        for number, stack in enumerate(stacks)
    ]
    return images, diff_ids
