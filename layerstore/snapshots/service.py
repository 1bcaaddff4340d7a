"""Snapshots with containerd's life cycle: prepare, write, commit; or view; in the end, remove.

    prepare(key, parent)     an active snapshot: a writable root on what `parent` shows, or on nothing
    view(key, parent)        the same, read-only
    mounts(key)              how to mount either of them
    commit(name, key)        the active snapshot `key` becomes the committed one `name`, on which others can stand
    fork(image stack, keys)  many active snapshots on layers of the store, without a parent
    offer(key, parent)       a committed snapshot instead of an active one, of a layer that is here already

`key` is the name of an active snapshot or a view, `name` that of a committed one, `parent` that of a committed one
below; all are in one space of names, and any text will do. Only committed snapshots have children, and none that has
can be removed. Committing turns the upper directory into a layer: its chunks are shared with all other layers, and
what the snapshot shows is from then on the stack of its parent with that layer on top.

All state is in one table; a call is one write transaction of the store, so several processes may call at once, and
after a crash every snapshot is as before the call or as after it. Directories that a crash leaves behind are of nobody;
`cleanup` deletes them.

Source: containerd `core/snapshots/snapshotter.go`; its test suite; docs/snapshots.md.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from layerstore.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LayerstoreError,
    NotFound,
)
from layerstore.mount.mounter import NeededLowers
from layerstore.snapshots.capture import capture_upper, root_of
from layerstore.snapshots.filters import parse_filters
from layerstore.snapshots.info import (
    Info,
    Usage,
    changed_labels,
    check_key,
    checked_labels,
    disk_usage,
    info_of,
)
from layerstore.snapshots.known import KnownLayers, name_for, wanted_chain
from layerstore.snapshots.specs import (
    MAX_OPTIONS,
    MountSpec,
    active_specs,
    options_length,
    view_specs,
)
from layerstore.store.snapstate import (
    SnapshotDirectories,
    SnapshotKind,
    SnapshotRecord,
    SnapshotTable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from layerstore.digest import DiffID
    from layerstore.ingest import IngestReport
    from layerstore.mount.upper import RootAttributes
    from layerstore.snapshots.lower import Lower, LowerProvider
    from layerstore.store.database import Transaction
    from layerstore.store.session import WriteSession
    from layerstore.store.store import Store

__all__ = ["Captured", "Snapshots"]

# containerd, BuildKit and what is built on them unpack a layer under such a key.
_UNPACKING = re.compile(r"(?:.*/)?extract-\S+ sha256:[0-9a-f]{64}")


class Captured(NamedTuple):
    """What an active snapshot is as layers: the stack below, and its changes, durable but without a record yet."""

    stack: tuple[DiffID, ...]
    layer: IngestReport


class Snapshots:
    """The snapshots of one store. Thread safety: all methods, from any thread."""

    def __init__(
        self,
        store: Store,
        lowers: LowerProvider,
        delete: Callable[[Path], None] = SnapshotDirectories.delete,
    ) -> None:
        """Speak of a store's snapshots.

        `delete` gets directories that no record names any more; it need not have deleted them when it returns.
        """
        self._store, self._lowers, self._delete = store, lowers, delete
        self._table = SnapshotTable(store.database)
        self._directories = SnapshotDirectories(store.layout)
        self._known = KnownLayers(store, self._table)

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> Info:
        """Make an active snapshot on a committed one, or on nothing.

        Raises:
            NotFound: no such parent.
            InvalidArgument: the parent is not committed; a key or label that cannot be.
            AlreadyExists: the key is in use, by whatever kind.
            StoreFull: nothing is made; so with all errors.
        """
        return self._make([key], SnapshotKind.ACTIVE, parent, labels)[0]

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> Info:
        """Make a read-only snapshot of a committed one, or of nothing. Raises: as `prepare`."""
        return self._make([key], SnapshotKind.VIEW, parent, labels)[0]

    def fork(
        self,
        stack: Sequence[DiffID],
        keys: Sequence[str],
        labels: Mapping[str, str] | None = None,
    ) -> list[Info]:
        """Make active snapshots, all or none, on layers of the store; the work does not depend on their size.

        Raises: NotFound: a layer is not there. Else as `prepare`.
        """
        return self._make(keys, SnapshotKind.ACTIVE, "", labels, tuple(stack))

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> Info:
        """Turn an active snapshot into a committed one: the layer is durable before the record says so.

        The labels of the active snapshot go; `labels` are those of the new one. Mounts of the active snapshot may still
        exist, but what is written through them later is lost.

        Raises:
            AlreadyExists: the name is in use; the key stays active, as after all errors.
            NotFound: no such key.
            FailedPrecondition: the key is not active, or a file changed while it was read.
            StoreFull.
        """
        check_key(name)
        checked = checked_labels(labels)
        with self._store.read() as txn:
            self._committable(txn, name, key)
        usage = self.usage(key)
        with self._store.begin() as session:
            captured = self.capture(key, session)
            record = self._commit_record(name, key, checked, captured, usage)
        # Only now: until the transaction is durable, a crash leaves the snapshot active, with its changes.
        self._discard(record.id)
        self._release_lowers()
        return info_of(record)

    def _commit_record(
        self, name: str, key: str, labels: dict[str, str], captured: Captured, usage: Usage
    ) -> SnapshotRecord:
        """Turn the record of an active snapshot into that of a committed one; returns the new one."""
        with self._store.write() as txn:
            active = self._committable(txn, name, key)
            if active.stack != captured.stack:
                raise FailedPrecondition(
                    f"snapshot {key} was made anew meanwhile: failed precondition"
                )
            now = time.time_ns()
            record = replace(
                active,
                key=name,
                kind=SnapshotKind.COMMITTED,
                stack=(*captured.stack, captured.layer.diff_id),
                labels=labels,
                created_ns=now,
                updated_ns=now,
                size=usage.size,
                inodes=usage.inodes,
            )
            self._table.delete(txn, active)
            self._table.put(txn, record)
        return record

    def adopt(
        self,
        name: str,
        stack: Sequence[DiffID],
        parent: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> Info:
        """Make a committed snapshot of layers that the store already has, on top of its parent's.

        This is how an image that was loaded becomes a base without unpacking anything. Its usage is that of the layers'
        tars.

        Raises: NotFound: a layer, or the parent. AlreadyExists, InvalidArgument: as `prepare`.
        """
        return self._make([name], SnapshotKind.COMMITTED, parent, labels, tuple(stack))[0]

    def offer(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> Info | None:
        """Instead of an active snapshot to unpack a layer in, the committed one that it would become.

        That is if `labels` name the stack that the layer completes (`containerd.io/snapshot.ref`), and the store has
        the layer (`known`). The snapshot is one that is there, or a new one with these labels; None if `prepare` is
        what has to be called.

        Raises: AlreadyExists: the name is taken by another one. InvalidArgument, StoreFull: as `prepare`.
        """
        check_key(key)
        checked = checked_labels(labels)
        wanted = wanted_chain(checked)
        if wanted is None:
            return None
        with self._store.read() as txn:
            base = self._table.get(txn, parent) if parent else None
            if parent and (base is None or base.kind is not SnapshotKind.COMMITTED):
                return None
            there = self._known.snapshot(txn, wanted, base)
            layer = None if there else self._known.layer(txn, wanted, base, checked)
        if there is not None:
            return info_of(there)
        if layer is None:
            return None
        try:
            return self.adopt(name_for(key, wanted), (layer,), parent, checked)
        except (NotFound, FailedPrecondition):  # it was removed meanwhile
            return None

    def capture(self, key: str, session: WriteSession) -> Captured:
        """Store an active snapshot's changes as a layer, which `session` keeps; the snapshot stays as it is.

        Raises: NotFound, FailedPrecondition, StoreFull: as `commit`.
        """
        with self._store.read() as txn:
            active = self._get(txn, key)
        _need_active(active)
        return self.capture_upper(
            self._directories.upper(active.id), active.stack, f"snapshot {key}", session
        )

    def capture_upper(
        self, upper: Path, stack: tuple[DiffID, ...], what: str, session: WriteSession
    ) -> Captured:
        """The same, of any upper directory over a stack of layers of the store; messages call it `what`.

        Raises: FailedPrecondition, StoreFull: as `commit`.
        """
        session.hold(stack)
        lower = self._lowers.lower(stack) if stack else None
        return Captured(stack, capture_upper(upper, lower, what, session))

    def mounts(self, key: str) -> list[MountSpec]:
        """What to mount, in order, to see an active snapshot or a view.

        Raises: NotFound. FailedPrecondition: it is committed. Unsupported: nothing can show its layers here.
        """
        with self._store.read() as txn:
            record = self._get(txn, key)
        if record.kind is SnapshotKind.COMMITTED:
            raise FailedPrecondition(f"snapshot {key} is not active: failed precondition")
        specs = self._specs(record, self._lower(record.stack, key))
        if options_length(specs) > MAX_OPTIONS:
            specs = self._specs(record, self._lowers.lower(record.stack, in_one=True))
        return specs

    def _specs(self, record: SnapshotRecord, lower: Lower | None) -> list[MountSpec]:
        upper, work = self._directories.upper(record.id), self._directories.work(record.id)
        if record.kind is SnapshotKind.VIEW:
            return view_specs(upper, lower)
        return active_specs(upper, work, lower)

    def stat(self, key: str) -> Info:
        """What a snapshot is. Raises: NotFound."""
        with self._store.read() as txn:
            return info_of(self._get(txn, key))

    def stack(self, key: str) -> tuple[DiffID, ...]:
        """The layers that a snapshot shows, bottom first, without an active one's own changes. Raises: NotFound."""
        with self._store.read() as txn:
            return self._get(txn, key).stack

    def update(self, info: Info, fieldpaths: Sequence[str] = ()) -> Info:
        """Change labels: all of them (no field paths, or `labels`), or those that `labels.NAME` names.

        A named label that `info` does not have, or has empty, is removed.

        Raises: NotFound. InvalidArgument: another field, or a label that cannot be.
        """
        with self._store.write() as txn:
            record = self._get(txn, info.name)
            labels = changed_labels(record.labels, info.labels, fieldpaths)
            record = replace(record, labels=labels, updated_ns=time.time_ns())
            self._table.put(txn, record)
        return info_of(record)

    def usage(self, key: str) -> Usage:
        """Disk space of a snapshot's own changes; hard links count once. A view has none. Raises: NotFound."""
        with self._store.read() as txn:
            record = self._get(txn, key)
        if record.kind is SnapshotKind.ACTIVE:
            try:
                return disk_usage(self._directories.upper(record.id))
            except FileNotFoundError:
                raise NotFound(f"snapshot {key} was removed meanwhile: not found") from None
        return Usage(record.size, record.inodes)

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """Snapshots that one of the filters lets through (all, without filters), as they are at the first step.

        No lock is held meanwhile: any method may be called for what it gives.

        Raises: InvalidArgument: a filter, at once.
        """
        matches = parse_filters(filters)

        def found() -> Iterator[Info]:
            with self._store.read() as txn:
                records = list(self._table.records(txn))
            for record in records:
                if matches(info := info_of(record)):
                    yield info

        return found()

    def remove(self, key: str) -> None:
        """Forget a snapshot, of whatever kind; an active one loses its changes. The key is free at once.

        Raises: NotFound. FailedPrecondition: others stand on it.
        """
        with self._store.write() as txn:
            record = self._get(txn, key)
            if self._table.has_children(txn, record):
                raise FailedPrecondition(
                    f"cannot remove snapshot with child: {key}: failed precondition"
                )
            self._table.delete(txn, record)
        self._discard(record.id)
        if record.kind is SnapshotKind.COMMITTED or not record.parent:
            self._release_lowers()  # others leave their parent's to the next one; `cleanup` looks at all

    def cleanup(self) -> int:
        """Delete directories that no snapshot has, and unmount what none needs; returns how many directories."""
        with self._store.write() as txn:
            known = {record.id for record in self._table.records(txn)}
            gone = self._directories.disown_orphans(known)
        for path in gone:
            self._delete(path)
        self._release_lowers()
        return len(gone)

    def key_of_upper(self, upper: Path) -> str:
        """The active snapshot whose upper directory this is. Raises: NotFound."""
        with self._store.read() as txn:
            for record in self._table.records(txn):
                if (
                    record.kind is SnapshotKind.ACTIVE
                    and self._directories.upper(record.id) == upper
                ):
                    return record.key
        raise NotFound(f"{upper} belongs to no snapshot: not found")

    def _make(
        self,
        keys: Sequence[str],
        kind: SnapshotKind,
        parent: str,
        labels: Mapping[str, str] | None,
        layers: tuple[DiffID, ...] = (),
    ) -> list[Info]:
        """Make snapshots of one kind on one base: all of them in one transaction."""
        for key in keys:
            check_key(key)
        checked = checked_labels(labels)
        with self._store.read() as txn:
            base = self._parent(txn, parent)
            size, entries = self._layer_sizes(txn, layers)
            for key in keys:
                self._check_free(txn, key)
        stack = (*(base.stack if base else ()), *layers)
        root = None
        if kind is SnapshotKind.ACTIVE:
            root = root_of(self._lower(stack, keys[0]))
        made: list[SnapshotRecord] = []
        try:
            with self._store.write() as txn:
                base = self._same_parent(txn, parent, base)
                self._layer_sizes(txn, layers)  # whether they are still there
                for key in keys:
                    self._check_free(txn, key)
                    now = time.time_ns()
                    record = SnapshotRecord(
                        key,
                        self._table.next_id(txn),
                        kind,
                        parent,
                        base.id if base else 0,
                        stack,
                        checked,
                        now,
                        now,
                        *((size, entries) if kind is SnapshotKind.COMMITTED else (0, 0)),
                    )
                    made.append(record)
                    self._make_directories(record, root)
                    self._table.put(txn, record)
                self._directories.sync(*(record.id for record in made if _has_directory(record)))
        except BaseException:
            self._drop(made)
            raise
        return [info_of(record) for record in made]

    def _make_directories(self, record: SnapshotRecord, root: RootAttributes | None) -> None:
        if _has_directory(record):
            upper = self._directories.make(record.id)
            if root is not None:
                root.apply(upper)

    def _drop(self, made: Sequence[SnapshotRecord]) -> None:
        """Delete the directories of snapshots that have no record after all."""
        if not made:
            return
        # An error is on its way out; another one (a full disk) must not hide it, and `cleanup` comes later.
        with suppress(LayerstoreError, OSError):
            with self._store.write() as txn:
                known = {record.id for record in self._table.records(txn)}
                gone = [self._directories.disown(r.id) for r in made if r.id not in known]
            for path in gone:
                if path is not None:
                    self._delete(path)

    def _discard(self, snapshot_id: int) -> None:
        """Have the directory of a snapshot deleted whose record is gone; its id never comes again."""
        gone = self._directories.disown(snapshot_id)
        if gone is not None:
            self._delete(gone)

    def _get(self, txn: Transaction, key: str) -> SnapshotRecord:
        check_key(key)
        record = self._table.get(txn, key)
        if record is None:
            raise NotFound(f"snapshot {key} does not exist: not found")
        return record

    def _check_free(self, txn: Transaction, key: str) -> None:
        if self._table.get(txn, key) is not None:
            raise AlreadyExists(f"snapshot {key}: already exists")

    def _parent(self, txn: Transaction, parent: str) -> SnapshotRecord | None:
        if not parent:
            return None
        record = self._table.get(txn, parent)
        if record is None:
            raise NotFound(f"parent snapshot {parent} does not exist: not found")
        if record.kind is not SnapshotKind.COMMITTED:
            raise InvalidArgument(f"parent {parent!r} is not committed snapshot: invalid argument")
        return record

    def _same_parent(
        self, txn: Transaction, parent: str, seen: SnapshotRecord | None
    ) -> SnapshotRecord | None:
        """The parent again, now that nobody else can change it: it must show what it has shown."""
        record = self._parent(txn, parent)
        if record is not None and seen is not None and record.stack != seen.stack:
            raise FailedPrecondition(f"parent snapshot {parent} has changed: failed precondition")
        return record

    def _committable(self, txn: Transaction, name: str, key: str) -> SnapshotRecord:
        self._check_free(txn, name)
        record = self._get(txn, key)
        _need_active(record)
        return record

    def _layer_sizes(self, txn: Transaction, layers: Sequence[DiffID]) -> tuple[int, int]:
        size = entries = 0
        for diff_id in layers:
            record = self._store.catalog.layer(txn, diff_id)
            if record is None:
                raise NotFound(f"layer {diff_id} is not in this store: not found")
            size, entries = size + record.size, entries + record.entries
        return size, entries

    def _lower(self, stack: Sequence[DiffID], key: str) -> Lower | None:
        """What the snapshot `key` stands on.

        Who unpacks a layer writes to the upper directory itself, and looks the owner and mode of a directory that the
        layer does not name up in all that `lowerdir=` has between colons. Between two of them that is the empty path,
        the host's own root: so such a snapshot gets one directory (docs/snapshots.md).
        """
        if not stack:
            return None
        return self._lowers.lower(stack, in_one=_UNPACKING.fullmatch(key) is not None)

    def _release_lowers(self) -> None:
        """Unmount what no snapshot needs; where that fails, the next call does it."""
        with suppress(LayerstoreError, OSError):
            self._lowers.release(self._needed_lowers)

    def _needed_lowers(self, txn: Transaction) -> NeededLowers:
        """Stacks that may be mounted now, and those of images, on which the next container will stand."""
        records = list(self._table.records(txn))
        committed = [one for one in records if one.kind is SnapshotKind.COMMITTED]
        inner = {one.parent_id for one in committed}
        return NeededLowers(
            {one.stack for one in records if one.kind is not SnapshotKind.COMMITTED},
            {one.stack for one in committed if one.id not in inner},
        )


def _need_active(record: SnapshotRecord) -> None:
    if record.kind is not SnapshotKind.ACTIVE:
        raise FailedPrecondition(f"snapshot {record.key} is not active: failed precondition")


def _has_directory(record: SnapshotRecord) -> bool:
    """A view of layers shows what others have; one of nothing shows an empty directory of its own."""
    if record.kind is SnapshotKind.VIEW:
        return not record.stack
    return record.kind is SnapshotKind.ACTIVE
