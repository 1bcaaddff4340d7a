"""Numbers for keys are those that sorting all keys gives; a walk tells what is new at each list."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from layerstore.analysis.numbering import Stacks, number

# Of the whole space (many blocks), and side by side (one block).
_keys = st.one_of(
    st.integers(0, (1 << 64) - 1), st.integers(0, 9), st.integers(0, 9).map(lambda n: n << 60)
)
_lists = st.lists(st.sets(_keys, max_size=12), max_size=6)


@given(_lists)
def test_a_number_is_the_place_among_all_distinct_keys(keys: list[set[int]]) -> None:
    found = number([np.array(sorted(one), "u8") for one in keys])
    every = sorted(set[int]().union(*keys))
    assert found.total == len(every)
    assert [[every[n] for n in one] for one in found.lists] == [sorted(one) for one in keys]


@given(_lists.filter(bool), st.data())
def test_a_walk_tells_what_no_list_below_has(keys: list[set[int]], data: st.DataObject) -> None:
    numbered = number([np.array(sorted(one), "u8") for one in keys])
    walks = Stacks(numbered)
    for _ in range(3):
        stack = data.draw(st.lists(st.integers(0, len(keys) - 1), max_size=5))
        below: set[int] = set()
        for position, is_new in walks.walk(stack):
            numbers = numbered.lists[position]
            assert set(numbers[is_new].tolist()) == set(numbers.tolist()) - below
            below |= set(numbers.tolist())
