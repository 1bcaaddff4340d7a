"""The tables made anew from the journal and the chunk file, when LMDB's file is lost or damaged.

    journal, record by record  ─>  tmp/rebuild/data.mdb: all rows that the journal holds
    places                     ─>  chunk IDs: each leads to the newest chunk of that ID
    size of the chunk file     ─>  state; nothing is free: blocks of nobody are found by the next `prune`
    data.mdb                   ─>  damaged/data.mdb-<time>, kept until somebody deletes it
    tmp/rebuild/data.mdb       ─>  meta/data.mdb

Until the last step nothing of the store has changed, and between the two renames there are no tables, which every other
call refuses. A record of a transaction that LMDB did not commit may be at the journal's end: it is as good as committed,
since the bytes that it speaks of were durable before it was written (invariants I1 to I3).

What follows from other tables is left out or made here: sessions (there are none while this works), the free list,
condemned chunks (their places are there, so that they are whole: they are findable again), contents of data images.

Source: docs/durability.md, "Repair"; LMDB 0.9's mdb.c, `mdb_env_excl_lock`, for who has the tables open.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from layerstore.errors import Busy, CorruptStore, Unsupported
from layerstore.store import files, lmdbfile
from layerstore.store.database import DERIVED, TABLES, Database, pack_u64
from layerstore.store.index import ChunkIndex
from layerstore.store.journal import Change, Gap, JournalFile, Position, read_journal
from layerstore.store.layout import SEGMENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layerstore.store.layout import Layout

__all__ = ["TablesReport", "rebuild_tables"]

_BATCH = 50_000  # rows in a transaction
_WINDOW = 1 << 20  # bytes of the old tables that are looked at in one go
_POSITION = 48  # bytes of a Position in the tables


@dataclass(frozen=True, slots=True)
class TablesReport:
    """What the tables were made of.

    Attributes:
        rows: changes of the journal that were applied.
        chunks: with a place.
        is_current: whether the journal has all that was committed, as far as the old tables can still say; None: they
            are gone, or say nothing.
        gaps: ranges of the journal that are no records, and are not just its end.
        kept: where the old tables, and a journal with gaps, lie now; None if there was nothing.
    """

    rows: int
    chunks: int
    is_current: bool | None
    gaps: tuple[tuple[int, int], ...]
    kept: Path | None


def rebuild_tables(layout: Layout, *, accept_loss: bool = False) -> TablesReport:
    """Make the tables anew. The store must not be open, here or elsewhere; whoever opens it meanwhile waits.

    With `accept_loss` also from a journal that is known to lack something.

    Raises:
        Busy, FailedPrecondition: somebody has the store open.
        CorruptStore: there is no journal, or it lacks something; nothing was changed.
        StoreFull: nothing was changed.
    """
    with _alone(layout):
        size, position = _last_position(layout)
        current = _is_current(layout, position, size)
        gaps = _gaps(layout, position if current else None)
        if (gaps or current is False) and not accept_loss:
            what = f"{len(gaps)} stretches of it are damaged" if gaps else "it ends before they do"
            raise CorruptStore(
                f"the journal may not hold all that the damaged tables did: {what}; "
                "`layerstore repair --accept-loss` makes the tables of what there is, and keeps the old ones"
            )
        work = layout.tmp / "rebuild"
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
        work.mkdir(mode=0o700, parents=True)
        with Database.building(work) as database:
            rows = _replay(layout, database)
            chunks = _derive(layout, database)
        kept = _swap(layout, work, keep_journal=bool(gaps))
        # LMDB writes down the last transaction there; who waits would take that of the old tables.
        Database.set_up_lock_table(layout.meta)
        return TablesReport(rows, chunks, current, gaps, kept)


@contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    """Have the tables to oneself. LMDB holds a lock on its lock file for as long as somebody has them open."""
    layout.meta.mkdir(mode=0o700, exist_ok=True)
    with Database.kept_closed(layout.meta), _lock_held(layout.meta / "lock.mdb"):
        yield


@contextmanager
def _lock_held(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise Busy(
                f"other processes have {path.parent.parent} open; end them, and repair its tables then"
            ) from error
        yield
    finally:
        # Not before: POSIX locks go with any descriptor of the file that is closed.
        os.close(fd)


def _last_position(layout: Layout) -> tuple[int, Position | None]:
    """The journal's size, and how far it went by the old tables. LMDB is not asked: it may not survive them.

    Raises: CorruptStore: there is no journal.
    """
    file = JournalFile.open(layout.journal, write=False)
    if file is None:
        raise CorruptStore(
            f"{layout.journal} is missing, the second copy of the tables: make a new store and load the images again"
        )
    with file:
        generation, size = file.generation(), file.size()
    found = [] if generation is None else _positions(layout.meta / "data.mdb", generation)
    return size, max(found, key=lambda position: position.transaction, default=None)


def _is_current(layout: Layout, position: Position | None, size: int) -> bool | None:
    """Whether the journal has what the old tables had; None where their last `Position` is lost with them.

    One that was given up (a full disk) has not, nor one that is shorter than it was.
    """
    if position is None:
        return None
    if not 0 < position.end <= size:
        return False
    newest = lmdbfile.newest_transaction(layout.meta / "data.mdb")
    return True if newest == position.transaction else None


def _positions(path: Path, generation: bytes) -> Iterator[Position]:
    """Every `Position` of a journal in the pages of the tables, those of earlier transactions among them."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        name, tail = b"journal", b""
        while data := file.read(_WINDOW):
            data = tail + data
            at = data.find(name)
            while at >= 0:
                value = data[at + len(name) :][:_POSITION]
                position = Position.decode(value if len(value) == _POSITION else None)
                if position.generation == generation:
                    yield position
                at = data.find(name, at + 1)
            tail = data[-len(name) - _POSITION + 1 :]


def _gaps(layout: Layout, position: Position | None) -> tuple[tuple[int, int], ...]:
    """Stretches of the journal that are no records, except behind what was committed."""
    gaps: list[tuple[int, int]] = []
    records = 0
    for part in read_journal(layout.journal):
        if isinstance(part, Gap):
            if position is None or part.start < position.end:
                gaps.append((part.start, part.end))
        else:
            records += 1
    if not records:
        raise CorruptStore(
            f"{layout.journal} has no record that is whole: make a new store and load the images again"
        )
    return tuple(gaps)


def _replay(layout: Layout, database: Database) -> int:
    """Apply the journal; returns how many changes it has."""
    changes = _changes(layout)
    count = 0
    while batch := list(islice(changes, _BATCH)):
        with database.write() as txn:
            for table, key, value in batch:
                if table not in TABLES or table in DERIVED:
                    raise Unsupported(
                        f"the journal has a table {table!r}, which this layerstore does not know; upgrade it"
                    )
                if value is None:
                    database.delete(txn, table, key)
                else:
                    database.put(txn, table, key, value)
        count += len(batch)
    return count


def _changes(layout: Layout) -> Iterator[Change]:
    for part in read_journal(layout.journal):
        if not isinstance(part, Gap):
            yield from part.changes


def _derive(layout: Layout, database: Database) -> int:
    """What follows from the rows of the journal and from the files; returns how many chunks have a place."""
    index = ChunkIndex(database)
    chunks, last, end = 0, 0, layout.chunks.stat().st_size
    with database.read() as before:
        for first, run in index.runs(before):
            numbers = range(first, first + len(run))
            rows = sorted(zip(map(bytes, run["id"]), map(pack_u64, numbers), strict=True))
            with database.write() as txn:
                # The newest of an ID is the one to be found, as after a load.
                database.cursor(txn, "chunks").putmulti(rows)
            chunks += len(run)
            last = first + len(run) - 1
            end = max(end, int((run["address"] + run["encoded"]).max()))
        count = index.count(before)
    end = -(-end // SEGMENT) * SEGMENT
    if layout.chunks.stat().st_size < end:
        os.truncate(layout.chunks, end)
    with database.write() as txn:
        database.put(txn, "state", b"file_size", pack_u64(end))
        database.put(
            txn, "state", b"next_session", pack_u64(max(layout.locked_sessions(), default=0) + 1)
        )
        if count < last:
            database.put(txn, "state", b"next_number", pack_u64(last + 1))
    return chunks


def _swap(layout: Layout, work: Path, *, keep_journal: bool) -> Path | None:
    """Put the new tables in the place of the old, which are kept."""
    old, folder = layout.meta / "data.mdb", layout.root / "damaged"
    name = f"data.mdb-{time.time_ns()}"
    kept = folder / name if old.exists() else None
    if kept is not None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if keep_journal:
            shutil.copyfile(layout.journal, folder / f"journal-{name}")
        old.rename(kept)
        files.fsync_directory(folder)
        files.fsync_directory(layout.root)
    (work / "data.mdb").replace(old)
    files.fsync_directory(layout.meta)
    shutil.rmtree(work, ignore_errors=True)
    # Notes of earlier runs speak of other tables.
    for path in layout.tmp.glob("verify-*.json"):
        path.unlink(missing_ok=True)
    return kept
