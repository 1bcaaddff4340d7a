"""What callers say and learn about a snapshot: its key and labels, checked; what `stat` and `usage` tell."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from layerstore.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from layerstore.store.snapstate import SnapshotKind, SnapshotRecord

__all__ = [
    "Info",
    "Usage",
    "changed_labels",
    "check_key",
    "checked_labels",
    "disk_usage",
    "info_of",
]

MAX_KEY = 4096  # bytes
MAX_LABEL = 4096  # bytes of a label's name and value, as containerd's


@dataclass(frozen=True, slots=True)
class Info:
    """A snapshot, as `stat` tells it.

    Attributes:
        created_ns: since 1970; of a committed one, when it was committed.
        updated_ns: when the labels were last changed.
    """

    name: str
    parent: str
    kind: SnapshotKind
    labels: Mapping[str, str] = field(hash=False)
    created_ns: int
    updated_ns: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Disk space of a snapshot's own changes: bytes of blocks, and inodes, the root directory among them."""

    size: int
    inodes: int


def info_of(record: SnapshotRecord) -> Info:
    """A record, as callers see it."""
    return Info(
        record.key,
        record.parent,
        record.kind,
        record.labels,
        record.created_ns,
        record.updated_ns,
    )


def check_key(key: str) -> None:
    """Raises: InvalidArgument: the key, or name, of a snapshot cannot be one."""
    if not key:
        raise InvalidArgument("the key of a snapshot is empty: invalid argument")
    if len(os.fsencode(key)) > MAX_KEY or "\0" in key:
        raise InvalidArgument(
            f"the key of a snapshot is longer than {MAX_KEY} bytes, or has a NUL: invalid argument"
        )


def checked_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """A copy of the labels. Raises: InvalidArgument: one has no name, or is too long."""
    checked = dict(labels or {})
    for name, value in checked.items():
        if not name or len(name.encode()) + len(value.encode()) > MAX_LABEL:
            raise InvalidArgument(
                f"label {name[:40]!r}: no name, or name and value of more than {MAX_LABEL} bytes: "
                "invalid argument"
            )
    return checked


def changed_labels(
    old: Mapping[str, str], new: Mapping[str, str] | None, fieldpaths: Sequence[str]
) -> dict[str, str]:
    """Labels after an update of all of them (no field paths, or `labels`), or of those that `labels.NAME` names.

    A named label that `new` does not have, or has empty, is removed.

    Raises: InvalidArgument: another field, or a label that cannot be.
    """
    wanted = checked_labels(new)
    changed = dict(old)
    for path in fieldpaths or ("labels",):
        field_name, _, name = path.partition(".")
        if field_name != "labels" or path == "labels.":
            raise InvalidArgument(f"cannot update field {path!r} of a snapshot: invalid argument")
        if not name:
            changed = dict(wanted)
        elif wanted.get(name):
            changed[name] = wanted[name]
        else:
            changed.pop(name, None)
    return changed


def disk_usage(upper: Path) -> Usage:
    """As du(1) counts; what vanishes meanwhile does not count."""
    seen: set[tuple[int, int]] = set()
    size = 0
    pending = [os.fspath(upper)]
    first = os.lstat(upper)
    seen.add((first.st_dev, first.st_ino))
    size += first.st_blocks * 512
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if (status.st_dev, status.st_ino) in seen:
                        continue
                    seen.add((status.st_dev, status.st_ino))
                    size += status.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except FileNotFoundError:
            continue
    return Usage(size, len(seen))
