"""Write sessions: what is visible when, whose number counts, and where the space of the dead goes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest

from layerstore.digest import digest_of
from layerstore.errors import FailedPrecondition, StoreFull
from layerstore.store import session as session_module
from layerstore.store.chunkfile import ChunkFile
from layerstore.store.index import ChunkIndex
from layerstore.store.layout import BLOCK, SEGMENT
from layerstore.store.store import Store
from tests.support.stores import free_extents, payload, put_file, reserved_sessions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

    import numpy.typing as npt


_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["layerstore.store.store"])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store:
        yield store


def _count(store: Store) -> int:
    with store.read() as txn:
        return store.index.count(txn)


def test_flushed_chunks_read_back_and_numbers_are_dense(store: Store) -> None:
    data = payload(1, 300_000)
    with store.begin() as session:
        promises = put_file(session, data)
        assert _count(store) == 0, "nothing is visible before the flush"
        session.flush()
        numbers = session.numbers_of(promises)
        assert sorted(set(numbers.tolist())) == list(range(1, _count(store) + 1))
        assert b"".join(store.reader.read(numbers)) == data


def test_known_chunks_keep_their_number_and_write_nothing(store: Store) -> None:
    data = payload(2, 200_000)
    with store.begin() as session:
        first = put_file(session, data)
        assert (put_file(session, data) == first).all(), "also before the flush"
        session.flush()
        first = session.numbers_of(first)
        written = session.new_bytes
        assert (session.numbers_of(put_file(session, data)) == first).all()
    with store.begin() as session:
        assert (put_file(session, data) == first).all()
        assert (session.new_chunks, session.new_bytes) == (0, 0)
    assert written > 0


def test_zeros_are_the_hole_and_take_no_space(store: Store) -> None:
    with store.begin() as session:
        numbers = put_file(session, bytes(500_000))
        assert not numbers.any()
        session.flush()
    assert _count(store) == 0
    assert store.chunkfile.allocated_bytes() == 0


def test_session_left_without_commit_leaves_nothing(store: Store) -> None:
    with store.begin() as session:
        put_file(session, payload(3, 400_000))
        session.settle()
    assert _count(store) == 0
    assert reserved_sessions(store) == []
    assert free_extents(store) == [(0, SEGMENT)]
    assert store.chunkfile.allocated_bytes() == 0
    assert list(store.layout.tmp.iterdir()) == []


def test_error_inside_a_commit_undoes_the_rows_and_the_records(store: Store) -> None:
    data = payload(4, 100_000)
    target = digest_of(b"x")
    with store.begin() as session:
        put_file(session, data)
        with pytest.raises(ZeroDivisionError), session.commit() as txn:  # noqa: PT012  # inside it
            store.catalog.put_ref(txn, "docker.io/library/x:1", target)
            raise ZeroDivisionError
    with store.read() as txn:
        assert store.catalog.ref(txn, "docker.io/library/x:1") is None
    assert _count(store) == 0
    assert free_extents(store) == [(0, SEGMENT)]


def test_records_and_rows_become_visible_together(store: Store) -> None:
    with store.begin() as session:
        put_file(session, payload(5, 100_000))
        with session.commit() as txn:
            store.catalog.put_ref(txn, "docker.io/library/x:1", digest_of(b"x"))
            seen: list[tuple[object, int]] = []
            reader = threading.Thread(
                target=lambda: seen.append((_ref(store), _count(store))), name="reader"
            )
            reader.start()
            reader.join()
            assert seen == [(None, 0)]
        assert _ref(store) == digest_of(b"x")
        assert _count(store) > 0


def _ref(store: Store) -> str | None:
    with store.read() as txn:
        return store.catalog.ref(txn, "docker.io/library/x:1")


def test_closed_session_refuses_work_and_closes_again_in_peace(store: Store) -> None:
    session = store.begin()
    put_file(session, payload(6, 1000))
    session.close()
    session.close()
    with pytest.raises(FailedPrecondition):
        put_file(session, payload(6, 1000))
    with pytest.raises(FailedPrecondition):
        session.flush()


def test_same_chunk_in_two_sessions_gets_the_number_of_the_first_to_commit(store: Store) -> None:
    data, own = payload(7, 200_000), payload(8, 200_000)
    with store.begin() as winner, store.begin() as loser:
        winners, losers = put_file(winner, data), put_file(loser, data + own)
        winner.flush()
        loser.flush()
        shared = winner.numbers_of(winners)
        numbers = loser.numbers_of(losers)
        assert len(np.intersect1d(shared, numbers)) >= len(set(shared.tolist())) - 1
        assert b"".join(store.reader.read(numbers)) == data + own
    assert sorted({*shared.tolist(), *numbers.tolist()}) == list(range(1, _count(store) + 1))


def test_sessions_in_threads_agree_on_every_number(store: Store) -> None:
    data = [payload(20 + i, 150_000) for i in range(4)]
    results: dict[int, list[npt.NDArray[np.uint64]]] = {}

    def work(who: int) -> None:
        with store.begin() as session:
            promises = []
            for turn in range(len(data)):
                promises.append(put_file(session, data[(who + turn) % len(data)]))
                session.flush()
            results[who] = [session.numbers_of(numbers) for numbers in promises]

    threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for who, numbers in results.items():
        for turn, row in enumerate(numbers):
            which = (who + turn) % len(data)
            assert b"".join(store.reader.read(row)) == data[which]
            assert (row == results[which][0]).all()


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows that one transaction may insert."""
    monkeypatch.setattr(session_module, "_FIRST_ROWS", 5)
    monkeypatch.setattr(session_module, "_FEWEST_ROWS", 5)
    monkeypatch.setattr(session_module, "_AIM_S", 1e-9)  # never more
    return 5


def test_no_transaction_inserts_more_rows_than_others_may_wait_for(
    store: Store, few_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = payload(31, 2_000_000)
    real, counts = ChunkIndex.insert, list[int]()

    def insert(self: ChunkIndex, txn: Any, ids: list[bytes], places: Any) -> Any:
        counts.append(len(ids))
        return real(self, txn, ids, places)

    monkeypatch.setattr(ChunkIndex, "insert", insert)
    with store.begin() as session:
        promises = put_file(session, data)
        session.flush()
        numbers = session.numbers_of(promises)
        assert b"".join(store.reader.read(numbers)) == data
        assert put_file(session, data).tolist() == numbers.tolist()
    assert len(counts) > 5
    assert max(counts) == few_rows
    assert sum(counts) == _count(store)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_flush_that_met_a_full_disk_between_two_batches_goes_on_from_there(
    store: Store, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = payload(32, 2_000_000), payload(33, 400_000)
    real, calls = ChunkIndex.insert, [0]

    def insert(self: ChunkIndex, txn: Any, ids: list[bytes], places: Any) -> Any:
        calls[0] += 1
        if calls[0] == stop:
            raise StoreFull("no room, in a test")
        return real(self, txn, ids, places)

    monkeypatch.setattr(ChunkIndex, "insert", insert)
    with store.begin() as session:
        promises = put_file(session, first)
        with pytest.raises(StoreFull):
            session.flush()
        assert _count(store) == 5 * (stop - 1), "what was committed stays"
        more = put_file(session, second)
        session.flush()
        assert b"".join(store.reader.read(session.numbers_of(promises))) == first
        assert b"".join(store.reader.read(session.numbers_of(more))) == second
    assert reserved_sessions(store) == []


def _dies_between_batches(root: Path, stop: int) -> None:
    real, calls = ChunkIndex.insert, [0]

    def insert(self: ChunkIndex, txn: Any, ids: list[bytes], places: Any) -> Any:
        calls[0] += 1
        if calls[0] == stop:
            os._exit(1)
        return real(self, txn, ids, places)

    patch.object(ChunkIndex, "insert", insert).start()
    session_module._FIRST_ROWS = session_module._FEWEST_ROWS = 5
    session_module._AIM_S = 1e-9
    with Store(root, create=False) as store, store.begin() as session:
        put_file(session, payload(34, 2_000_000))
        session.flush()


@pytest.mark.parametrize("stop", [2, 4])
def test_of_a_session_that_died_between_two_batches_the_committed_ones_stay(
    tmp_path: Path, stop: int
) -> None:
    root = tmp_path / "store"
    Store(root, create=True).close()
    child = _children.Process(target=_dies_between_batches, args=(root, stop))
    child.start()
    child.join()
    assert child.exitcode == 1
    data = payload(34, 2_000_000)
    with Store(root, create=False) as store:
        committed = _count(store)
        assert committed == 5 * (stop - 1)
        kept = b"".join(store.reader.read(np.arange(1, committed + 1, dtype="u8")))
        assert kept == data[: len(kept)]
        (free,) = free_extents(store)
        with store.read() as txn:
            places = store.index.places(txn, np.arange(1, committed + 1, dtype="u8"))
        end = int((places["address"] + places["encoded"]).max())
        assert free.start == -(-end // BLOCK) * BLOCK, "and the rest is free"
        assert store.chunkfile.allocated_bytes() <= free.start


def test_frames_that_cross_an_extent_go_on_in_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerstore.store.chunkfile.SEGMENT", 2 << 20)
    data = os.urandom(5 << 20)
    with store.begin() as session:
        promises = put_file(session, data)
        session.flush()
        assert len(session._reserved) == 3
        assert b"".join(store.reader.read(session.numbers_of(promises))) == data


def test_bytes_put_as_a_whole_come_back(store: Store) -> None:
    data = payload(9, (1 << 20) + 5000)
    with store.begin() as session:
        numbers = session.put_bytes(data)
        session.flush()
        assert len(numbers) == 2
        assert b"".join(store.reader.read(session.numbers_of(numbers))) == data


def _reserve_and_wait(root: str, told: Connection) -> None:
    from pathlib import Path  # in the child

    with Store(Path(root), create=False) as store, store.begin() as session:
        put_file(session, payload(30, 200_000))
        session.flush()
        for _ in range(3):  # two calls may be behind: the first is written when the third returns
            put_file(session, os.urandom(3 << 20))
        told.send("reserved")
        signal.pause()


def test_space_of_a_killed_session_is_reclaimed_and_of_a_living_one_is_not(store: Store) -> None:
    ours, theirs = _children.Pipe(duplex=False)
    child = _children.Process(target=_reserve_and_wait, args=(str(store.layout.root), theirs))
    child.start()
    assert ours.recv() == "reserved"
    assert len(reserved_sessions(store)) == 1
    with Store(store.layout.root, create=False):
        assert len(reserved_sessions(store)) == 1, "it lives"
    child.kill()
    child.join()
    before = store.chunkfile.allocated_bytes()
    with Store(store.layout.root, create=False):
        assert reserved_sessions(store) == []
    (free,) = free_extents(store)
    assert free.end == SEGMENT
    assert store.chunkfile.allocated_bytes() <= before - (2 << 20)
    with store.read() as txn:
        runs = [run for _, run in store.index.runs(txn)]
    used = max(int((run["address"] + run["encoded"]).max()) for run in runs)
    assert used <= free.start < used + BLOCK


def test_interrupt_after_the_commit_takes_no_committed_chunk_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = payload(31, 200_000)
    real = store.database.write

    with store.begin() as session:
        promises = put_file(session, data)
        session.settle()
        monkeypatch.setattr(store.database, "write", lambda: _Interrupted(real()))
        with pytest.raises(KeyboardInterrupt):
            session.flush()
        monkeypatch.undo()
    assert _count(store) == len(set(promises.tolist()))
    assert b"".join(store.reader.read(np.arange(1, _count(store) + 1, dtype="u8")))


class _Interrupted:
    """A transaction that commits, and is then interrupted before anybody hears of it."""

    def __init__(self, real: object) -> None:
        self._real = real

    def __enter__(self) -> object:
        return self._real.__enter__()  # type: ignore[attr-defined]  # a context manager

    def __exit__(self, *error: object) -> None:
        self._real.__exit__(*error)  # type: ignore[attr-defined]
        if error[0] is None:
            raise KeyboardInterrupt


def test_background_sync_runs_while_a_session_writes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_SYNC_EVERY", 64 << 10)
    syncs: list[str] = []
    real = ChunkFile.sync

    def sync(self: ChunkFile) -> None:
        syncs.append(threading.current_thread().name)
        real(self)

    monkeypatch.setattr(ChunkFile, "sync", sync)
    with store.begin() as session:
        put_file(session, payload(32, 400_000))
        session.flush()
    assert syncs[0] == "layerstore-sync"
    assert syncs[-1] != "layerstore-sync", "the commit itself syncs last"
