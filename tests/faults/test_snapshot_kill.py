"""Snapshots while others call, and after kill -9: what was acknowledged is there, what was not is not in the way."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from layerstore.errors import AlreadyExists
from layerstore.snapshots import SnapshotKind
from tests.support.snapshots import open_snapshots

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from layerstore.snapshots import Snapshots
    from layerstore.store.snapstate import SnapshotRecord

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


def _upper(snapshots: Snapshots, key: str) -> Path:
    (spec,) = snapshots.mounts(key)
    found = [option for option in spec.options if option.startswith("upperdir=")]
    return Path(found[0].partition("=")[2] if found else spec.source)


def _dies_committing(root: Path) -> None:
    """Commit, and die where the record would become durable."""
    with open_snapshots(root) as snapshots:
        table = snapshots._table
        put = table.put

        def put_and_die(txn: Any, record: SnapshotRecord) -> None:
            put(txn, record)
            os.kill(os.getpid(), signal.SIGKILL)

        table.put = put_and_die  # type: ignore[method-assign]  # the last moment before the transaction ends
        snapshots.commit("c", "a")


def test_killed_at_the_end_of_commit_keeps_the_changes(tmp_path: Path) -> None:
    with open_snapshots(tmp_path) as snapshots:
        snapshots.prepare("a")
        (_upper(snapshots, "a") / "file").write_bytes(b"precious")
    child = SPAWN.Process(target=_dies_committing, args=(tmp_path,))
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    with open_snapshots(tmp_path) as snapshots:
        assert snapshots.cleanup() == 0
        assert [(i.name, i.kind) for i in snapshots.walk()] == [("a", SnapshotKind.ACTIVE)]
        assert (_upper(snapshots, "a") / "file").read_bytes() == b"precious"
        snapshots.commit("c", "a")


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
                upper = _upper(snapshots, key)
                assert upper.is_dir()
                assert info.parent or last != key or (upper / "file").stat().st_size in (0, 100_000)
        snapshots.cleanup()
        assert snapshots.cleanup() == 0
        top = max(committed, key=lambda key: int(key[1:]), default="")
        snapshots.prepare("again", top)
        snapshots.commit("goes on", "again")
        folders = {path.name for path in (tmp_path / "snapshots").iterdir()}
        active = list(snapshots.walk(["kind==active"]))
        assert len(folders) == len(active)
