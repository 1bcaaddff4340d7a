"""Mounts of images by their names: what `LayerStore.mount`, `umount` and `mounts` do."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.errors import NotFound
from layerstore.images.lookup import find_image
from layerstore.mount.mounter import (
    AUTO,
    Mount,
    MountOptions,
    list_mounts,
    mount_stack,
    umount_target,
)

if TYPE_CHECKING:
    import os

    from layerstore.mount.mounter import MountInfo
    from layerstore.store.store import Store

__all__ = ["mount", "mounts", "umount"]


def mount(
    store: Store,
    name: str,
    target: str | os.PathLike[str] | None = None,
    *,
    rw: bool = False,
    driver: str = AUTO,
    upper: str | os.PathLike[str] | None = None,
    verify: bool = False,
    platform: str | None = None,
) -> Mount:
    """Show an image's root filesystem in a folder, or in a temporary one that goes with the mount.

    See `MountOptions`; raises as `mount_stack` and `find_image`.
    """
    digest = find_image(store, name, platform)
    with store.read() as txn:
        record = store.catalog.image(txn, digest)
    if record is None:
        raise NotFound(f"no image {name} in this store")
    options = MountOptions(rw, driver, None if upper is None else Path(upper), verify)
    if target is not None:
        return mount_stack(store, record.diff_ids, Path(target), options)
    folder = Path(tempfile.mkdtemp(prefix="layerstore-"))
    try:
        made = mount_stack(store, record.diff_ids, folder, options)
    except BaseException:
        folder.rmdir()
        raise
    return Mount(store, made.info, is_temporary=True)


def umount(store: Store, target: str | os.PathLike[str]) -> None:
    """End the mount at a folder. Raises as `umount_target`."""
    umount_target(store, Path(target))


def mounts(store: Store) -> list[MountInfo]:
    """The mounts of a store, oldest first."""
    return list_mounts(store)
