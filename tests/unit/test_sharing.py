"""Equal contents have equal keys, and shares add up to the byte."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from layerstore.sharing import distinct, divide, files_of

_chunks = st.tuples(st.integers(0, 3), st.integers(1, 3))  # key, length
_files = st.lists(st.lists(_chunks, max_size=3), max_size=12)


@given(_files, st.lists(_chunks, max_size=3))
def test_files_are_equal_where_their_chunks_are(
    files: list[list[tuple[int, int]]], behind: list[tuple[int, int]]
) -> None:
    chunks = [chunk for file in files for chunk in file] + behind
    keys = np.array([key for key, _ in chunks], "u8")
    lengths = np.array([length for _, length in chunks], "u4")
    sizes = np.array([sum(length for _, length in file) for file in files], "u8")
    found = files_of(keys, lengths, sizes)
    assert found.counts.tolist() == [len(file) for file in files]
    for one, first, file in zip(found.keys, found.first, files, strict=True):
        assert keys[first : first + len(file)].tolist() == [key for key, _ in file]
        assert [files[i] for i in np.flatnonzero(found.keys == one)] == [file] * int(
            (found.keys == one).sum()
        )
    assert len(set(found.keys.tolist())) == len({tuple(file) for file in files})


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.sets(st.integers(0, 4), min_size=1))))
def test_shares_of_all_holders_add_up_and_differ_by_a_byte_a_chunk(
    chunks: list[tuple[int, set[int]]],
) -> None:
    taken = np.zeros(len(chunks), "u4")
    shares = []
    for holder in range(5):
        mine = [i for i, (_, holders) in enumerate(chunks) if holder in holders]
        sizes = np.array([chunks[i][0] for i in mine], "u4")
        counts = np.array([len(chunks[i][1]) for i in mine], "u4")
        shares.append(divide(sizes, counts, taken[mine]))
        taken[mine] += 1
        exact = sum((Fraction(chunks[i][0], len(chunks[i][1])) for i in mine), Fraction())
        assert abs(shares[-1] - exact) <= len(mine)
    assert sum(shares) == sum(size for size, _ in chunks)


@given(st.lists(st.integers(0, 5)))
def test_distinct_values_are_ascending_and_come_once(values: list[int]) -> None:
    assert distinct(np.array(values, "u4")).tolist() == sorted(set(values))
