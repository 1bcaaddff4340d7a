"""kill -9 at any moment: what was acknowledged is whole, and the space of the dead is free again."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from tests.support.stores import (
    Loading,
    assert_clean,
    assert_holds,
    indexed_bytes,
    load_and_tell,
    sample_images,
    write_archive,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

    from tests.support.archive_builders import Image

_KILLS = 10  # in each of five stores
_LAYER = 700_000  # bytes
_PATIENCE_S = 30.0

# Children are forked from a server that has imported the package: starting one takes milliseconds.
_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["layerstore.api", "tests.support.stores"])


def _start(root: Path, archives: list[Path]) -> tuple[ForkServerProcess, Connection]:
    ours, theirs = _children.Pipe(duplex=False)
    work = Loading(str(root), tuple(map(str, archives)))
    child = _children.Process(target=load_and_tell, args=(work, theirs))
    child.start()
    theirs.close()
    assert ours.recv()[0] == -1, "it runs"
    return child, ours


def _acknowledged(told: Connection) -> dict[int, float]:
    """Which archives the child said were loaded, and after how many seconds."""
    done: dict[int, float] = {}
    try:
        while True:
            number, seconds = told.recv()
            done[number] = seconds
    except EOFError:
        return done
    finally:
        told.close()


def _finish(children: list[tuple[ForkServerProcess, Connection]], count: int) -> float:
    """Let loads end; returns the seconds that the slowest took."""
    slowest = 0.0
    for child, told in children:
        done = _acknowledged(told)
        assert len(done) == count
        child.join()
        assert child.exitcode == 0
        slowest = max(slowest, *done.values())
    return slowest


def _undisturbed(folder: Path, halves: list[list[int]]) -> float:
    """How many seconds such loads take when nobody kills them."""
    images = sample_images(99, count=6, layer_size=_LAYER)
    archives = [write_archive(folder, image) for image in images]
    root = folder / "undisturbed"
    return _finish([_start(root, [archives[i] for i in half]) for half in halves], 4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_kill_at_any_moment_loses_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    rng, root = random.Random(seed), tmp_path / "store"
    kept: list[Image] = []
    partial = 0
    halves = [[0, 1, 2, 3], [1, 0, 4, 5]]  # both load the first two: they meet at the same chunks
    spread = _undisturbed(tmp_path, halves)
    for kill in range(_KILLS):
        images = sample_images(seed * 100 + kill, count=6, layer_size=_LAYER)
        archives = [write_archive(tmp_path, image) for image in images]
        children = [_start(root, [archives[i] for i in half]) for half in halves]
        if kill % 2:  # anywhere; else behind the first image that is acknowledged
            time.sleep(rng.uniform(0, spread * 1.1))
        else:
            assert wait([told for _, told in children], _PATIENCE_S)
            time.sleep(rng.uniform(0, spread / 8))
        for child, _ in children:
            child.kill()
        for (child, told), half in zip(children, halves, strict=True):
            child.join()
            done = _acknowledged(told)
            partial += 0 < len(done) < len(half)
            kept += [images[half[i]] for i in done]
        with open_store(root) as store:
            assert_clean(store)
            for image in kept:
                assert_holds(store, image)
        _finish([_start(root, [archives[i] for i in half]) for half in halves], 4)
        with open_store(root) as store:
            assert_clean(store)
            for image in images:
                assert_holds(store, image)
        kept = images  # what is older was read often enough
        for archive in archives:
            archive.unlink()
    assert partial, "no kill fell between two acknowledged images: the moments are badly chosen"


@pytest.mark.slow
def test_the_disk_does_not_fill_with_what_the_dead_have_written(tmp_path: Path) -> None:
    rng, root = random.Random(1), tmp_path / "store"
    (image,) = sample_images(1, count=1, layer_size=6 << 20, layers=1)
    archive = write_archive(tmp_path, image)
    with open_store(root) as store:
        assert store.store.chunkfile.allocated_bytes() == 0
    tables = []
    for _ in range(12):
        child, told = _start(root, [archive])
        deadline = time.monotonic() + 20
        while (root / "chunks").stat().st_blocks * 512 < 1 << 20 and child.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))
        child.kill()
        child.join()
        _acknowledged(told)
        with open_store(root) as store:
            assert_clean(store)
            unknown = store.store.chunkfile.allocated_bytes() - indexed_bytes(store.store)
            assert unknown < 64 << 10, "blocks that no chunk needs were punched"
            tables.append((root / "meta" / "data.mdb").stat().st_blocks)
    assert tables[-1] <= tables[2] + 64, "ended sessions leave nothing in the tables"
    _finish([_start(root, [archive])], 1)
    with open_store(root) as store:
        assert_clean(store)
        assert_holds(store, image)
