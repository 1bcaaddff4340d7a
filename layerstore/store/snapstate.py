"""The records of snapshots, and the directories of those that can be written.

    snapshots:  k <key, UTF-8>             -> SnapshotRecord, a key of up to 400 bytes
                h <BLAKE3 of the key>      -> SnapshotRecord, a longer key; the record has the key itself
                c <parent id> <child id>   -> empty; both u64, big endian
    state:      next_snapshot              -> u64, big endian

    ROOT/snapshots/snap-<id>/fs            the upper directory
    ROOT/snapshots/snap-<id>/work          overlayfs' own
    ROOT/snapshots/gone-<random>           of nobody: to be deleted

All changes happen inside the store's one write transaction, across processes; so do making and renaming of
directories. A directory is durable before its record is; one without a record belongs to nobody (a crash left it).

Source: docs/snapshots.md.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import blake3

from layerstore.digest import DiffID, parse_digest
from layerstore.errors import CorruptStore
from layerstore.store import files
from layerstore.store.database import pack_u64, unpack_u64

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layerstore.digest import Digest
    from layerstore.store.database import Database, Transaction
    from layerstore.store.layout import Layout

__all__ = ["SnapshotDirectories", "SnapshotKind", "SnapshotRecord", "SnapshotTable"]

_NEXT_SNAPSHOT = b"next_snapshot"
_MAX_PLAIN_KEY = 400  # bytes; LMDB's own limit is 511
_OURS = re.compile(r"snap-\d+|gone-[0-9a-f]+")


class SnapshotKind(StrEnum):
    """What a snapshot is; the values are containerd's words, and part of the format."""

    ACTIVE = "active"
    VIEW = "view"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot.

    Attributes:
        key: what callers name it by.
        id: never used twice; names its directory.
        kind: an active one has an upper directory, the others do not (but a view without layers has an empty one).
        parent: the key of the committed snapshot it was made on, or empty.
        parent_id: that one's id, or 0.
        stack: diff IDs of the layers that it shows, bottom first, the upper directory of an active one not among them.
        labels: as containerd's.
        created_ns: since 1970.
        updated_ns: when the labels were last set.
        size: bytes of disk that its upper directory took when it was committed; 0 for others.
        inodes: that it had.
    """

    key: str
    id: int
    kind: SnapshotKind
    parent: str
    parent_id: int
    stack: tuple[DiffID, ...]
    labels: dict[str, str]
    created_ns: int
    updated_ns: int
    size: int = 0
    inodes: int = 0


class SnapshotTable:
    """The table `snapshots`.

    Thread safety: stateless; transactions are the caller's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, txn: Transaction, key: str) -> SnapshotRecord | None:
        """A record, or None."""
        data = self._database.get(txn, "snapshots", _table_key(key))
        return None if data is None else _load(data)

    def put(self, txn: Transaction, record: SnapshotRecord) -> None:
        """Set a record, and that it is a child of its parent."""
        self._database.put(txn, "snapshots", _table_key(record.key), _dump(record))
        if record.parent_id:
            self._database.put(txn, "snapshots", _child_key(record), b"")

    def delete(self, txn: Transaction, record: SnapshotRecord) -> None:
        """Forget a record."""
        self._database.delete(txn, "snapshots", _table_key(record.key))
        if record.parent_id:
            self._database.delete(txn, "snapshots", _child_key(record))

    def has_children(self, txn: Transaction, record: SnapshotRecord) -> bool:
        """Whether a snapshot was made on this one."""
        prefix = b"c" + pack_u64(record.id)
        cursor = self._database.cursor(txn, "snapshots")
        return bool(cursor.set_range(prefix)) and cursor.key().startswith(prefix)

    def next_id(self, txn: Transaction) -> int:
        """An id that no committed transaction has given."""
        data = self._database.get(txn, "state", _NEXT_SNAPSHOT)
        number = 1 if data is None else unpack_u64(data)
        self._database.put(txn, "state", _NEXT_SNAPSHOT, pack_u64(number + 1))
        return number

    def records(self, txn: Transaction) -> Iterator[SnapshotRecord]:
        """All snapshots; those with short keys first, by key."""
        return map(_load, self._values(txn))

    def _values(self, txn: Transaction) -> Iterator[bytes]:
        cursor = self._database.cursor(txn, "snapshots")
        for prefix in (b"k", b"h"):
            more = cursor.set_range(prefix)
            while more and cursor.key().startswith(prefix):
                yield cursor.value()
                more = cursor.next()

    def mentioning(self, txn: Transaction, digest: Digest) -> Iterator[SnapshotRecord]:
        """The snapshots in whose record a digest stands anywhere; only those are decoded."""
        wanted = digest.encode()
        for value in self._values(txn):
            if wanted in value:
                yield _load(value)

    def diff_ids(self, txn: Transaction) -> set[DiffID]:
        """All layers that snapshots need: roots for garbage collection."""
        return {diff_id for record in self.records(txn) for diff_id in record.stack}


class SnapshotDirectories:
    """ROOT/snapshots. `make` and `disown_orphans` only inside a write transaction.

    Thread safety: stateless.
    """

    def __init__(self, layout: Layout) -> None:
        self.root: Path = layout.root / "snapshots"

    def path(self, snapshot_id: int) -> Path:
        """The directory of a snapshot."""
        return self.root / f"snap-{snapshot_id}"

    def upper(self, snapshot_id: int) -> Path:
        """Its upper directory."""
        return self.path(snapshot_id) / "fs"

    def work(self, snapshot_id: int) -> Path:
        """Its work directory, on the same filesystem."""
        return self.path(snapshot_id) / "work"

    def make(self, snapshot_id: int) -> Path:
        """Make the directories of a new snapshot; returns the upper one. `sync` makes their names durable.

        What a crashed call left under the same id goes away.
        """
        if not self.root.exists():
            self.root.mkdir(mode=0o700, exist_ok=True)
            files.fsync_directory(self.root.parent)
        if self.path(snapshot_id).exists():
            self.disown(snapshot_id)
        with files.no_room("make a snapshot"):
            self.path(snapshot_id).mkdir(mode=0o700)
            self.work(snapshot_id).mkdir(mode=0o711)
            upper = self.upper(snapshot_id)
            upper.mkdir(mode=0o755)
            upper.chmod(0o755)  # whatever the umask is
        return upper

    def sync(self, *snapshot_ids: int) -> None:
        """Make new directories durable, before their records are."""
        for snapshot_id in snapshot_ids:
            files.fsync_directory(self.upper(snapshot_id))
            files.fsync_directory(self.path(snapshot_id))
        if snapshot_ids:
            files.fsync_directory(self.root)

    def disown(self, snapshot_id: int) -> Path | None:
        """Rename a snapshot's directory, so that `delete` can take its time; None if there is none. Raises: StoreFull."""
        gone = self.root / f"gone-{secrets.token_hex(8)}"
        try:
            with files.no_room("rename the directory of a snapshot"):
                self.path(snapshot_id).rename(gone)
        except FileNotFoundError:
            return None
        return gone

    def disown_orphans(self, known: set[int]) -> list[Path]:
        """Directories of nobody: those without a record, and those that `delete` had not finished."""
        if not self.root.exists():
            return []
        found = []
        for name in sorted(path.name for path in self.root.iterdir()):
            if not _OURS.fullmatch(name):
                continue  # somebody else's
            if name.startswith("gone-"):
                found.append(self.root / name)
            elif (snapshot_id := int(name[5:])) not in known:
                gone = self.disown(snapshot_id)
                found += [gone] if gone else []
        return found

    @staticmethod
    def delete(gone: Path) -> None:
        """Delete a disowned directory; what is in use as a mount point stays for the next `cleanup`."""
        shutil.rmtree(gone, ignore_errors=True)


def _table_key(key: str) -> bytes:
    data = key.encode("utf-8", "surrogateescape")
    if len(data) <= _MAX_PLAIN_KEY:
        return b"k" + data
    return b"h" + blake3.blake3(data).digest()


def _child_key(record: SnapshotRecord) -> bytes:
    return b"c" + pack_u64(record.parent_id) + pack_u64(record.id)


def _dump(record: SnapshotRecord) -> bytes:
    document = {
        "key": record.key,
        "id": record.id,
        "kind": record.kind,
        "parent": record.parent,
        "parent_id": record.parent_id,
        "stack": record.stack,
        "labels": record.labels,
        "created_ns": record.created_ns,
        "updated_ns": record.updated_ns,
        "size": record.size,
        "inodes": record.inodes,
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def _load(data: bytes) -> SnapshotRecord:
    try:
        document = json.loads(data)
        return SnapshotRecord(
            key=str(document["key"]),
            id=int(document["id"]),
            kind=SnapshotKind(document["kind"]),
            parent=str(document["parent"]),
            parent_id=int(document["parent_id"]),
            stack=tuple(DiffID(parse_digest(diff_id)) for diff_id in document["stack"]),
            labels={str(name): str(value) for name, value in document["labels"].items()},
            created_ns=int(document["created_ns"]),
            updated_ns=int(document["updated_ns"]),
            size=int(document["size"]),
            inodes=int(document["inodes"]),
        )
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise CorruptStore(f"the record of a snapshot is damaged: {error!r}") from error
