"""What mounts have left and no mount will need: images of stacks that are gone, their rows, contents over the budget.

A metadata image is kept while a mount uses it, or its layers are those that it was made of; a data image while one of those
names it. So a mount that has just looked at its images, and is not recorded yet, finds them, or that its layers are gone.

Source: docs/mounting.md, "What is where".
"""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, NamedTuple

from layerstore.digest import DiffID, parse_digest
from layerstore.errors import NotFound
from layerstore.mount.images import read_content_names, stack_key
from layerstore.mount.links import idle_links
from layerstore.mount.objects import BUDGET, evict_objects
from layerstore.mount.places import Places
from layerstore.store.mountstate import ContentTable, MountTable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layerstore.store.mountstate import MountRecord
    from layerstore.store.store import Store

__all__ = ["sweep_leftovers"]

_ROWS = 500  # rows of `contents` in one transaction


class _Kept(NamedTuple):
    """Keys of metadata images, numbers of data images, names of contents that stay."""

    metas: set[str]
    data: set[int]
    names: set[bytes]


def sweep_leftovers(store: Store, *, idle: bool = False) -> int:
    """Delete what no mount needs; returns the bytes that came back. `idle` contents go whatever the budget.

    Raises: CorruptStore: a record of a mount is damaged.
    """
    places = Places.of(store.layout.root)
    if not places.images.is_dir():
        return 0
    places.make()
    with places.building():
        kept = _what_stays(store, places)
        freed = _sweep_images(store, places, kept)
    with places.mounting():
        freed += _sweep_unfinished(places)
        freed += _sweep_objects(places, kept.names)
        freed += sum(_unlink(path) for path, _ in idle_links(places.links))
        freed += evict_objects(store, places, 0 if idle else BUDGET)
        freed += _sweep_uppers(store, places)
    return freed


def _what_stays(store: Store, places: Places) -> _Kept:
    records = _records(store)
    kept = _Kept(
        {one.meta for one in records if one.meta}, {n for r in records for n in r.data}, set()
    )
    for path in places.images.glob("meta-*.json"):
        key = path.name[len("meta-") : -len(".json")]
        try:
            facts = json.loads(path.read_bytes())
            data = set(map(int, facts["data"]))
            stack = [DiffID(parse_digest(diff_id)) for diff_id in facts["stack"]]
        except (FileNotFoundError, LookupError, TypeError, ValueError):
            continue  # of an earlier version, or damaged: made again when it is needed
        if key not in kept.metas and not _is_current(store, stack, key):
            continue
        kept.metas.add(key)
        kept.data.update(data)
    for key in kept.metas:
        if places.meta_names(key).exists():
            kept.names.update(read_content_names(places, key))
    return kept


def _is_current(store: Store, stack: list[DiffID], key: str) -> bool:
    try:
        with store.read() as txn:
            return stack_key(store, txn, stack) == key
    except NotFound:
        return False


def _records(store: Store) -> list[MountRecord]:
    with store.read() as txn:
        return [record for _, record in MountTable(store.database).items(txn)]


def _sweep_images(store: Store, places: Places, kept: _Kept) -> int:
    freed = 0
    for path in sorted(places.images.glob("meta-*"), reverse=True):  # the facts before the image
        if path.name[len("meta-") :].partition(".")[0] not in kept.metas:
            freed += _unlink(path)
    table = ContentTable(store.database)
    with store.read() as txn:
        known = set(table.images(txn))
    for number in sorted(known - kept.data):
        with store.write() as txn:
            table.forget_image(txn, number)
    for path in places.images.glob("data-*.erofs"):
        text = path.name[len("data-") : -len(".erofs")]
        if text.isdigit() and int(text) not in kept.data:
            freed += _unlink(path)
    _forget_contents(store, kept)
    return freed


def _forget_contents(store: Store, kept: _Kept) -> None:
    """Delete the rows of contents that nothing shows any more: chunk numbers in their names may be freed."""
    table = ContentTable(store.database)
    with store.read() as txn:
        stale = [
            name
            for name, number in table.names(txn)
            if number not in kept.data or name not in kept.names
        ]
    for at in range(0, len(stale), _ROWS):
        with store.write() as txn:
            table.forget_names(txn, stale[at : at + _ROWS])


def _sweep_objects(places: Places, names: set[bytes]) -> int:
    freed = 0
    for folder, path in _objects(places):
        try:
            name = bytes.fromhex(folder + path.name)
        except ValueError:
            continue
        if name not in names:
            freed += _unlink(path)
    return freed


def _objects(places: Places) -> Iterator[tuple[str, Path]]:
    for path in places.objects.glob("??/*"):
        yield path.parent.name, path


def _sweep_uppers(store: Store, places: Places) -> int:
    """Changes of mounts that have no record any more; the record is there before the folder is."""
    known = {record.upper for record in _records(store)}
    freed = 0
    for path in (places.root / "uppers").iterdir():
        if str(path) not in known:
            freed += _remove_tree(path)
    return freed


def _sweep_unfinished(places: Places) -> int:
    """What a killed process was writing for ROOT/objects or ROOT/links; who writes there now holds the lock of mounts."""
    left = [*places.run.glob("fill-*"), *places.run.glob("links-*")]
    return sum(map(_remove_tree, left))


def _remove_tree(root: Path) -> int:
    """Remove a folder; returns the bytes that its files took, of those with other names a share."""
    found = (
        os.lstat(os.path.join(folder, name))  # noqa: PTH118 - hot
        for folder, _, names in os.walk(root)
        for name in names
    )
    freed = sum(status.st_blocks * 512 // status.st_nlink for status in found)
    shutil.rmtree(root, ignore_errors=True)
    return freed


def _unlink(path: Path) -> int:
    try:
        size = path.stat().st_blocks * 512
        path.unlink()
    except FileNotFoundError:
        return 0
    return size
