"""The LMDB environment: one for each store and process, its tables, its transactions, its errors as ours.

A write transaction is the only commit point of the store: LMDB syncs the data and then the root page, so a crash
leaves the state before or the state after. Readers never wait and never block a writer.

What a transaction changes also goes to the journal, just before LMDB commits it, and without a sync of its own: the
tables are what counts, the journal is their second copy. Where it cannot be written the transaction is not held up; the
tables then say that there is no journal, and the next process that opens the store to write begins a new one.

Source: LMDB's lmdb.h ("Caveats": one environment for a file in a process; no use across fork).
"""

from __future__ import annotations

import os
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import lmdb

from layerstore.errors import (
    Busy,
    CorruptStore,
    FailedPrecondition,
    StoreFull,
)
from layerstore.store import files, lmdbfile
from layerstore.store.journal import Change, JournalFile, Position, new_generation
from layerstore.store.lmdbenv import open_environment, open_lmdb, translated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["DERIVED", "TABLES", "Database", "Transaction", "pack_u64", "unpack_u64"]

Transaction = Any  # lmdb.Transaction: the package has no types

# name -> what it maps; keys and values are described in docs/format.md
TABLES = (
    "state",
    "chunks",
    "places",
    "layers",
    "blobs",
    "images",
    "refs",
    "free",
    "sessions",
    "contents",
    "mounts",
    "snapshots",
    "reusable",
    "condemned",
    "leases",
)
# Tables that stores of version 1 did not have from the beginning: whoever only reads may find them missing.
_LATER_TABLES = frozenset(("reusable", "condemned", "leases"))

# Tables that follow from others, from the chunk file or from files that are made again: not in the journal.
DERIVED = frozenset(("chunks", "free", "reusable", "sessions", "contents", "condemned"))

_JOURNAL = b"journal"  # in `state`: a Position
# Rows of `state` that neither are.
_DERIVED_STATE = frozenset((_JOURNAL, b"file_size", b"next_session", b"condemned_before"))
_SYNC_JOURNAL = 4 << 20  # bytes of the journal that may wait for a sync
_GROWTH = (
    2  # the journal is begun anew when it has grown to so many times what the tables needed ...
)
_SLACK = 4 << 20  # ... and these bytes more
_DUMP = 1 << 20  # bytes of rows in one record of a new journal

_U64 = struct.Struct(">Q")

_open: dict[tuple[int, int], Database] = {}
_open_lock = threading.Lock()


def pack_u64(number: int) -> bytes:
    """A number as a key or value; big endian, so that keys sort."""
    return _U64.pack(number)


def unpack_u64(value: bytes) -> int:
    """The inverse of `pack_u64`.

    Raises: CorruptStore: not eight bytes.
    """
    if len(value) != _U64.size:
        raise CorruptStore("the store's tables are damaged: a number has the wrong length")
    return int(_U64.unpack(value)[0])


class Database:
    """The tables of one store. `Database.open` gives the process's one object for a folder; `close` counts.

    Thread safety: all methods, from any thread; one write transaction at a time, across processes.
    """

    def __init__(
        self, folder: Path, journal: Path, key: tuple[int, int], *, read_only: bool, create: bool
    ) -> None:
        self._folder, self._journal = folder, journal
        self._key, self._users, self._pid = key, 0, os.getpid()
        self._read_only = read_only
        self._running: set[int] = set()  # transactions, for whoever forks in the middle of one
        self._changes: list[Change] = []  # of the one write transaction
        self._is_changed = False
        self._synced = Position.decode(None)
        self._full: StoreFull | None = None  # what the last write has met, for whoever comes after
        with translated(folder):
            inode = 0
            if not create:
                lmdbfile.check_size(folder / "data.mdb")
                inode = (folder / "data.mdb").stat().st_ino
            self._env = open_environment(folder, len(TABLES), read_only=read_only)
            try:
                if not create:
                    _check_same(folder / "data.mdb", inode)
                self._env.reader_check()
                self._tables = self._open_tables(read_only=read_only)
            except BaseException:
                self._env.close()
                raise

    def _open_tables(self, *, read_only: bool) -> dict[str, Any]:
        if not read_only:
            with self._env.begin(write=True) as txn:  # all of them, or none
                return {name: self._env.open_db(name.encode(), txn) for name in TABLES}
        tables = {}
        for name in TABLES:
            try:
                tables[name] = self._env.open_db(name.encode(), create=False)
            except lmdb.NotFoundError:
                if name not in _LATER_TABLES:
                    raise
        return tables

    @staticmethod
    def open(folder: Path, journal: Path, *, read_only: bool, create: bool = False) -> Database:
        """Open a folder's database, or share it where this process has it open already; `create` makes its tables.

        Raises:
            FailedPrecondition: it is to be written, and this process has it open for reading only.
            CorruptStore: it is missing and not to be made: empty tables would be taken for the store's.
        """
        status = folder.stat()
        key = (status.st_dev, status.st_ino)
        with _open_lock:
            database = _open.get(key)
            if database is not None and not database.is_ours:
                database.drop_inherited()
                database = None
            if database is None:
                database = Database(folder, journal, key, read_only=read_only, create=create)
                if not read_only:
                    files.fsync_directory(folder)
                    # Nobody is kept from a full store: a journal can be begun later as well.
                    with suppress(StoreFull):
                        database.keep_journal()
                _open[key] = database
            elif database._read_only and not read_only:
                raise FailedPrecondition(
                    f"{folder.parent} is open for reading only in this process; close it there first"
                )
            database._users += 1
            return database

    @staticmethod
    @contextmanager
    def kept_closed(folder: Path) -> Iterator[None]:
        """Let no thread of this process open a folder's database in the block. Raises: FailedPrecondition: it is open."""
        status = folder.stat()
        with _open_lock:
            database = _open.get((status.st_dev, status.st_ino))
            if database is not None and database.is_ours:
                raise FailedPrecondition(f"{folder.parent} is open in this process; close it first")
            yield

    @staticmethod
    def set_up_lock_table(folder: Path) -> None:
        """Let LMDB make its lock file fit new tables: it does where nobody else can have them open."""
        open_lmdb(folder, len(TABLES), read_only=False).close()

    @classmethod
    @contextmanager
    def building(cls, folder: Path) -> Iterator[Self]:
        """Tables that are made beside those of a store, without a journal; durable when the block ends."""
        database = cls(folder, folder / "journal", (0, 0), read_only=False, create=True)
        try:
            yield database
        finally:
            database._env.close()

    @property
    def is_ours(self) -> bool:
        """Whether this process opened it: LMDB does not survive a fork."""
        return self._pid == os.getpid()

    def close(self) -> None:
        """Let go; the last user closes the environment. In a forked child, nothing is ours to close."""
        with _open_lock:
            if not self.is_ours:
                return
            self._users -= 1
            if self._users == 0:
                _open.pop(self._key, None)
                self._env.close()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A snapshot of all tables. Keep it short: what a reader can see is not reused."""
        with self._full_remembered(), translated(self._folder), self._begin(write=False) as txn:
            yield txn

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """The one write transaction: durable when the block ends, undone when it raises."""
        # What is asked after the commit is the writer's own: another thread may by then have set the shared marks.
        position: Position | None = None
        with (
            self._full_remembered(),
            translated(self._folder),
            self._begin(write=True) as txn,
        ):
            self._changes, self._is_changed = [], False
            yield txn
            if self._is_changed:
                position = self._journal_changes(txn)
        if position is not None and position.end - position.synced > _SYNC_JOURNAL:
            self.sync_journal()

    @contextmanager
    def _full_remembered(self) -> Iterator[None]:
        """LMDB gives up on an environment whose root page it could not write: why is known from that write only."""
        try:
            yield
        except StoreFull as error:
            self._full = error
            raise
        except FailedPrecondition as error:
            if self._full is None or not isinstance(error.__cause__, lmdb.PanicError):
                raise
            raise StoreFull(f"{self._full}; {error}") from error

    @contextmanager
    def _begin(self, *, write: bool) -> Iterator[Transaction]:
        if not self.is_ours:
            raise FailedPrecondition("a store does not survive a fork; open it again in the child")
        with self._env.begin(write=write) as txn:
            self._running.add(id(txn))
            try:
                yield txn
            finally:
                self._running.discard(id(txn))

    def drop_inherited(self) -> None:
        """Close the parent's environment in the child: LMDB allows one for a file and process.

        That would end the parent's running transactions too, since their slots are in shared memory; the others it
        leaves alone.
        """
        if self._running:
            raise FailedPrecondition(
                "this process was forked while its store was in use; fork when nothing runs, or spawn"
            )
        self._env.close()

    def cursor(self, txn: Transaction, table: str) -> Any:
        """A cursor on a table; only those of `DERIVED` may be changed through it."""
        self._is_changed = True  # it may become so
        return txn.cursor(self._tables[table]) if table in self._tables else _NoRows()

    def get(self, txn: Transaction, table: str, key: bytes) -> bytes | None:
        """A value, or None."""
        if table not in self._tables:
            return None
        value: bytes | None = txn.get(key, db=self._tables[table])
        return value

    def put(self, txn: Transaction, table: str, key: bytes, value: bytes) -> None:
        """Set a value, whether or not the key has one."""
        self._note(table, key, value)
        txn.put(key, value, db=self._tables[table])

    def delete(self, txn: Transaction, table: str, key: bytes) -> bool:
        """Remove a key; whether it was there."""
        self._note(table, key, None)
        return bool(txn.delete(key, db=self._tables[table]))

    def items(self, txn: Transaction, table: str) -> Iterator[tuple[bytes, bytes]]:
        """All of a table in the order of its keys."""
        if table in self._tables:
            yield from txn.cursor(self._tables[table])

    def damaged_pages(self, txn: Transaction) -> list[str]:
        """What is wrong with the pages of the file, in words; the transaction keeps them from being used again."""
        del txn
        return lmdbfile.check_pages(self._folder / "data.mdb")

    def keys(self, txn: Transaction, table: str) -> Iterator[bytes]:
        """The keys of a table, in their order."""
        if table in self._tables:
            yield from txn.cursor(self._tables[table]).iternext(keys=True, values=False)

    def used_bytes(self) -> int:
        """Bytes of the pages in use."""
        with self.read() as txn:
            pages = sum(
                stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
                for stat in (txn.stat(db) for db in self._tables.values())
            )
        return int(pages) * int(self._env.stat()["psize"])

    def journaled(self, txn: Transaction) -> Iterator[Change]:
        """All rows that a journal holds, as they are now."""
        for table in TABLES:
            if table not in DERIVED:
                for key, value in self.items(txn, table):
                    if _is_journaled(table, key):
                        yield Change(table, key, value)

    def journal_position(self, txn: Transaction) -> Position:
        """How far the journal is right; one whose transaction is not the last has missed some."""
        return Position.decode(txn.get(_JOURNAL, db=self._tables["state"]))

    def open_journal(self, txn: Transaction) -> tuple[JournalFile, Position] | None:
        """The journal that holds the tables as this transaction sees them, and how far; None if there is none."""
        position = self.journal_position(txn)
        if not position.end or position.transaction != txn.id():
            return None
        file = JournalFile.open(self._journal, write=False)
        if file is not None and not file.fits(position):
            file.close()
            file = None
        return None if file is None else (file, position)

    def keep_journal(self) -> None:
        """See to it that there is a journal, whole at its end and not much longer than it needs to be.

        Raises: StoreFull: there is none now.
        """
        with self.read() as txn:
            opened = self.open_journal(txn)
        if opened is not None:
            file, position = opened
            with file:
                # What came after the last sync may not have survived a power cut that the tables have survived.
                if not _is_too_long(position) and file.is_whole(position.synced, position.end):
                    return
        self.renew_journal()

    def renew_journal(self) -> None:
        """Begin the journal anew with the tables as they are; does nothing where another process is about it.

        The writer's lock is held only while what was committed meanwhile is added. Raises: StoreFull.
        """
        beside = self._journal.with_name("journal.new")
        fd = files.lock_file(beside, create=True)
        if fd is None:
            return
        try:
            with JournalFile(fd) as file, translated(self._folder):
                self._renew(file, beside)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    def _renew(self, file: JournalFile, beside: Path) -> None:
        generation = new_generation()
        with self.read() as txn:
            base = self._dump(txn, file, file.begin(generation))
            seen, before = txn.id(), self.journal_position(txn)
        file.sync()
        with self._begin(write=True) as txn:
            end, now = base, self.journal_position(txn)
            if txn.id() - 1 != seen:
                old = JournalFile.open(self._journal, write=False)
                if (
                    old is not None
                    and (before.transaction, now.transaction) == (seen, txn.id() - 1)
                    and before.end
                    and before.generation == now.generation
                    and old.fits(now)
                ):
                    end = file.copy(old, before.end, now.end, base)
                else:
                    end = base = self._dump(txn, file, file.begin(generation))
                if old is not None:
                    old.close()
                file.sync()
            beside.replace(self._journal)
            files.fsync_directory(self._journal.parent)
            position = Position(txn.id(), end, end, base, generation)
            txn.put(_JOURNAL, position.encode(), db=self._tables["state"])

    def _dump(self, txn: Transaction, file: JournalFile, end: int) -> int:
        """Write all rows as records behind one another; returns where they end."""
        changes: list[Change] = []
        size = 0
        for change in self.journaled(txn):
            changes.append(change)
            size += len(change.key) + len(change.value or b"")
            if size >= _DUMP:
                end = file.append(end, txn.id(), changes)
                changes, size = [], 0
        return file.append(end, txn.id(), changes)

    def sync_journal(self) -> None:
        """Make durable what the journal holds, and begin it anew where it has grown too long.

        Where that fails, the next process that opens the store to write looks at it again.
        """
        with self.read() as txn:
            opened = self.open_journal(txn)
        if opened is None:
            return
        file, position = opened
        with file, suppress(OSError, StoreFull):
            file.sync()
            self._synced = position
            if _is_too_long(position):
                self.renew_journal()

    def _note(self, table: str, key: bytes, value: bytes | None) -> None:
        self._is_changed = True
        if _is_journaled(table, key):
            self._changes.append(Change(table, key, value))

    def _journal_changes(self, txn: Transaction) -> Position:
        """Append what this transaction has changed, and write down how far the journal is right now."""
        before = self.journal_position(txn)
        end = 0
        if before.transaction == txn.id() - 1 and before.end:
            # The tables are what counts: without room for the journal they go on alone.
            with suppress(OSError, StoreFull):
                end = self._append(txn, before)
        synced = before.synced
        if before.generation == self._synced.generation:
            synced = max(synced, self._synced.end)
        position = replace(before, transaction=txn.id(), end=end, synced=synced)
        txn.put(_JOURNAL, position.encode(), db=self._tables["state"])
        return position

    def _append(self, txn: Transaction, before: Position) -> int:
        if not self._changes:
            return before.end
        file = JournalFile.open(self._journal, write=True)
        if file is None:
            return 0
        with file:
            if not file.fits(before):
                return 0
            return file.append(before.end, txn.id(), self._changes)


def _check_same(path: Path, inode: int) -> None:
    """Who waits for LMDB's lock while a repair changes the tables may have opened the old ones."""
    if path.stat().st_ino != inode:
        raise Busy("the tables of the store were being repaired; open it again")


def _is_journaled(table: str, key: bytes) -> bool:
    return table not in DERIVED and not (table == "state" and key in _DERIVED_STATE)


def _is_too_long(position: Position) -> bool:
    return position.end > _GROWTH * position.base + _SLACK


class _NoRows:
    """The cursor of a table that is not there yet: it finds nothing."""

    def set_range(self, key: bytes) -> bool:
        del key
        return False

    def first(self) -> bool:
        return False

    last = first

    def getmulti(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        del keys
        return []

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(())
