"""Who is at work, as the store remembers it: what a session has reserved, and what it relies on.

    sessions:  session number (u64, big endian) -> SessionRecord, JSON

A session has a lock file that it holds while it lives, taken before the record is committed; the kernel lets go when
the process dies, and whoever then takes the lock ends the session: what it had reserved is punched and freed. Garbage
collection keeps every record that a living session holds, and frees no chunk that was findable when a session began
that may hold chunk numbers.

Source: docs/format.md, docs/durability.md.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from layerstore.digest import parse_digest
from layerstore.errors import CorruptStore, LayerstoreError
from layerstore.store import files
from layerstore.store.chunkfile import Extent
from layerstore.store.database import pack_u64, unpack_u64

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from layerstore.digest import Digest
    from layerstore.store.chunkfile import ChunkFile
    from layerstore.store.database import Database, Transaction
    from layerstore.store.layout import Layout

__all__ = [
    "Hold",
    "SessionRecord",
    "SessionTable",
    "end_session",
    "reclaim_dead_sessions",
    "register_session",
]

_NEXT_SESSION = b"next_session"


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What a session has and needs.

    Attributes:
        extents: of the chunk file, reserved: start, end, and up to where they hold committed chunks.
        holds: digests of manifests, indexes, blobs and layers whose records must stay.
        holds_all: every record must stay.
        numbers_from: chunks of this number and above may be its own, and it may know the number of any other that could
            be found when it began; 0 for a session that looks up no chunks.
    """

    extents: tuple[tuple[int, int, int], ...] = ()
    holds: frozenset[Digest] = field(default_factory=frozenset)
    holds_all: bool = False
    numbers_from: int = 0


class SessionTable:
    """The table `sessions`. Thread safety: stateless; transactions are the caller's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, txn: Transaction, session: int) -> SessionRecord | None:
        """A record, or None."""
        data = self._database.get(txn, "sessions", pack_u64(session))
        return None if data is None else _load(data)

    def get(self, txn: Transaction, session: int) -> SessionRecord:
        """The record of a session that lives. Raises: CorruptStore: somebody has taken it away."""
        record = self.find(txn, session)
        if record is None:
            raise CorruptStore(f"the record of session {session}, which lives, is gone")
        return record

    def put(self, txn: Transaction, session: int, record: SessionRecord) -> None:
        """Set a record."""
        document: dict[str, object] = {"extents": record.extents}
        document |= {"holds": sorted(record.holds), "holds_all": record.holds_all}
        document["numbers_from"] = record.numbers_from
        data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
        self._database.put(txn, "sessions", pack_u64(session), data)

    def delete(self, txn: Transaction, session: int) -> None:
        """Forget a session."""
        self._database.delete(txn, "sessions", pack_u64(session))

    def items(self, txn: Transaction) -> Iterator[tuple[int, SessionRecord]]:
        """All sessions, oldest first. Raises: CorruptStore."""
        for key, data in self._database.items(txn, "sessions"):
            yield unpack_u64(key), _load(data)

    def hold(self, txn: Transaction, session: int, digests: Iterable[Digest]) -> None:
        """Add to what a session holds; where nothing is new, nothing is written."""
        record = self.get(txn, session)
        holds = record.holds.union(digests)
        if holds != record.holds:
            self.put(txn, session, replace(record, holds=holds))

    def next_session(self, txn: Transaction) -> int:
        """The number that the next session will have: all that began before have a smaller one."""
        data = self._database.get(txn, "state", _NEXT_SESSION)
        return unpack_u64(data) if data else 1

    def take_number(self, txn: Transaction) -> int:
        """A number that no committed transaction has given."""
        session = self.next_session(txn)
        self._database.put(txn, "state", _NEXT_SESSION, pack_u64(session + 1))
        return session


class Hold:
    """A session that only keeps records from being collected, until `close` or the end of the process.

    Thread safety: all methods, from any thread.
    """

    def __init__(
        self,
        store: tuple[Layout, Database] | None,
        digests: Iterable[Digest] = (),
        *,
        everything: bool = False,
        abandoned: list[int],
    ) -> None:
        """Hold these records of a store, or all; durable when this returns. What was gone before stays gone.

        Without a store nothing is held. `abandoned` are holds of the same store whose records can go.

        Raises: StoreFull.
        """
        self._store, self._abandoned = store, abandoned
        if store is not None:
            record = SessionRecord(holds=frozenset(digests), holds_all=everything)
            self._id, self._lock = register_session(*store, record, abandoned)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go. A second call does nothing."""
        store, self._store = self._store, None
        if store is None or not store[1].is_ours:
            return
        layout, database = store
        try:
            # Where that fails (a full disk), the next open reclaims it as it would a dead session's.
            with suppress(OSError, LayerstoreError):
                with database.write() as txn:
                    SessionTable(database).delete(txn, self._id)
                layout.session_lock(self._id).unlink(missing_ok=True)
        finally:
            os.close(self._lock)

    def abandon(self) -> None:
        """Let go without a transaction, so that it can happen at any moment; the record goes with the next hold."""
        store, self._store = self._store, None
        if store is not None and store[1].is_ours:
            os.close(self._lock)
            self._abandoned.append(self._id)


def register_session(
    layout: Layout, database: Database, record: SessionRecord, ended: list[int] | None = None
) -> tuple[int, int]:
    """Begin a session: its number, and the descriptor that holds its lock. Both are there when this returns.

    Sessions in the list `ended`, which had no extents, are forgotten with it, and leave the list.

    Raises: StoreFull.
    """
    table = SessionTable(database)
    gone = [] if ended is None else ended[:]
    while True:
        lock = None
        try:
            with database.write() as txn:
                session = table.take_number(txn)
                path = layout.session_lock(session)
                lock = files.lock_file(path, create=True)
                if lock is not None:
                    table.put(txn, session, record)
                    for other in gone:
                        table.delete(txn, other)
        except BaseException:
            if lock is not None:
                path.unlink(missing_ok=True)
                os.close(lock)
            raise
        if lock is None:  # who cleans up may hold a lock file for a moment
            continue
        for other in gone:
            layout.session_lock(other).unlink(missing_ok=True)
        if ended is not None:
            del ended[: len(gone)]
        return session, lock


def reclaim_dead_sessions(layout: Layout, database: Database, chunkfile: ChunkFile) -> int:
    """Take back what sessions had reserved that died without `close`; returns how many there were.

    Whoever holds a session's lock file owns its extents, so two processes cannot reclaim the same one, and nobody
    can punch a range that has a new owner.

    Raises: StoreFull.
    """
    with database.read() as txn:
        sessions = {unpack_u64(key) for key, _ in database.items(txn, "sessions")}
    reclaimed = 0
    for session in sorted(sessions | layout.locked_sessions()):
        with files.no_room("take back what a dead session had"):
            path = layout.session_lock(session)
            lock = files.lock_file(path, create=True)
            if lock is None:
                continue
            try:
                reclaimed += end_session(database, chunkfile, session)
                path.unlink(missing_ok=True)
            finally:
                os.close(lock)
    return reclaimed


def end_session(database: Database, chunkfile: ChunkFile, session: int) -> bool:
    """End a session whose lock we hold: what it did not commit is punched, then free; whether it had begun.

    What it committed is told by its record, not by the session's memory: an exception (a signal, MemoryError) may
    have come between LMDB's commit and the session's note of it.
    """
    table = SessionTable(database)
    with database.read() as txn:
        record = table.find(txn, session)
    if record is None:
        return False
    tails = [Extent(committed, end) for _, end, committed in record.extents]
    for tail in tails:
        chunkfile.punch(tail)
    with database.write() as txn:
        table.delete(txn, session)
        for tail in tails:
            chunkfile.release(txn, tail)
    return True


def _load(data: bytes) -> SessionRecord:
    try:
        document = json.loads(data)
        return SessionRecord(
            tuple((int(start), int(end), int(used)) for start, end, used in document["extents"]),
            # Sessions of before there was garbage collection say nothing of what they hold.
            frozenset(parse_digest(digest) for digest in document.get("holds", ())),
            bool(document.get("holds_all", False)),
            int(document.get("numbers_from", 1)),
        )
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise CorruptStore(f"the record of a session is damaged: {error}") from error
