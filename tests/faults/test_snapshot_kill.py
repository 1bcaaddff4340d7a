"""Snapshots while others call, and after kill -9: what was acknowledged is there, what was not is not in the way."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.errors import AlreadyExists
from layerstore.snapshots import SnapshotKind
from tests.support.snapshots import open_snapshots

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

SPAWN = multiprocessing.get_context("spawn")


def _prepare_all(root: Path, keys: list[str], won: Connection) -> None:
    with open_snapshots(root) as snapshots:
        for key in keys:
            try:
                snapshots.prepare(key)
            except AlreadyExists:
                continue
            won.send(key)
    won.send("")


def test_one_process_wins_each_key(tmp_path: Path) -> None:
    keys = [f"key{n}" for n in range(20)]
    with open_snapshots(tmp_path):
        pass
    ends, children = [], []
    for _ in range(3):
        here, there = SPAWN.Pipe(duplex=False)
        child = SPAWN.Process(target=_prepare_all, args=(tmp_path, keys, there))
        child.start()
        there.close()
        ends.append(here)
        children.append(child)
    won = [key for end in ends for key in iter(end.recv, "")]
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert sorted(won) == sorted(keys)
    with open_snapshots(tmp_path) as snapshots:
        assert {info.name for info in snapshots.walk()} == set(keys)
        sources = {snapshots.mounts(key)[0].source for key in keys}
        assert len(sources) == len(keys)
        assert all(Path(source).is_dir() for source in sources)
        assert snapshots.cleanup() == 0


def _work(root: Path, told: Connection) -> None:
    with open_snapshots(root) as snapshots:
        parent, number = "", 0
        while True:
            snapshots.prepare(f"a{number}", parent)
            if not parent:
                Path(snapshots.mounts(f"a{number}")[0].source, "file").write_bytes(b"x" * 100_000)
            told.send(("prepared", f"a{number}"))
            snapshots.commit(f"c{number}", f"a{number}")
            told.send(("committed", f"c{number}"))
            parent = f"c{number}"
            snapshots.prepare(f"r{number}", parent)
            snapshots.remove(f"r{number}")
            told.send(("removed", f"r{number}"))
            number += 1


@pytest.mark.parametrize("seed", range(4))
def test_killed_between_prepare_and_remove(tmp_path: Path, seed: int) -> None:
    with open_snapshots(tmp_path):
        pass
    here, there = SPAWN.Pipe(duplex=False)
    child = SPAWN.Process(target=_work, args=(tmp_path, there))
    child.start()
    there.close()
    told = [here.recv() for _ in range(random.Random(seed).randrange(1, 25))]
    child.kill()
    child.join(30)
    try:
        while True:
            told.append(here.recv())
    except EOFError:
        pass
    committed = {key for what, key in told if what == "committed"}
    removed = {key for what, key in told if what == "removed"}
    with open_snapshots(tmp_path) as snapshots:
        infos = {info.name: info for info in snapshots.walk()}
        assert committed <= {k for k, i in infos.items() if i.kind is SnapshotKind.COMMITTED}
        assert not removed & infos.keys()
        last = told[-1][1] if told[-1][0] == "prepared" else None
        assert last is None or last in infos or f"c{last[1:]}" in infos
        for key, info in infos.items():
            if info.kind is SnapshotKind.ACTIVE:
                assert Path(snapshots.mounts(key)[0].source).exists()
        snapshots.cleanup()
        assert snapshots.cleanup() == 0
        top = max(committed, key=lambda key: int(key[1:]), default="")
        snapshots.prepare("again", top)
        snapshots.commit("goes on", "again")
        folders = {path.name for path in (tmp_path / "snapshots").iterdir()}
        active = [i for i in snapshots.walk(["kind==active"])]
        assert len(folders) == len(active)
