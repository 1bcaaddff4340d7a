"""The driver `erofs`: overlayfs over EROFS images that read the chunk file in place. Nothing is copied.

Root and Linux 6.15 or later are needed; a small image that is mounted and read once a boot tells (`mount.probe`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.mount.driver import Needs, Support
from layerstore.mount.images import ready_images
from layerstore.mount.linux import unmount
from layerstore.mount.mountinfo import boot_id
from layerstore.mount.overlay import mount_overlay, mount_shared
from layerstore.mount.probe import probe_erofs
from layerstore.store import files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.digest import DiffID
    from layerstore.mount.places import Places
    from layerstore.store.mountstate import MountRecord
    from layerstore.store.store import Store

__all__ = ["ErofsDriver"]


class ErofsDriver:
    """See the module. Thread safety: stateless."""

    name = "erofs"

    def finished_mark(self, places: Places, record: MountRecord) -> Path | None:
        """None: the kernel shows it."""
        del places, record
        return None

    def probe(self, store: Store, places: Places, *, rw: bool) -> Support:
        """Mount a small image and read it, once a boot: a yes is remembered in ROOT/run."""
        del rw
        if os.geteuid() != 0:
            return Support(False, "mounting needs root")
        remembered = places.run / "probe-erofs.json"
        now = {"boot": boot_id(), "user": os.geteuid()}
        try:
            if json.loads(remembered.read_bytes()) == now:
                return Support(True)
        except (FileNotFoundError, ValueError):
            pass
        reason = probe_erofs(store.layout.tmp)
        if not reason:
            files.replace_file(remembered, json.dumps(now).encode())
        return Support(not reason, reason)

    def prepare(self, store: Store, places: Places, diff_ids: Sequence[DiffID]) -> Needs:
        """Make the images that are missing."""
        images = ready_images(store, places, diff_ids)
        return Needs(images.key, images.data)

    def mount(self, store: Store, places: Places, record: MountRecord) -> None:
        """Mount the images that are not, and the overlay."""
        mount_shared(places, record.meta, record.data, store.layout.chunks)
        if record.target:
            mount_overlay(
                places,
                record.meta,
                [places.data_mount(number) for number in record.data],
                Path(record.target),
                token=record.token,
                upper=Path(record.upper) if record.upper else None,
            )

    def umount(self, store: Store, places: Places, target: Path) -> None:
        """Unmount the overlay; the private mounts go when nobody needs them."""
        del store, places
        unmount(target)

    def discard(self, places: Places, record: MountRecord) -> None:
        """Nothing is kept for one mount."""
