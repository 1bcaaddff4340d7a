"""`Store`: opens a root, and hands out sessions, readers and snapshots of the catalog."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Self
from weakref import WeakSet

from layerstore.errors import CorruptStore, FailedPrecondition, StoreFull, Unsupported
from layerstore.limits import Limits
from layerstore.store import files
from layerstore.store.catalog import Catalog
from layerstore.store.chunkfile import ChunkFile
from layerstore.store.database import Database
from layerstore.store.index import ChunkIndex
from layerstore.store.layout import Layout
from layerstore.store.reader import ChunkReader
from layerstore.store.session import WriteSession
from layerstore.store.sessionstate import Hold, reclaim_dead_sessions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from layerstore.digest import Digest
    from layerstore.store.database import Transaction

__all__ = ["Store"]


class Store:
    """A store on disk. Close it, or use it as a context manager.

    Several processes may read and write one store at once. A process that forks opens it again in the child.
    Thread safety: all methods, from any thread; a session belongs to one thread at a time.
    """

    def __init__(
        self,
        root: Path,
        *,
        create: bool,
        read_only: bool = False,
        limits: Limits = Limits(),  # noqa: B008  # frozen
    ) -> None:
        """Open the store at `root`, made first if `create` and nothing is there.

        Raises:
            NotFound: no store is there, and it is not to be created.
            FailedPrecondition: the folder holds something else, or is on a filesystem that can only be read.
            Unsupported: it was made by a version with features that this one does not know.
            CorruptStore: FORMAT or the tables are damaged.
        """
        self.layout, self.limits = Layout(root), limits
        if create and not read_only and not self.layout.format.exists():
            _create(self.layout)
        self._unknown = self.layout.check()
        self.read_only = read_only or bool(self._unknown)
        self._holds = WeakSet[Hold]()
        self._abandoned: list[int] = []
        with ExitStack() as opened:
            try:
                self.database = Database.open(
                    self.layout.meta, self.layout.journal, read_only=self.read_only
                )
                opened.callback(self.database.close)
                self.chunkfile = ChunkFile(
                    self.layout.chunks, self.database, read_only=self.read_only
                )
                opened.callback(self.chunkfile.close)
            except FileNotFoundError as error:
                raise CorruptStore(f"{error.filename} of the store is missing") from error
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
                raise FailedPrecondition(
                    f"{root} is on a filesystem that can only be read; open it for reading only"
                ) from error
            self.catalog = Catalog(self.database)
            self.index = ChunkIndex(self.database)
            self.reader = ChunkReader(self.database, self.index, self.chunkfile)
            if not self.read_only:
                # Nobody is kept from a full store: what is not taken back now is found again later.
                with suppress(StoreFull):
                    reclaim_dead_sessions(self.layout, self.database, self.chunkfile)
            self._opened = opened.pop_all()

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
        """Close files, and let go of what is held; sessions must be closed before. A second call does nothing."""
        for hold in list(self._holds):
            hold.close()
        self._opened.close()

    def begin(self) -> WriteSession:
        """Begin a write session. Raises: as `need_write`."""
        self.need_write()
        return WriteSession(self.layout, self.database, self.index, self.catalog, self.limits)

    def hold(self, *digests: Digest, everything: bool = False) -> Hold:
        """Keep records from being collected: those that these digests of whatever kind lead to, or all.

        It ends with `close`, with the block that it is used for, with this store or the process. A reader that looks up
        a record after this can read all of it. Where nothing can be written (a full disk), nothing is held.
        """
        writable = None if self.read_only else (self.layout, self.database)
        try:
            hold = Hold(writable, digests, everything=everything, abandoned=self._abandoned)
        except StoreFull:
            hold = Hold(None, abandoned=self._abandoned)
        self._holds.add(hold)
        return hold

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A snapshot of the catalog. Keep it short."""
        with self.database.read() as txn:
            yield txn

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A change of the catalog alone (names), durable when the block ends. Raises: as `need_write`."""
        self.need_write()
        with self.database.write() as txn:
            yield txn

    def size_on_disk(self) -> int:
        """Bytes that all of the store's files take, as `du -sx` counts."""
        return sum(self.sizes_on_disk().values())

    def sizes_on_disk(self) -> dict[str, int]:
        """The same by the first name below the root; the root folder itself has the empty name.

        A file with several names counts where it is met first. What is mounted below the store is not its own.
        """
        top = os.lstat(self.layout.root)
        sizes, seen = {"": top.st_blocks * 512}, {top.st_ino}
        pending = [(str(self.layout.root), "")]
        while pending:
            folder, part = pending.pop()
            # What others delete meanwhile, and mounts whose server is dead, count nothing.
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        if status.st_dev != top.st_dev or status.st_ino in seen:
                            continue
                        seen.add(status.st_ino)
                        name = part or entry.name
                        sizes[name] = sizes.get(name, 0) + status.st_blocks * 512
                        if stat.S_ISDIR(status.st_mode):
                            pending.append((entry.path, name))
        return sizes

    def need_write(self) -> None:
        """Refuse what changes the store, where it can only be read.

        Raises:
            Unsupported: it has a feature that this version can read past, but would break by writing.
            FailedPrecondition: it was opened for reading.
        """
        if self._unknown:
            raise Unsupported(
                f"{self.layout.root} has {', '.join(sorted(self._unknown))}, which this layerstore "
                "does not know: it can read the store, but not write; upgrade it"
            )
        if self.read_only:
            raise FailedPrecondition(f"{self.layout.root} is open for reading only")


def _create(layout: Layout) -> None:
    """Make an empty store: its tables are durable before FORMAT says that there is one."""
    with files.no_room("make a store"), layout.creating() as is_new:
        if is_new:
            Database.open(layout.meta, layout.journal, read_only=False, create=True).close()
