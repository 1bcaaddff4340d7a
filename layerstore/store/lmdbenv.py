"""LMDB's environment as the store needs it: a map that fits, a lock file that has its blocks, errors that are ours.

Source: LMDB's lmdb.h; mdb.c, "MDB_txninfo", "MDB_reader" and `mdb_page_flush`.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lmdb

from layerstore.errors import (
    Busy,
    CorruptStore,
    FailedPrecondition,
    LayerstoreError,
    StoreFull,
    Unsupported,
)
from layerstore.store import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["open_environment", "open_lmdb", "translated"]

# Address space, not disk: the file grows as it is used. 1 TiB indexes more than 10^9 chunks.
_MAP_SIZE = 1 << 40
_LEAST_MAP = 64 << 20
_MAX_READERS = 1024
_LOCK_TABLE = (
    17 * 4096
)  # bytes: what LMDB needs for so many, in whole pages (mdb.c, MDB_txninfo and MDB_reader)


def open_environment(folder: Path, tables: int, *, read_only: bool) -> Any:
    """LMDB's environment of a folder, with room for so many tables; who writes has the blocks of its lock file.

    Raises: lmdb.Error, OSError: call it in a block of `translated`.
    """
    if not read_only:
        _allocate_lock_table(folder / "lock.mdb")
    while True:
        try:
            return open_lmdb(folder, tables, read_only=read_only)
        except lmdb.Error as error:
            # A filesystem on a network or in FUSE may be interrupted, and LMDB does not try again.
            if _code(error) != errno.EINTR:
                raise


def open_lmdb(folder: Path, tables: int, *, read_only: bool) -> Any:
    """The same, once, and with the lock file as it is."""
    return lmdb.open(
        str(folder),
        map_size=_map_size(),
        max_dbs=tables,
        max_readers=_MAX_READERS,
        mode=0o600,
        readonly=read_only,
        readahead=False,
    )


def _map_size() -> int:
    """A map that fits into what this process may have of address space; LMDB makes it as large as the tables are."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= 2 * _MAP_SIZE:
        return _MAP_SIZE
    return max(limit // 4, _LEAST_MAP) // mmap.PAGESIZE * mmap.PAGESIZE


def _allocate_lock_table(path: Path) -> None:
    """Have the blocks of LMDB's lock file before it is mapped.

    LMDB writes to it through the map, in each transaction; where the filesystem then has no room for a page that it
    did not have before, or for the copy of one, the process ends (SIGBUS). Nobody is kept from a full store by this.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not os.fstat(fd).st_size:
            files.write_in_place(fd)
        files.allocate(fd, _LOCK_TABLE)
    finally:
        os.close(fd)


@contextmanager
def translated(folder: Path) -> Iterator[None]:
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
    except lmdb.MapResizedError as error:
        raise FailedPrecondition(
            "another process has made the store's tables longer than this one has mapped (its address space is "
            "limited); close the store and open it again"
        ) from error
    except lmdb.ReadersFullError as error:
        raise Busy("too many readers of this store at once; close some") from error
    except lmdb.PanicError as error:
        raise FailedPrecondition(
            f"writing the store's tables failed before ({error}); close the store and open it again"
        ) from error
    except (
        lmdb.CorruptedError,
        lmdb.PageNotFoundError,
        lmdb.InvalidError,
        lmdb.BadTxnError,  # what a transaction answers that has met damage before
        lmdb.BadDbiError,
        lmdb.NotFoundError,  # a whole table
        lmdb.IncompatibleError,  # a table of another kind than all of ours
    ) as error:
        raise CorruptStore(f"the store's tables are damaged: {error}") from error
    except lmdb.VersionMismatchError as error:
        raise Unsupported(f"the store's tables need another LMDB: {error}") from error
    except lmdb.Error as error:
        raise _system_error(error, folder) from error


def _system_error(error: lmdb.Error, folder: Path) -> Exception:
    """What the operating system said: the binding gives its words only, at the end of the message.

    LMDB calls a write that a full disk cut short EIO (`mdb_page_flush`), so that the disk has to be asked.
    """
    text, code = str(error), _code(error)
    if code is None:
        return error
    if code in files.NO_ROOM or (
        code == errno.EIO and (files.is_full(folder) or files.is_at_limit(folder / "data.mdb"))
    ):
        return StoreFull(f"no room to write the store's tables: {text}; free some space and repeat")
    return OSError(code, f"the store's tables: {text}")


def _code(error: lmdb.Error) -> int | None:
    """The errno behind an error of LMDB, if there is one."""
    text = str(error)
    return next((code for code in errno.errorcode if text.endswith(os.strerror(code))), None)
