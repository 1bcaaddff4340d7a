"""Where everything lies below the store's root, and which versions of it this code may touch.

    ROOT/
      FORMAT        version and feature flags (text, JSON)
      meta/         LMDB: data.mdb, lock.mdb
      chunks        the chunk address space, one sparse file that grows by segments
      tmp/          session locks, spooled input; anything here that nobody holds may be deleted

Feature flags work as in ext4: an unknown `incompatible` flag forbids opening, an unknown `read_only_compatible` flag
forbids writing, `compatible` flags are only information.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerstore.errors import CorruptStore, FailedPrecondition, NotFound, Unsupported
from layerstore.store import files

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BLOCK", "SEGMENT", "VERSION", "Layout"]

VERSION = 1
SEGMENT = 64 << 20  # the chunk file grows by this; EROFS needs the file's end on a 4 KiB border
BLOCK = 4096  # what the filesystem can free, and what EROFS reads

_MAGIC = "layerstore"
_INCOMPATIBLE = frozenset(("cdc-gear-1", "frames-zstd", "parts-1"))
_READ_ONLY_COMPATIBLE: frozenset[str] = frozenset()


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

    def create(self) -> None:
        """Make what is missing of an empty store; FORMAT comes last, so that half a store is no store.

        Raises: FailedPrecondition: the folder holds something else.
        """
        absent = [path for path in (self.root, *self.root.parents) if not path.exists()]
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in absent:
            files.fsync_directory(path.parent)
        ours = {path.name for path in (self.meta, self.chunks, self.tmp)}
        strangers = sorted(
            path.name
            for path in self.root.iterdir()
            if path.name not in ours and not path.name.startswith(".FORMAT.")
        )
        if strangers and "FORMAT" not in strangers:
            raise FailedPrecondition(
                f"{self.root} is no store and not empty ({strangers[0]!r}); give an empty folder"
            )
        for folder in (self.meta, self.tmp):
            folder.mkdir(mode=0o700, exist_ok=True)
        if not self.chunks.exists():
            self.chunks.touch(mode=0o600)
        files.fsync_directory(self.root)
        document = {
            "magic": _MAGIC,
            "version": VERSION,
            "incompatible": sorted(_INCOMPATIBLE),
            "read_only_compatible": sorted(_READ_ONLY_COMPATIBLE),
            "compatible": [],
        }
        files.replace_file(self.format, (json.dumps(document, indent=2) + "\n").encode())

    def check(self) -> bool:
        """Read FORMAT; returns whether this code may write.

        Raises:
            NotFound: no store is here.
            CorruptStore: FORMAT is not what `create` writes.
            Unsupported: a version or an incompatible feature that this code does not know.
        """
        try:
            text = self.format.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"no store at {self.root}; `layerstore load` makes one") from None
        try:
            document = json.loads(text)
            magic, version = document["magic"], int(document["version"])
            incompatible = set(document["incompatible"])
            read_only = set(document["read_only_compatible"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptStore(f"{self.format} is damaged: {error}") from error
        if magic != _MAGIC:
            raise CorruptStore(f"{self.format} is not a layerstore FORMAT file")
        unknown = incompatible - _INCOMPATIBLE
        if version != VERSION or unknown:
            what = f"features {', '.join(sorted(unknown))}" if unknown else f"version {version}"
            raise Unsupported(
                f"{self.root} needs {what}, which this layerstore does not know; upgrade it"
            )
        return not read_only - _READ_ONLY_COMPATIBLE
