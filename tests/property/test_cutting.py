"""Where a file is cut depends on its bytes alone: not on the blocks it arrives in, not on what stands around it."""

from __future__ import annotations

import io
import random
import tarfile
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore.chunking import DEFAULT_PARAMS
from layerstore.ingest.cutting import cut_tar

if TYPE_CHECKING:
    from collections.abc import Iterator


def tar_of(files: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def blocks_of(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        yield data[at : at + size]
        at += size
        turn += 1


def cuts_of(data: bytes, sizes: list[int]) -> tuple[list[int], bytes]:
    lengths, ids = [], b""
    for piece in cut_tar(blocks_of(data, sizes), DEFAULT_PARAMS):
        lengths += piece.cuts.lengths.tolist()
        ids += piece.cuts.ids
    return lengths, ids


FILES = st.lists(
    st.tuples(
        st.sampled_from(["a.bin", "b.pyc", "c"]),
        st.sampled_from([0, 1, 15, 16, 17, 511, 512, 513, 8192, 8193, 40_000, 140_000, 300_000]),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=60)
@given(
    files=FILES,
    sizes=st.lists(st.integers(1, 200_000), min_size=1, max_size=4).filter(lambda s: sum(s) > 2000),
    seed=st.integers(0, 1000),
)
def test_cuts_do_not_depend_on_block_borders(
    files: list[tuple[str, int]], sizes: list[int], seed: int
) -> None:
    noise = random.Random(seed)
    data = tar_of([(name, noise.randbytes(size)) for name, size in files])
    assert cuts_of(data, sizes) == cuts_of(data, [len(data)])


def test_a_block_border_right_behind_a_volatile_head_cuts_nothing() -> None:
    """A closed span was made of the part of an open payload that a buffer held (found on a real layer)."""
    data = tar_of([("m.pyc", random.Random(1).randbytes(11_277))])
    assert cuts_of(data, [512 + 12 + 3508]) == cuts_of(data, [len(data)])
    assert cuts_of(data, [len(data)])[0][:2] == [12, 11_265]
