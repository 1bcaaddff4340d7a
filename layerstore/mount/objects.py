"""The driver `objects`: overlayfs over the same metadata image, with contents from plain files.

    ROOT/objects/ab/cdef…    the content of that name, uncompressed, readable by root only

A cache: filled for what is mounted, each content once, and cut back to a budget of bytes by taking away what no mount
needs, images that were mounted longest ago first. Files appear whole (written aside, synced, renamed).

For kernels whose EROFS cannot read the chunk file, and where the speed of plain files matters more than disk.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from layerstore.cache import cached_reader
from layerstore.digest import DiffID, parse_digest
from layerstore.errors import LayerstoreError
from layerstore.formats.erofs import content_path, write_metadata_image
from layerstore.merge import merge
from layerstore.mount.checkout import read_ahead, write_sparse
from layerstore.mount.contents import name_contents
from layerstore.mount.driver import Needs, Support
from layerstore.mount.images import merged_tree, read_content_names, ready_images
from layerstore.mount.links import idle_links
from layerstore.mount.linux import MountFlag, unmount
from layerstore.mount.overlay import (
    create_image_mount,
    create_overlay,
    mount_overlay,
    mount_shared,
)
from layerstore.store import files
from layerstore.store.mountstate import MountTable
from layerstore.tree import EXTENT, ROW, Entries, Kind, LayerTree
from layerstore.view import View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.mount.linux import Option
    from layerstore.mount.places import Places
    from layerstore.store.mountstate import MountRecord
    from layerstore.store.store import Store

__all__ = ["BUDGET", "ObjectsDriver", "evict_objects", "fill_objects"]

BUDGET = 16 << 30  # bytes of contents that stay when no mount needs them
_GROUP = 256 << 20  # bytes of contents that are synced at once

_TEXT = b"layerstore reads this through overlayfs\n"


class ObjectsDriver:
    """See the module. Thread safety: stateless."""

    name = "objects"

    def __init__(self, budget: int = BUDGET, *, as_before_6_8: bool = False) -> None:
        """Keep at most `budget` bytes of contents that no mount needs.

        What later kernels have is tried first, unless it is not to be: image files (6.12), an option a layer (6.8).
        """
        self._budget, self._old = budget, as_before_6_8

    def finished_mark(self, places: Places, record: MountRecord) -> Path | None:
        """None: the kernel shows it."""
        del places, record
        return None

    def probe(self, store: Store, places: Places, *, rw: bool) -> Support:
        """Make a small overlay of this sort, and read a file through it."""
        del store, rw
        if os.geteuid() != 0:
            return Support(False, "mounting needs root")
        reason = _probe(places, old=self._old)
        return Support(not reason, reason)

    def prepare(self, store: Store, places: Places, diff_ids: Sequence[DiffID]) -> Needs:
        """Make the metadata image, if it is missing."""
        return Needs(ready_images(store, places, diff_ids, with_data=False).key)

    def mount(self, store: Store, places: Places, record: MountRecord) -> None:
        """Fill in the contents that are missing, and mount. The record keeps them from eviction."""
        names = read_content_names(places, record.meta)
        os.utime(places.meta_names(record.meta))  # when it was used last
        diff_ids = [DiffID(parse_digest(diff_id)) for diff_id in record.diff_ids]
        if fill_objects(store, places, diff_ids, names):
            evict_objects(store, places, self._budget)
        mount_shared(places, record.meta, (), None, by_loop=self._old)
        mount_overlay(
            places,
            record.meta,
            [places.objects],
            Path(record.target),
            token=record.token,
            upper=Path(record.upper) if record.upper else None,
            in_one_option=self._old,
        )

    def umount(self, store: Store, places: Places, target: Path) -> None:
        """Unmount the overlay; the contents stay for the next time."""
        del store, places
        unmount(target)

    def discard(self, places: Places, record: MountRecord) -> None:
        """Nothing is kept for one mount."""


def fill_objects(
    store: Store, places: Places, diff_ids: Sequence[DiffID], names: Sequence[bytes]
) -> int:
    """Write the contents that are missing; returns how many. Raises: CorruptStore: a chunk is damaged; StoreFull."""
    missing = set(names) - _present(places)
    if not missing:
        return 0
    tree = merged_tree(store, diff_ids)
    view = View(tree, cached_reader(store))
    inodes = {inode: name for name, inode in name_contents(tree).inodes.items() if name in missing}
    # In the order of the chunks, which is roughly that of the chunk file.
    order = sorted(inodes, key=lambda inode: int(tree.extents_of(inode)["number"].max()))
    for folder in {_object(places, name).parent for name in missing}:
        folder.mkdir(mode=0o700, exist_ok=True)
    fill = TemporaryDirectory(prefix="fill-", dir=places.run)
    with files.no_room("write contents"), fill as aside:
        written: list[tuple[Path, Path]] = []
        size = 0
        for inode in read_ahead(view, order):
            path = Path(aside, inodes[inode].hex())
            _write(view, inode, path)
            written.append((path, _object(places, inodes[inode])))
            size += int(tree.inodes["size"][inode])
            if size >= _GROUP:
                _publish(places, written)
                size = 0
        _publish(places, written)
    return len(missing)


def _present(places: Places) -> set[bytes]:
    """The names of the contents that are there."""
    found: set[bytes] = set()
    with os.scandir(places.objects) as folders:
        for folder in folders:
            with os.scandir(folder) as entries:
                found.update(bytes.fromhex(folder.name + entry.name) for entry in entries)
    return found


def evict_objects(store: Store, places: Places, budget: int) -> int:
    """Take away contents until those that no mount needs, and links of no checkout, fit the budget.

    Returns the bytes taken away.
    """
    with store.read() as txn:
        records = [record for _, record in MountTable(store.database).items(txn)]
    needed: set[bytes] = set()
    for record in records:
        if record.driver == "objects":
            needed.update(read_content_names(places, record.meta))
    last_use: dict[bytes, float] = {}
    for path in places.images.glob("meta-*.names"):
        used = path.stat().st_mtime
        for name in read_content_names(places, path.name[len("meta-") : -len(".names")]):
            last_use[name] = max(used, last_use.get(name, 0.0))
    idle = []
    for path in places.objects.glob("??/*"):
        name = bytes.fromhex(path.parent.name + path.name)
        if name not in needed:
            idle.append((last_use.get(name, 0.0), path, path.stat().st_blocks * 512))
    for path, status in idle_links(places.links):
        idle.append((status.st_ctime, path, status.st_blocks * 512))
    idle.sort(key=lambda one: one[0])
    over = sum(size for _, _, size in idle) - budget
    taken = 0
    for _, path, size in idle:
        if taken >= over:
            break
        path.unlink()
        taken += size
    return taken


def _object(places: Places, name: bytes) -> Path:
    return places.objects / os.fsdecode(content_path(name.hex().encode())[1:])


def _write(view: View, inode: int, path: Path) -> None:
    """Write a content; zeros become holes."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o400), "wb") as file:
        write_sparse(file, view, inode)


def _publish(places: Places, written: list[tuple[Path, Path]]) -> None:
    """Make files durable, all at once, and then show them."""
    if not written:
        return
    files.sync_filesystem(places.objects)
    for path, final in written:
        path.replace(final)
    written.clear()


def _probe(places: Places, *, old: bool) -> str:
    """Why this kernel cannot do it, for people; empty if it can."""
    rows = np.zeros(2, ROW)
    rows["kind"], rows["mode"] = (Kind.DIRECTORY, Kind.FILE), (0o755, 0o644)
    rows["size"][1] = rows["stored"][1] = len(_TEXT)
    rows["path"][1] = 1
    extents = np.array([(1, len(_TEXT))], EXTENT)
    tree = merge([LayerTree(Entries(rows, b"a", b"", b""), extents)])
    names = [None, b"00probe"]
    with TemporaryDirectory(prefix="probe-", dir=places.run) as scratch:
        folder = Path(scratch)
        meta, data, image = folder / "meta", folder / "data", folder / "image"
        (data / "00").mkdir(parents=True)
        (data / "00" / "probe").write_bytes(_TEXT)
        meta.mkdir()
        image.write_bytes(write_metadata_image(tree, names, bytes(16)))
        try:
            with create_image_mount(image, by_loop=old) as mount:
                mount.attach(meta)
            try:
                lower: list[Option] = [("lowerdir+", meta), ("datadir+", data)]
                others: list[Option] = [("metacopy", "on"), ("redirect_dir", "follow")]
                flags = MountFlag.READ_ONLY
                with create_overlay(lower, others, flags, in_one_option=old) as overlay:
                    fd = os.open("a", os.O_RDONLY, dir_fd=overlay.fd)
                    with os.fdopen(fd, "rb") as file:
                        read = file.read()
            finally:
                unmount(meta)
        except (LayerstoreError, OSError) as error:
            return str(error)
    return "" if read == _TEXT else "the kernel reads other bytes than were stored"
