"""A sample of `make flips`: no flipped byte gives wrong bytes, what matters is noticed, and repair brings it back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from layerstore.store.database import TABLES
from tests.faults.flips.flipping import FILES, Flip, Outcome, World, flip_all, make_world

_MEMORY = Path("/dev/shm")
_EVERY = 2003  # of some 65,000 bytes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("flips"))


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None)


@pytest.mark.slow
def test_no_flipped_byte_gives_wrong_bytes_or_stays_unnoticed_where_it_matters(
    world: World,
) -> None:
    with _folder() as folder:
        found = flip_all(world, world.flips(_EVERY), Path(folder))
    assert found.violations == []
    assert {file for file, _ in found.counts} == set(FILES)


def test_every_byte_of_a_frame_and_of_the_journal_matters(world: World) -> None:
    journal = (world.root / "journal").stat().st_size
    flips = [Flip("journal", at, 1) for at in range(0, journal, journal // 5)]
    flips += [Flip("chunks", at, 255) for at in range(0, 700, 140)]  # the first frames lie there
    with _folder() as folder:
        found = flip_all(world, flips, Path(folder))
    assert found.violations == []
    assert {outcome for _, outcome in found.counts} == {Outcome.HEALED}


@pytest.mark.slow
def test_numbers_of_the_tables_that_steer_whoever_reads_them(world: World) -> None:
    """Those that once ended in something else than an error of layerstore's, or in a repair that was refused."""
    name = "meta/data.mdb"
    data = (world.root / name).read_bytes()
    page = int.from_bytes(data[40:44], "little")
    flags = [_behind(data, bytes((2, 0, len(table), 0)) + table.encode(), 4) for table in TABLES]
    file_size = [_behind(data, b"file_size", byte) for byte in range(8)]
    steering = range(
        40, 144
    )  # page size, flags, depth, counts and roots of the free list and of the list of tables
    steers = [top + at for top in (0, page) for at in steering]
    flips = [Flip(name, at, mask) for at in steers for mask in (0x57, 0xC9)]
    flips += [Flip(name, at, 0xC9) for at in (*flags, *file_size)]
    # A digit that becomes an `e` makes a number that no integer is.
    created = _behind(data, b'"created_ns":', 0)
    flips += [Flip(name, at, data[at] ^ ord("e")) for at in range(created + 1, created + 18)]
    with _folder() as folder:
        found = flip_all(world, flips, Path(folder))
    assert found.violations == []
    assert found.counts[name, Outcome.HEALED] >= len(flags) + len(file_size)


def _behind(data: bytes, what: bytes, distance: int) -> int:
    assert what in data
    return data.index(what) + len(what) + distance
