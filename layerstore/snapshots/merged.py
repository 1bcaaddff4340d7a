"""An upper directory over its lower one, read-only and without a place in the tree of mounts.

overlayfs keeps some files of an upper directory without their contents (metacopy) and some directories without their
entries (redirect). With the upper directory as the topmost of the *lower* ones, overlayfs itself puts them together,
and nothing can be written while they are read.

Source: Linux, Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.mount.linux import DetachedMount, MountFlag, create_mount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerstore.mount.linux import Option
    from layerstore.snapshots.lower import Lower

__all__ = ["merged_view"]


@contextmanager
def merged_view(upper: Path, lower: Lower | None) -> Iterator[Callable[[], Path]]:
    """Gives a function that mounts at its first call and says where the merged root can be read, for this block.

    The function raises: Unsupported, FailedPrecondition: this process cannot mount.
    """
    mounted: list[DetachedMount] = []

    def merged() -> Path:
        if lower is None:
            return upper
        if not mounted:
            options: list[Option] = [("source", "overlay"), ("redirect_dir", "follow")]
            options += [("metacopy", "on"), ("lowerdir+", upper), ("lowerdir+", lower.root)]
            options += [("datadir+", path) for path in lower.data]
            mounted.append(create_mount("overlay", [*options, "ro"], MountFlag.READ_ONLY))
        return Path(f"/proc/self/fd/{mounted[0].fd}")

    try:
        yield merged
    finally:
        for mount in mounted:
            mount.close()
