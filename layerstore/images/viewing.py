"""Looking into images by their names: a view of one, its root filesystem as a tar, what differs between two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerstore.errors import NotFound
from layerstore.images.lookup import find_image
from layerstore.rootfstar import export_tar
from layerstore.treediff import diff
from layerstore.view import open_view

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.store.store import Store
    from layerstore.treediff import Change
    from layerstore.view import View

__all__ = ["diff_images", "export_image", "view_image"]


def diff_images(store: Store, lower: str, upper: str, platform: str | None = None) -> list[Change]:
    """What turns one image's root filesystem into another's; metadata only is read. Raises as `view_image`."""
    trees = [view_image(store, name, platform).tree for name in (lower, upper)]
    return diff(*trees)


def export_image(store: Store, name: str, platform: str | None = None) -> Iterator[bytes]:
    """An image's root filesystem as one tar, in blocks of a few MiB.

    Raises: as `view_image`, at once; as `export_tar`, within the tar.
    """
    return export_tar(view_image(store, name, platform))


def view_image(store: Store, name: str, platform: str | None = None) -> View:
    """An image's root filesystem, to be used while the store is open.

    Raises: NotFound, InvalidArgument: the name. CorruptStore, MalformedInput: as `merge`.
    """
    digest = find_image(store, name, platform)
    with store.read() as txn:
        record = store.catalog.image(txn, digest)
    if record is None:
        raise NotFound(f"no image {name} in this store")
    return open_view(store, record.diff_ids)
