"""Chunk ID to number to place, over the borders of the runs that places are kept in."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from layerstore.errors import CorruptStore
from layerstore.store.index import PLACE
from layerstore.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store:
        yield store


def _rows(first: int, count: int) -> tuple[list[bytes], npt.NDArray[np.void]]:
    ids = [hashlib.sha256(str(i).encode()).digest() for i in range(first, first + count)]
    places = np.empty(count, PLACE)
    places["address"] = np.arange(first, first + count) * 1000
    places["encoded"] = 900
    places["decoded"] = 1800
    places["id"] = np.frombuffer(b"".join(ids), "V32")
    return ids, places


def _insert(store: Store, first: int, count: int) -> npt.NDArray[np.uint64]:
    with store.write() as txn:
        return store.index.insert(txn, *_rows(first, count))


def test_numbers_are_dense_from_one_in_the_order_of_insertion(store: Store) -> None:
    assert _insert(store, 0, 3).tolist() == [1, 2, 3]
    assert _insert(store, 3, 2).tolist() == [4, 5]
    assert _insert(store, 1, 6).tolist() == [2, 3, 4, 5, 6, 7], "known ones keep theirs"
    with store.read() as txn:
        assert store.index.count(txn) == 7


def test_insertion_of_known_chunks_only_uses_no_number(store: Store) -> None:
    _insert(store, 0, 3)
    assert _insert(store, 0, 3).tolist() == [1, 2, 3]
    assert _insert(store, 0, 0).tolist() == []
    assert _insert(store, 3, 1).tolist() == [4]


@pytest.mark.parametrize("counts", [[509], [510], [511], [1021, 1], [3, 1500, 1, 1, 600], [5000]])
def test_places_are_found_over_the_borders_of_runs(store: Store, counts: list[int]) -> None:
    first = 0
    for count in counts:
        _insert(store, first, count)
        first += count
    rng = random.Random(first)
    borders = [n for at in range(0, first, 510) for n in (at, at + 1, at + 2) if 1 <= n <= first]
    with store.read() as txn:
        for numbers in (
            np.arange(1, first + 1, dtype="u8"),
            np.array([first, 1, first, 1], "u8"),
            np.array(rng.choices(range(1, first + 1), k=700), "u8"),
            np.array(borders or [1], "u8"),
        ):
            places = store.index.places(txn, numbers)
            assert (places["address"] == (numbers - 1) * 1000).all()
        runs = list(store.index.runs(txn))
    assert sum(len(run) for _, run in runs) == first
    assert [start for start, _ in runs] == [
        1 + sum(len(run) for _, run in runs[:i]) for i in range(len(runs))
    ]


@pytest.mark.parametrize("number", [0, 601, 10**9])
def test_number_without_a_place_is_damage(store: Store, number: int) -> None:
    _insert(store, 0, 600)
    with store.read() as txn, pytest.raises(CorruptStore):
        store.index.places(txn, np.array([1, number, 600], "u8"))


def test_place_of_any_number_in_an_empty_index_is_damage(store: Store) -> None:
    with store.read() as txn, pytest.raises(CorruptStore):
        store.index.places(txn, np.array([1], "u8"))


def test_lookup_finds_what_is_stored_and_nothing_else(store: Store) -> None:
    _insert(store, 0, 600)
    ids, _ = _rows(590, 20)
    with store.read() as txn:
        assert store.index.lookup(txn, ids) == {ids[i]: 591 + i for i in range(10)}
        assert store.index.lookup(txn, []) == {}
