"""The journal holds what the tables hold, through commits, aborts, lost tails and renewals."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.store.journal import Gap, JournalFile, Record, read_journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layerstore.api import LayerStore
    from layerstore.store.database import Transaction

_ROW = ("refs", b"docker.io/test/name:1")


def _replayed(root: Path) -> dict[tuple[str, bytes], bytes]:
    rows: dict[tuple[str, bytes], bytes] = {}
    for record in read_journal(root / "journal"):
        assert isinstance(record, Record)
        for table, key, value in record.changes:
            rows.pop((table, key), None)
            if value is not None:
                rows[table, key] = value
    return rows


def _tables(store: LayerStore) -> dict[tuple[str, bytes], bytes]:
    database = store.store.database
    with store.store.read() as txn:
        position = database.journal_position(txn)
        assert position.transaction == txn.id()
        assert position.end == (store.store.layout.journal).stat().st_size
        return {
            (change.table, change.key): change.value or b"" for change in database.journaled(txn)
        }


def _put(store: LayerStore, value: bytes, size: int = 0) -> None:
    with store.store.write() as txn:
        store.store.database.put(txn, *_ROW, value)
        if size:
            store.store.database.put(txn, "blobs", b"large", os.urandom(size))


def test_what_is_put_and_deleted_is_in_the_journal(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        _put(store, b"1")
        with store.store.write() as txn:
            store.store.database.put(txn, "layers", b"key", b"value")
            store.store.database.put(txn, "free", b"key", b"follows from the rest")
        with store.store.write() as txn:
            assert store.store.database.delete(txn, *_ROW)
        assert _replayed(tmp_path) == _tables(store) == {("layers", b"key"): b"value"}


def test_transaction_that_is_undone_leaves_no_trace(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        _put(store, b"1")
        with suppress(KeyError), store.store.write() as txn:
            store.store.database.put(txn, *_ROW, b"2")
            raise KeyError
        assert _replayed(tmp_path) == _tables(store) == {_ROW: b"1"}


def test_record_of_a_transaction_that_was_not_committed_is_written_over(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        _put(store, b"1")
        with store.store.read() as txn:
            end = store.store.database.journal_position(txn).end
        with (tmp_path / "journal").open("ab") as file:
            file.write(
                b"a record of a process that was killed before LMDB's commit, longer than ours"
            )
        _put(store, b"2")
        assert _replayed(tmp_path) == _tables(store) == {_ROW: b"2"}
        assert (tmp_path / "journal").stat().st_size > end


@pytest.mark.parametrize("left", [0, 10, 24, 60, -20])
def test_journal_that_lost_its_tail_is_begun_anew_at_the_next_open(
    tmp_path: Path, left: int
) -> None:
    with open_store(tmp_path) as store:
        _put(store, b"1")
        _put(store, b"2")
    size = (tmp_path / "journal").stat().st_size
    os.truncate(tmp_path / "journal", left if left >= 0 else size + left)
    with open_store(tmp_path) as store:
        assert _replayed(tmp_path) == _tables(store) == {_ROW: b"2"}


def test_tail_of_zeros_is_noticed_at_the_next_open(tmp_path: Path) -> None:
    """What a power cut may leave: the length of the file is durable, its last bytes are not."""
    with open_store(tmp_path) as store:
        _put(store, b"1")
    size = (tmp_path / "journal").stat().st_size
    os.truncate(tmp_path / "journal", size - 30)
    os.truncate(tmp_path / "journal", size)
    with open_store(tmp_path) as store:
        assert _replayed(tmp_path) == _tables(store) == {_ROW: b"1"}


def test_commits_go_on_without_a_journal_and_the_next_open_makes_one(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        (tmp_path / "journal").unlink()
        _put(store, b"1")
        _put(store, b"2")
        assert not (tmp_path / "journal").exists()
    with open_store(tmp_path) as store:
        assert _replayed(tmp_path) == _tables(store) == {_ROW: b"2"}


def test_journal_that_grew_is_begun_anew_and_stays_small(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for number in range(8):
            _put(store, b"%d" % number, size=1 << 20)
            assert (tmp_path / "journal").stat().st_size < 8 << 20
        rows = _tables(store)
        assert _replayed(tmp_path) == rows
        assert rows[_ROW] == b"7"
    assert not (tmp_path / "journal.new").exists()


def test_what_is_committed_while_a_journal_is_begun_anew_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = JournalFile.sync
    with open_store(tmp_path) as store:
        _put(store, b"1")

        def sync(file: JournalFile) -> None:
            monkeypatch.setattr(JournalFile, "sync", real)
            real(file)
            _put(store, b"2")  # between the copy of the tables and the writer's lock

        monkeypatch.setattr(JournalFile, "sync", sync)
        store.store.database.renew_journal()
        assert _replayed(tmp_path) == _tables(store) == {_ROW: b"2"}
        _put(store, b"3")
        assert _replayed(tmp_path) == _tables(store) == {_ROW: b"3"}


def test_every_flipped_byte_is_a_gap_and_what_is_around_it_is_read(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for number in range(3):
            _put(store, b"value %d" % number)
    path = tmp_path / "journal"
    data = path.read_bytes()
    whole = list(read_journal(path))
    for offset in range(len(data)):
        flipped = bytearray(data)
        flipped[offset] ^= 0x41
        path.write_bytes(flipped)
        found = list(read_journal(path))
        if offset < 24:
            # Of the generation only the tables know what it should be.
            assert found == whole or found == [Gap(0, 24), *whole]
            continue
        gaps = [gap for gap in found if isinstance(gap, Gap)]
        assert len(gaps) == 1
        assert gaps[0].start <= offset < gaps[0].end
        assert [record for record in found if isinstance(record, Record)] == [
            record for record in whole if not record.start <= offset < record.end
        ]


def test_bug_another_thread_looks_right_behind_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path) as store:
        database = store.store.database
        begin = database._begin

        @contextmanager
        def looked_at_behind(*, write: bool) -> Iterator[Transaction]:
            with begin(write=write) as txn:
                yield txn
            if write:
                with begin(write=False) as txn:
                    database.cursor(txn, "refs").close()

        monkeypatch.setattr(database, "_begin", looked_at_behind)
        with database.write():
            pass
