"""Where everything lies below the store's root, and which versions of it this code may touch.

    ROOT/
      FORMAT        version and feature flags (text, JSON)
      meta/         LMDB: data.mdb, lock.mdb
      journal       a second copy of the tables
      chunks        the chunk address space, one sparse file that grows by segments
      tmp/          session locks, spooled input; anything here that nobody holds may be deleted

Feature flags work as in ext4: an unknown `incompatible` flag forbids opening, an unknown `read_only_compatible` flag
forbids writing, `compatible` flags are only information.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerstore import kernels
from layerstore.errors import CorruptStore, FailedPrecondition, NotFound, Unsupported
from layerstore.store import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["BLOB_RECIPES", "BLOCK", "GARBAGE_COLLECTED", "SEGMENT", "VERSION", "Layout"]

VERSION = 1
SEGMENT = 64 << 20  # the chunk file grows by this; EROFS needs the file's end on a 4 KiB border
BLOCK = 4096  # what the filesystem can free, and what EROFS reads

_MAGIC = "layerstore"
_MAX_FORMAT = 64 << 10  # bytes
_FIRST_INCOMPATIBLE = frozenset(("cdc-gear-1", "frames-zstd", "parts-1"))  # of an empty store
BLOB_RECIPES = "blob-recipes-1"  # there are, or were, blobs that are made again from a recipe
_INCOMPATIBLE = _FIRST_INCOMPATIBLE | {BLOB_RECIPES}
GARBAGE_COLLECTED = "gc-1"  # writers hold what they rely on, as docs/durability.md says
_READ_ONLY_COMPATIBLE = frozenset((GARBAGE_COLLECTED,))
_CHECKSUM = "blake3"  # of the other members; a file that somebody wrote by hand may be without


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store."""

    root: Path

    @property
    def format(self) -> Path:
        """The version file."""
        return self.root / "FORMAT"

    @property
    def meta(self) -> Path:
        """The LMDB folder."""
        return self.root / "meta"

    @property
    def chunks(self) -> Path:
        """The chunk file."""
        return self.root / "chunks"

    @property
    def journal(self) -> Path:
        """The second copy of the tables."""
        return self.root / "journal"

    @property
    def tmp(self) -> Path:
        """Session locks and spooled input."""
        return self.root / "tmp"

    def session_lock(self, session: int) -> Path:
        """The file whose lock says that this session lives."""
        return self.tmp / f"session-{session}.lock"

    def locked_sessions(self) -> set[int]:
        """The sessions that have a lock file, held or left behind."""
        names = (path.name for path in self.tmp.glob("session-*.lock"))
        numbers = (name.removeprefix("session-").removesuffix(".lock") for name in names)
        return {int(number) for number in numbers if number.isdigit()}

    @contextmanager
    def creating(self) -> Iterator[bool]:
        """Make the folders and files of an empty store, and FORMAT when the block ends.

        FORMAT comes last: without it there is no store, and what a crash has left of a first attempt is made anew. Gives
        whether there is something to make: one process makes a store, the others wait for it.

        Raises:
            FailedPrecondition: the folder holds something else.
            CorruptStore: FORMAT is missing of a store that holds chunks.
        """
        absent = [path for path in (self.root, *self.root.parents) if not path.exists()]
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in absent:
            files.fsync_directory(path.parent)
        self._check_owner()
        with files.locked_directory(self.root):
            if self.format.exists():
                yield False
                return
            self._check_unused()
            self.root.chmod(0o700)  # it may have been there before
            for folder in (self.meta, self.tmp):
                folder.mkdir(mode=0o700, exist_ok=True)
            for path in (*self.meta.iterdir(), *self.root.glob("journal*")):
                path.unlink()  # tables that were half made
            self.chunks.touch(mode=0o600)
            files.fsync_directory(self.root)
            yield True
            self._write_format(_FIRST_INCOMPATIBLE)

    def restore_format(self) -> bool:
        """Write FORMAT again where it is damaged, or missing of a store; whether it was.

        It names every feature that this version writes: which of them the store has, nothing else says.

        Raises: NotFound: no store is here. Unsupported: FORMAT is whole, and of a version that this code does not know.
        """
        try:
            self.check()
        except CorruptStore:
            pass
        except NotFound:
            if not (self.journal.exists() and self.chunks.exists()):
                raise
        else:
            return False
        with files.locked_directory(self.root):
            self._write_format(_INCOMPATIBLE)
        return True

    def _write_format(self, incompatible: frozenset[str]) -> None:
        document = {
            "magic": _MAGIC,
            "version": VERSION,
            "incompatible": sorted(incompatible),
            "read_only_compatible": sorted(_READ_ONLY_COMPATIBLE),
            "compatible": [],
        }
        self._replace_format(document)

    def _replace_format(self, document: dict[str, object]) -> None:
        whole = document | {_CHECKSUM: _checksum(document)}
        files.replace_file(self.format, (json.dumps(whole, indent=2) + "\n").encode())

    def _check_unused(self) -> None:
        ours = {path.name for path in (self.meta, self.chunks, self.tmp)}
        for path in sorted(self.root.iterdir()):
            if path.name not in ours and not path.name.startswith((".FORMAT.", "journal")):
                raise FailedPrecondition(
                    f"{self.root} is no store and not empty ({path.name!r}); give an empty folder"
                )
        with suppress(FileNotFoundError):
            if self.chunks.lstat().st_size:
                raise CorruptStore(
                    f"{self.format} is missing, but there are chunks; restore it "
                    "(docs/format.md says what it holds)"
                )

    def add_read_only_compatible(self, feature: str) -> None:
        """Say of an older store that from here on only those may write to it that know a feature. Durable."""
        self._add("read_only_compatible", feature)

    def add_incompatible(self, feature: str) -> None:
        """Say that from here on only those may open the store that know a feature. Durable."""
        self._add("incompatible", feature)

    def _add(self, kind: str, feature: str) -> None:
        if feature in self._features(self._read_format(), kind):
            return
        with files.locked_directory(self.root):  # another process may add another one
            document = self._read_format()
            document[kind] = sorted({*self._features(document, kind), feature})
            self._replace_format(document)

    def check(self) -> frozenset[str]:
        """Read FORMAT; returns the features that this code does not know and that forbid it to write.

        Raises:
            NotFound: no store is here.
            FailedPrecondition: somebody else could lead whoever opens it to other files.
            CorruptStore: FORMAT is not what `create` writes.
            Unsupported: a version or an incompatible feature that this code does not know.
        """
        if self.root.exists():
            self._check_owner()
            self._check_writers()
        document = self._read_format()
        if document.get("magic") != _MAGIC:
            raise CorruptStore(f"{self.format} is not a layerstore FORMAT file")
        version = document.get("version")
        if type(version) is not int:
            raise CorruptStore(f"{self.format} is damaged: its version is no number")
        # What comes behind the version is the version's own: only a known one is read.
        if version != VERSION:
            raise Unsupported(
                f"{self.root} has format {version}, and this layerstore knows only {VERSION}; "
                "upgrade it"
            )
        unknown = self._features(document, "incompatible") - _INCOMPATIBLE
        if unknown:
            raise Unsupported(
                f"{self.root} needs {_listed(unknown)}, which this layerstore does not know; "
                "upgrade it"
            )
        self._features(document, "compatible")
        return self._features(document, "read_only_compatible") - _READ_ONLY_COMPATIBLE

    def _check_owner(self) -> None:
        """The folder, and a symbolic link that leads to it, are of this user, or of root.

        LMDB trusts its map, and a store leads to files by their names: another owner could have anything be written to.
        """
        for status in (self.root.lstat(), self.root.stat()):
            if status.st_uid not in (os.geteuid(), 0):
                raise FailedPrecondition(
                    f"{self.root} belongs to user {status.st_uid}, who could change what it leads to; "
                    "use it as that user, or give it to this one"
                )

    def _check_writers(self) -> None:
        """Nobody else may write into the folder, and nothing in it is a symbolic link."""
        if self.root.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise FailedPrecondition(
                f"other users may write to {self.root}; `chmod 700` it if it is to be trusted"
            )
        for folder in (self.root, self.meta):
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_symlink() and entry.path != str(self.format):
                        raise FailedPrecondition(
                            f"{entry.path} is a symbolic link; a store's files are its own"
                        )

    def _read_format(self) -> dict[str, object]:
        try:
            # Neither a symbolic link is followed, nor a pipe waited for.
            fd = os.open(self.format, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"no store at {self.root}; `layerstore load` makes one") from None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):
                raise
            raise CorruptStore(f"{self.format} is no plain file") from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CorruptStore(f"{self.format} is no plain file")
            text = files.pread_exactly(fd, _MAX_FORMAT + 1, 0)
        finally:
            os.close(fd)
        if len(text) > _MAX_FORMAT:
            raise CorruptStore(f"{self.format} is damaged: longer than {_MAX_FORMAT} bytes")
        try:
            document = json.loads(text)
            checksum = _checksum(document) if isinstance(document, dict) else ""
        except (ValueError, RecursionError) as error:
            raise CorruptStore(f"{self.format} is damaged: {error}") from error
        if not isinstance(document, dict):
            raise CorruptStore(f"{self.format} is damaged: it is no object")
        if document.get(_CHECKSUM, checksum) != checksum:
            raise CorruptStore(
                f"{self.format} is not what its checksum says; run `layerstore repair`"
            )
        return document

    def _features(self, document: dict[str, object], kind: str) -> frozenset[str]:
        names = document.get(kind)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CorruptStore(f"{self.format} is damaged: `{kind}` is no list of names")
        return frozenset(names)


def _checksum(document: dict[str, object]) -> str:
    """BLAKE3 of all members but the checksum, as docs/format.md says how they are written."""
    members = {name: value for name, value in document.items() if name != _CHECKSUM}
    text = json.dumps(members, sort_keys=True, separators=(",", ":"))
    return kernels.blake3(text.encode()).hex()


def _listed(features: frozenset[str]) -> str:
    return f"feature{'s' * (len(features) > 1)} {', '.join(sorted(features))}"
