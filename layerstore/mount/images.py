"""EROFS images on disk: made once, found again, made anew when they are missing or damaged.

    ready_images(stack)  ->  metadata image (one a stack)  +  numbers of the data images that have its contents

Every content is read from one data image of the store, so that the kernel has one inode, and one page cache, for it
whatever images show it. What a stack has that no data image has yet goes into a new data image. Images never change;
a data image that is damaged is given up, and what was in it goes into new ones.

A data image is durable before its rows in `contents` are; metadata images are a cache.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from layerstore import kernels
from layerstore.digest import raw
from layerstore.errors import FailedPrecondition, NotFound
from layerstore.formats.erofs import (
    DataFiles,
    place_extents,
    write_data_image,
    write_metadata_image,
)
from layerstore.merge import merge
from layerstore.mount.contents import name_contents
from layerstore.store import files
from layerstore.store.mountstate import ContentTable
from layerstore.tree import HOLE
from layerstore.view import layer_tree

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from layerstore.digest import DiffID
    from layerstore.mount.contents import Contents
    from layerstore.mount.places import Places
    from layerstore.store.database import Transaction
    from layerstore.store.store import Store
    from layerstore.tree import Tree

__all__ = [
    "StackImages",
    "check_stack",
    "merged_tree",
    "read_content_names",
    "ready_images",
    "stack_key",
]

_WRITER = b"layerstore metadata image 3\n"  # a change of the writer's output is a new number
_NAME = 32
_MOST_DATA = 64  # data images of one stack


@dataclass(frozen=True, slots=True)
class StackImages:
    """What shows a stack: its metadata image, and the data images that have its contents."""

    key: str
    data: tuple[int, ...]


def stack_key(store: Store, txn: Transaction, diff_ids: Sequence[DiffID]) -> str:
    """The name of a stack's metadata image: another one when a layer was removed and loaded again.

    Chunk numbers are in the image, by way of the contents' names, and such a layer has others.

    Raises: NotFound: a layer is not in this store.
    """
    rows = []
    for diff_id in diff_ids:
        identity = store.catalog.layer_identity(txn, diff_id)
        if identity is None:
            raise NotFound(f"no layer {diff_id} in this store")
        rows.append(raw(diff_id) + kernels.blake3(identity))
    return kernels.blake3(_WRITER + b"".join(rows)).hex()[:40]


def merged_tree(store: Store, diff_ids: Sequence[DiffID]) -> Tree:
    """The root filesystem of a stack. Raises: NotFound: a layer is not in this store."""
    return merge([layer_tree(store, diff_id) for diff_id in diff_ids])


def ready_images(
    store: Store, places: Places, diff_ids: Sequence[DiffID], *, with_data: bool = True
) -> StackImages:
    """Make what is missing of a stack's images, and return which they are.

    Without data, contents go into no data image and none is named.

    Raises: NotFound: a layer is not in this store. CorruptStore, StoreFull.
    """
    with store.read() as txn:
        key = stack_key(store, txn, diff_ids)
    found = _known_images(store, places, key, with_data=with_data)
    if found is None:
        with files.no_room("write the images of a mount"), places.building():
            found = _known_images(store, places, key, with_data=with_data)
            if found is None:
                with store.hold(*diff_ids):
                    found = _make_images(store, places, key, diff_ids, with_data=with_data)
    return found


def check_stack(store: Store, txn: Transaction, diff_ids: Sequence[DiffID], key: str) -> None:
    """See, in the transaction that records a mount, that its layers are those that its images were made of.

    Until then nothing keeps them from being collected. `key` is empty where there are no images.

    Raises: NotFound: a layer was removed. FailedPrecondition: and loaded again.
    """
    if stack_key(store, txn, diff_ids) != key and key:
        raise FailedPrecondition("a layer was removed and loaded again meanwhile; mount again")


def read_content_names(places: Places, key: str) -> list[bytes]:
    """The content names in a metadata image, sorted."""
    names = places.meta_names(key).read_bytes()
    return [names[at : at + _NAME] for at in range(0, len(names), _NAME)]


def _known_images(store: Store, places: Places, key: str, *, with_data: bool) -> StackImages | None:
    """The images of a stack, if all of them are there and whole."""
    try:
        facts = json.loads(places.meta_facts(key).read_bytes())
        data = tuple(map(int, facts["data"])) if with_data else ()
        wanted = {places.meta_image(key): bytes.fromhex(facts["image"])}
        names_hash = bytes.fromhex(facts["names"])
        has_data = bool(facts["has_data"])
    except (FileNotFoundError, ValueError, KeyError, OverflowError, TypeError):
        return None
    if with_data and not has_data:
        return None
    with store.read() as txn:
        table = ContentTable(store.database)
        for number in data:
            image_hash = table.image_hash(txn, number)
            if image_hash is None:
                return None
            wanted[places.data_image(number)] = image_hash
    if not with_data:
        wanted[places.meta_names(key)] = names_hash
    # An image that is mounted was looked at when it was mounted; the kernel reads it from then on.
    mounted = {places.meta_image(key): places.meta_mount(key)}
    mounted |= {places.data_image(number): places.data_mount(number) for number in data}
    run_device = places.run.stat().st_dev
    for path, image_hash in wanted.items():
        place = mounted.get(path)
        if place is not None and _device(place) not in (None, run_device):
            continue
        try:
            is_whole = kernels.blake3(path.read_bytes()) == image_hash
        except FileNotFoundError:
            is_whole = False
        if not is_whole:
            _give_up(store, [number for number in data if places.data_image(number) == path])
            return None
    return StackImages(key, data)


def _device(path: Path) -> int | None:
    try:
        return path.stat().st_dev
    except OSError:
        return None


def _give_up(store: Store, numbers: list[int]) -> None:
    if numbers and not store.read_only:
        with store.write() as txn:
            for number in numbers:
                ContentTable(store.database).forget_image(txn, number)


def _make_images(
    store: Store, places: Places, key: str, diff_ids: Sequence[DiffID], *, with_data: bool
) -> StackImages:
    tree = merged_tree(store, diff_ids)
    contents = name_contents(tree)
    data = _place_contents(store, places, tree, contents) if with_data else ()
    names = [None if name is None else name.hex().encode() for name in contents.of_inodes]
    image = write_metadata_image(tree, names, bytes.fromhex(key)[:16])
    heap = b"".join(sorted(contents.inodes))
    facts = {
        "stack": diff_ids,
        "data": data,
        "has_data": with_data,
        "image": kernels.blake3(image).hex(),
        "names": kernels.blake3(heap).hex(),
    }
    files.replace_file(places.meta_image(key), image)
    files.replace_file(places.meta_names(key), heap)
    files.replace_file(places.meta_facts(key), json.dumps(facts, sort_keys=True).encode())
    return StackImages(key, data)


def _place_contents(
    store: Store, places: Places, tree: Tree, contents: Contents
) -> tuple[int, ...]:
    """The data images that have these contents; what is in none goes into a new one."""
    table = ContentTable(store.database)
    wanted = sorted(contents.inodes)
    with store.read() as txn:
        found = table.lookup(txn, wanted)
        hashes = {number: table.image_hash(txn, number) for number in set(found.values())}
    lost = {number for number, known in hashes.items() if not _is_whole(places, number, known)}
    _give_up(store, sorted(lost))
    used = _worth_mounting([number for number in found.values() if number not in lost])
    # In the order of the tree, in which they will be read: their inodes then come from disk one block after another.
    missing = [name for name in contents.inodes if found.get(name, 0) not in used]
    if missing:
        used.add(_add_data_image(store, places, tree, contents, missing))
    return tuple(sorted(used))


def _worth_mounting(numbers: list[int]) -> set[int]:
    """The data images to read from, given that of each content.

    One stack may not need too many, as overlayfs takes 500 layers: what is in those with the fewest of its contents
    then goes into a new one, for all stacks to come.
    """
    by_use = [number for number, _ in Counter(numbers).most_common()]
    return set(by_use if len(by_use) <= _MOST_DATA else by_use[: _MOST_DATA // 2])


def _is_whole(places: Places, number: int, image_hash: bytes | None) -> bool:
    try:
        return kernels.blake3(places.data_image(number).read_bytes()) == image_hash
    except FileNotFoundError:
        return False


def _add_data_image(
    store: Store, places: Places, tree: Tree, contents: Contents, names: list[bytes]
) -> int:
    inodes = np.array([contents.inodes[name] for name in names], "i8")
    first = tree.inodes["extent"][inodes].astype("i8")
    counts = tree.inodes["extents"][inodes].astype("i8")
    at = np.arange(int(counts.sum())) + np.repeat(first - np.cumsum(counts) + counts, counts)
    extents = tree.extents[at]
    with store.read() as txn:
        numbers = extents["number"]
        places_of = store.index.places(txn, numbers[numbers != HOLE])
        size = store.chunkfile.size(txn)
    spans = place_extents(extents, places_of)
    table = ContentTable(store.database)
    with store.write() as txn:
        number = table.next_image(txn)
    hex_names = [name.hex().encode() for name in names]
    uuid = kernels.blake3(b"".join(names))[:16]
    image = write_data_image(DataFiles(hex_names, counts, spans), size, uuid)
    files.replace_file(places.data_image(number), image)
    files.fsync_directory(places.root)  # the folder itself may be new
    image_hash = kernels.blake3(image)
    with store.write() as txn:
        table.add_image(txn, number, image_hash, names)
    return number
