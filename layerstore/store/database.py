"""The LMDB environment: one for each store and process, its tables, its transactions, its errors as ours.

A write transaction is the only commit point of the store: LMDB syncs the data and then the root page, so a crash
leaves the state before or the state after. Readers never wait and never block a writer.

Source: LMDB's lmdb.h ("Caveats": one environment for a file in a process; no use across fork).
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lmdb

from layerstore.errors import Busy, CorruptStore, LayerstoreError, StoreFull, Unsupported
from layerstore.store import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["TABLES", "Database", "Transaction"]

Transaction = Any  # lmdb.Transaction: the package has no types

# name -> what it maps; keys and values are described in docs/format.md
TABLES = ("state", "chunks", "places", "layers", "blobs", "images", "refs", "free", "sessions")

# Address space, not disk: the file grows as it is used. 1 TiB indexes more than 10^9 chunks.
_MAP_SIZE = 1 << 40
_MAX_READERS = 1024

_open: dict[tuple[int, int], Database] = {}
_open_lock = threading.Lock()


class Database:
    """The tables of one store. `Database.open` gives the process's one object for a folder; `close` counts.

    Thread safety: all methods, from any thread; one write transaction at a time, across processes.
    """

    def __init__(self, folder: Path, key: tuple[int, int], *, read_only: bool) -> None:
        self._key, self._users, self._pid = key, 0, os.getpid()
        with _translated():
            self._env = lmdb.open(
                str(folder),
                map_size=_MAP_SIZE,
                max_dbs=len(TABLES),
                max_readers=_MAX_READERS,
                mode=0o600,
                readonly=read_only,
                readahead=False,
            )
            try:
                self._env.reader_check()
                self.tables = {
                    name: self._env.open_db(name.encode(), create=not read_only) for name in TABLES
                }
            except BaseException:
                self._env.close()
                raise

    @staticmethod
    def open(folder: Path, *, read_only: bool) -> Database:
        """Open a folder's database, or share it where this process has it open already.

        A database that is shared is as writable as its first user wanted it.
        """
        status = folder.stat()
        key = (status.st_dev, status.st_ino)
        with _open_lock:
            database = _open.get(key)
            if database is None or not database.is_ours:
                database = _open[key] = Database(folder, key, read_only=read_only)
                files.fsync_directory(folder)
            database._users += 1
            return database

    @property
    def is_ours(self) -> bool:
        """Whether this process opened it: LMDB does not survive a fork."""
        return self._pid == os.getpid()

    def close(self) -> None:
        """Let go; the last user closes the environment."""
        with _open_lock:
            self._users -= 1
            if self._users == 0:
                _open.pop(self._key, None)
                self._env.close()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A snapshot of all tables. Keep it short: what a reader can see is not reused."""
        with _translated(), self._env.begin() as txn:
            yield txn

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """The one write transaction: durable when the block ends, undone when it raises."""
        with _translated(), self._env.begin(write=True) as txn:
            yield txn

    def cursor(self, txn: Transaction, table: str) -> Any:
        """A cursor on a table."""
        return txn.cursor(self.tables[table])

    def get(self, txn: Transaction, table: str, key: bytes) -> bytes | None:
        """A value, or None."""
        value: bytes | None = txn.get(key, db=self.tables[table])
        return value

    def put(self, txn: Transaction, table: str, key: bytes, value: bytes) -> None:
        """Set a value, whether or not the key has one."""
        txn.put(key, value, db=self.tables[table])

    def delete(self, txn: Transaction, table: str, key: bytes) -> bool:
        """Remove a key; whether it was there."""
        return bool(txn.delete(key, db=self.tables[table]))

    def items(self, txn: Transaction, table: str) -> Iterator[tuple[bytes, bytes]]:
        """All of a table in the order of its keys."""
        yield from self.cursor(txn, table)

    def used_bytes(self) -> int:
        """Bytes of the pages in use."""
        with self.read() as txn:
            pages = sum(
                stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
                for stat in (txn.stat(db) for db in self.tables.values())
            )
        return int(pages) * int(self._env.stat()["psize"])


@contextmanager
def _translated() -> Iterator[None]:
    """LMDB's errors as ours."""
    try:
        with files.no_room("write the store's tables"):
            yield
    except LayerstoreError:
        raise
    except (lmdb.MapFullError, lmdb.DiskError) as error:
        raise StoreFull(
            f"no room to write the store's tables: {error}; free some space and repeat"
        ) from error
    except lmdb.ReadersFullError as error:
        raise Busy("too many readers of this store at once; close some") from error
    except (
        lmdb.CorruptedError,
        lmdb.PageNotFoundError,
        lmdb.PanicError,
        lmdb.InvalidError,
    ) as error:
        raise CorruptStore(f"the store's tables are damaged: {error}") from error
    except (lmdb.VersionMismatchError, lmdb.IncompatibleError) as error:
        raise Unsupported(f"the store's tables need another LMDB: {error}") from error
    except lmdb.Error as error:
        text = str(error)
        if "No space left" in text or "quota" in text:
            raise StoreFull(
                f"no room to write the store's tables: {text}; free some space and repeat"
            ) from error
        raise
