"""Mounts of a store: begun, listed, ended, and tidied after a crash. Each flow's order stands here.

    mount    probe > prepare images > [lock: tidy > record > mount]
    umount   [lock: unmount > delete the record > unmount what nobody needs > remove the upper]
    tidy     [lock: records whose mount is not there: as umount]

The record comes before the mount and goes after it, so a crash leaves at most a record too many, which the next call
finds: the kernel shows no mount with its token. Records of an earlier boot are such; those of another mount namespace
are left alone, as this process cannot see their mounts. No daemon is needed; what is asked is the kernel.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from layerstore.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    Unsupported,
)
from layerstore.mount.checkout import CheckoutDriver
from layerstore.mount.erofs import ErofsDriver
from layerstore.mount.fuse import FuseDriver
from layerstore.mount.hardlinks import HardlinksDriver
from layerstore.mount.images import check_stack
from layerstore.mount.mountinfo import boot_id, mount_namespace, read_mountinfo
from layerstore.mount.objects import ObjectsDriver
from layerstore.mount.overlay import mount_merged, sweep_shared
from layerstore.mount.places import Places
from layerstore.mount.scrub import check_contents
from layerstore.mount.upper import RootAttributes
from layerstore.store.mountstate import MountRecord, MountTable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from types import TracebackType

    from layerstore.digest import DiffID
    from layerstore.mount.driver import Driver
    from layerstore.store.database import Transaction
    from layerstore.store.store import Store

__all__ = [
    "AUTO",
    "DRIVERS",
    "HeldLower",
    "Mount",
    "MountInfo",
    "MountOptions",
    "NeededLowers",
    "choose_driver",
    "hold_lower",
    "is_held",
    "list_mounts",
    "mount_stack",
    "release_lowers",
    "umount_target",
]

AUTO = "auto"
DRIVERS: dict[str, Driver] = {
    driver.name: driver
    for driver in (
        ErofsDriver(),
        ObjectsDriver(),
        FuseDriver(),
        CheckoutDriver(),
        HardlinksDriver(),
    )
}
"""In the order in which `auto` tries them."""

# In place of a driver: the record keeps lower layers mounted for overlays of others, apart or as one directory.
_HOLD, _HOLD_MERGED = "hold", "hold-merged"
_HOLDS = (_HOLD, _HOLD_MERGED)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount.

    Attributes:
        rw: whether it can be written to; changes never go into the store.
        driver: `auto`, or the name of a driver.
        upper: existing folder that keeps the changes of a writable mount (in `fs`; `work` is the kernel's), also those
            of an earlier mount of the same image. Without it, changes are gone with the mount.
        verify: whether to read all contents first, and to mount nothing if one is damaged.
    """

    rw: bool = False
    driver: str = AUTO
    upper: Path | None = None
    verify: bool = False


@dataclass(frozen=True, slots=True)
class MountInfo:
    """A mount of a store.

    Attributes:
        upper: folder of its changes, if they are kept.
        reason: why `auto` took this driver, or passed over others; empty in lists.
    """

    target: Path
    driver: str
    diff_ids: tuple[str, ...]
    rw: bool
    upper: Path | None
    created_ns: int
    reason: str = ""


class HeldLower(NamedTuple):
    """Lower layers that stay mounted.

    Attributes:
        root: the tree.
        data: data-only layers that its files redirect to; none if they have their contents themselves.
        number: of the record that holds them.
        attributes: of the tree's root. They were read while it was surely mounted.
    """

    root: Path
    data: tuple[Path, ...]
    number: int
    attributes: RootAttributes


@dataclass(frozen=True, slots=True)
class NeededLowers:
    """Stacks of layers that overlays of others stand on, or soon may.

    Attributes:
        used: by what may be mounted at any moment.
        kept: by nobody now; held apart they stay, so that the next one finds them, and their pages, in memory.
    """

    used: Collection[tuple[str, ...]] = ()
    kept: Collection[tuple[str, ...]] = ()

    def has(self, record: MountRecord) -> bool:
        """Whether a held stack is among them."""
        if record.diff_ids in self.used:
            return True
        return record.driver == _HOLD and record.diff_ids in self.kept


class Mount:
    """A mount that was made, and a path to it. Used as a context manager it ends with the block; otherwise it stays.

    Thread safety: all methods, from any thread.
    """

    def __init__(self, store: Store, info: MountInfo, *, is_temporary: bool = False) -> None:
        """Of a temporary one, the folder goes with the mount."""
        self._store, self._is_temporary = store, is_temporary
        self.info = info

    @property
    def target(self) -> Path:
        """Where it is."""
        return self.info.target

    def __fspath__(self) -> str:
        return os.fspath(self.target)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(NotFound):  # ended by somebody else
            self.umount()

    def umount(self) -> None:
        """End it. Raises: as `umount_target`."""
        try:
            umount_target(self._store, self.target)
        finally:
            if self._is_temporary and not os.path.ismount(self.target):
                with suppress(OSError):  # gone, or no longer empty: not ours to remove
                    self.target.rmdir()


def mount_stack(
    store: Store, diff_ids: Sequence[DiffID], target: Path, options: MountOptions
) -> Mount:
    """Show a stack of layers, bottom first, in the folder `target`.

    Raises:
        NotFound: no such layer or folder.
        InvalidArgument: `target` is no folder or inside the store; an unknown driver; an upper without rw.
        AlreadyExists: something of this store is mounted there.
        FailedPrecondition: the store is open for reading only; the folder is not empty (`checkout`).
        Unsupported: the driver does not work here.
        CorruptStore: a file of `verify` is damaged, or a table. StoreFull.
    """
    store.need_write()  # mounts are recorded
    place, upper = _check_target(store, target), _check_upper(options)
    places = Places.of(store.layout.root)
    places.make()
    driver, reason = choose_driver(store, options)
    if options.verify:
        check_contents(store, diff_ids)
    needs = driver.prepare(store, places, diff_ids)
    token = f"layerstore:{secrets.token_hex(8)}"
    owns_upper = options.rw and upper is None
    if owns_upper:
        upper = places.upper(token.partition(":")[2])
    record = needs.put_in(
        MountRecord(
            token,
            str(place),
            driver.name,
            tuple(diff_ids),
            options.rw,
            "",
            (),
            str(upper or ""),
            owns_upper,
            time.time_ns(),
            boot_id(),
            mount_namespace(),
        )
    )
    table = MountTable(store.database)
    with places.mounting():
        for other in _tidy(store, places).values():
            if other.target == record.target:
                raise AlreadyExists(f"{target} is a mount of this store; `layerstore umount` it")
        with store.write() as txn:
            check_stack(store, txn, diff_ids, record.meta)
            number = table.add(txn, record)
        try:
            driver.mount(store, places, record)
        except BaseException:
            _forget(store, places, {number: record})
            raise
    return Mount(store, _info(record, reason))


def umount_target(store: Store, target: Path) -> None:
    """End the mount at `target`.

    Raises:
        NotFound: this store has no mount there.
        Busy: a file of it is in use; nothing has changed.
    """
    store.need_write()  # mounts are recorded
    place = os.path.realpath(target)
    places = Places.of(store.layout.root)
    places.make()
    with places.mounting():
        found = {n: one for n, one in _tidy(store, places).items() if one.target == place}
        if not found:
            raise NotFound(f"{target} is no mount of this store; `layerstore mounts` lists them")
        for record in found.values():
            DRIVERS[record.driver].umount(store, places, Path(record.target))
        _forget(store, places, found)


def list_mounts(store: Store) -> list[MountInfo]:
    """The mounts that are there, oldest first. Raises: CorruptStore."""
    places = Places.of(store.layout.root)
    with store.read() as txn:
        records = dict(MountTable(store.database).items(txn))
    live = _live(places, records)
    return [_info(records[n]) for n in live if records[n].target]


def choose_driver(store: Store, options: MountOptions) -> tuple[Driver, str]:
    """The driver to use, and why.

    Raises: InvalidArgument: no such driver. Unsupported: it, or all of them, cannot do this here.
    """
    places = Places.of(store.layout.root)
    places.make()
    if options.driver != AUTO:
        driver = DRIVERS.get(options.driver)
        if driver is None:
            raise InvalidArgument(f"no driver {options.driver!r}; there are {', '.join(DRIVERS)}")
        support = driver.probe(store, places, rw=options.rw)
        if not support.ok:
            raise Unsupported(f"driver {driver.name}: {support.reason}")
        return driver, "it was asked for"
    passed = []
    for driver in DRIVERS.values():
        if options.upper is not None and driver.name not in ("erofs", "objects"):
            passed.append(f"{driver.name}: keeps no changes apart")
            continue
        support = driver.probe(store, places, rw=options.rw)
        if support.ok:
            return driver, "; ".join(passed) or "the best one works here"
        passed.append(f"{driver.name}: {support.reason}")
    raise Unsupported(f"no driver works here ({'; '.join(passed)})")


def hold_lower(store: Store, diff_ids: Sequence[DiffID], *, merged: bool = False) -> HeldLower:
    """Keep the lower layers of a stack mounted, for overlays that somebody else mounts, until `release_lowers`.

    A second call for the same stack holds nothing more. See `overlay.overlay_options` for the options that they need.
    Merged, they are one directory with everything in it, at the price of an overlay below the other one: Linux allows
    no third.

    Raises: as `mount_stack`.
    """
    store.need_write()  # mounts are recorded
    places = Places.of(store.layout.root)
    places.make()
    driver = DRIVERS["erofs"]
    support = driver.probe(store, places, rw=True)
    if not support.ok:
        raise Unsupported(f"driver erofs: {support.reason}")
    needs = driver.prepare(store, places, diff_ids)
    record = needs.put_in(
        MountRecord(
            "layerstore:hold",
            "",
            _HOLD_MERGED if merged else _HOLD,
            tuple(diff_ids),
            False,
            "",
            (),
            "",
            False,
            time.time_ns(),
            boot_id(),
            mount_namespace(),
        )
    )
    data = tuple(places.data_mount(number) for number in needs.data)
    with places.mounting():
        live = _tidy(store, places)
        held = [
            n
            for n, one in live.items()
            if (one.driver, one.meta, one.data) == (record.driver, needs.meta, needs.data)
        ]
        if held:
            number = held[0]
        else:
            with store.write() as txn:
                check_stack(store, txn, diff_ids, record.meta)
                number = MountTable(store.database).add(txn, record)
        driver.mount(store, places, record)
        root = places.meta_mount(needs.meta)
        attributes = RootAttributes.read(root)
        if not merged:
            return HeldLower(root, data, number, attributes)
        mount_merged(places, needs.meta, data)
    return HeldLower(places.merged_mount(needs.meta), (), number, attributes)


def is_held(store: Store, held: HeldLower) -> bool:
    """Whether it still is: its record is there, and it is mounted. No lock is taken.

    Who asks after it has recorded that it needs the stack gets an answer that lasts: `release_lowers` reads what is
    needed and deletes records in one transaction, before it unmounts.
    """
    with store.read() as txn:
        if not MountTable(store.database).has(txn, held.number):
            return False
    return os.path.ismount(held.root)


def release_lowers(
    store: Store, is_needed: Callable[[Transaction], NeededLowers] = lambda txn: NeededLowers()
) -> int:
    """Let go of what `hold_lower` holds in this namespace and nobody needs; overlays made of it go on.

    Returns how many were let go. `is_needed` is asked within the transaction that forgets the others.
    """
    store.need_write()  # mounts are recorded
    places = Places.of(store.layout.root)
    places.make()
    table = MountTable(store.database)
    with places.mounting():
        held = {n: one for n, one in _tidy(store, places).items() if one.driver in _HOLDS}
        if not held:
            return 0
        with store.write() as txn:
            needed = is_needed(txn)
            gone = {n: one for n, one in held.items() if not needed.has(one)}
            for number in gone:
                table.delete(txn, number)
            left = dict(table.items(txn))
        if gone:
            _sweep(places, left)
    return len(gone)


def _tidy(store: Store, places: Places) -> dict[int, MountRecord]:
    """End what is half made or left over; returns the live records of this namespace. Call it under the lock."""
    with store.read() as txn:
        records = dict(MountTable(store.database).items(txn))
    live = _live(places, records)
    dead = {n: one for n, one in records.items() if n not in live and _is_ours(places, one)}
    if dead:
        _forget(store, places, dead)
    return {n: records[n] for n in live}


def _live(places: Places, records: dict[int, MountRecord]) -> list[int]:
    """The numbers of those whose mount is there, as far as this process can see."""
    boot, namespace = boot_id(), mount_namespace()
    shown = {entry.source for entry in read_mountinfo()} if records else set[str]()
    live = []
    for number, record in records.items():
        mark = _finished_mark(places, record)
        if mark is not None:
            is_there = mark.exists()
        elif (record.boot, record.namespace) != (boot, namespace):
            is_there = False
        else:
            is_there = record.driver in _HOLDS or record.token in shown
        if is_there:
            live.append(number)
    return live


def _finished_mark(places: Places, record: MountRecord) -> Path | None:
    driver = DRIVERS.get(record.driver)
    return None if driver is None else driver.finished_mark(places, record)


def _is_ours(places: Places, record: MountRecord) -> bool:
    """Whether this process can tell that a mount is not there."""
    if _finished_mark(places, record) is not None:
        return True
    return record.boot != boot_id() or record.namespace == mount_namespace()


def _forget(store: Store, places: Places, gone: dict[int, MountRecord]) -> None:
    """Delete the records of mounts that are gone, and what only they needed."""
    if not gone:
        return
    table = MountTable(store.database)
    with store.write() as txn:
        for number in gone:
            table.delete(txn, number)
        left = dict(table.items(txn))
    _sweep(places, left)
    for record in gone.values():
        if record.driver in DRIVERS:
            DRIVERS[record.driver].discard(places, record)
        if record.owns_upper:
            shutil.rmtree(record.upper, ignore_errors=True)


def _sweep(places: Places, left: dict[int, MountRecord]) -> None:
    """Unmount what no record of this namespace needs any more."""
    here = [one for one in left.values() if one.namespace == mount_namespace()]
    wanted = {places.meta_mount(one.meta) for one in here}
    wanted |= {places.data_mount(number) for one in here for number in one.data}
    wanted |= {places.merged_mount(one.meta) for one in here if one.driver == _HOLD_MERGED}
    sweep_shared(places, wanted)


def _info(record: MountRecord, reason: str = "") -> MountInfo:
    upper = Path(record.upper) if record.upper and not record.owns_upper else None
    return MountInfo(
        Path(record.target),
        record.driver,
        record.diff_ids,
        record.rw,
        upper,
        record.created_ns,
        reason,
    )


def _check_target(store: Store, target: Path) -> Path:
    """The target as the kernel will show it."""
    place = Path(os.path.realpath(target))
    if not place.exists():
        raise NotFound(f"{target}: no such folder; make it first")
    if not place.is_dir():
        raise InvalidArgument(f"{target} is no folder")
    root = Path(os.path.realpath(store.layout.root))
    if place == root or root in place.parents or place in root.parents:
        raise InvalidArgument(f"{target} overlaps with the store {root}")
    return place


def _check_upper(options: MountOptions) -> Path | None:
    if options.upper is None:
        return None
    if not options.rw:
        raise InvalidArgument("a folder for changes needs a writable mount")
    if options.driver in ("fuse", "checkout", "hardlinks"):
        raise InvalidArgument(f"driver {options.driver} keeps no changes apart")
    if not options.upper.is_dir():
        raise NotFound(f"{options.upper}: no such folder; make it first")
    return Path(os.path.realpath(options.upper))
