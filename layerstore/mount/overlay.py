"""overlayfs over a metadata image and data layers, and the private mounts that all mounts of a store share.

    target = overlay( upper | metadata image (names, modes, …; files redirect to contents) || data layers (contents) )

A file's bytes are an inode of a data layer, and a data layer is mounted once for a store: that makes the page cache
shared. A second mount of the same image would be a second filesystem with a cache of its own (measured), hence the
private places under ROOT/run and the lock around them. The private mounts stay until no record needs them.

Source: Linux `Documentation/filesystems/overlayfs.rst`, "Data-only lower layers"; erofs `device=`, `directio`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.errors import LayerstoreError
from layerstore.mount.linux import MountFlag, create_mount, unmount
from layerstore.mount.mountinfo import read_mountinfo
from layerstore.mount.sysfs import read_far_ahead

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from layerstore.mount.linux import Option
    from layerstore.mount.places import Places

__all__ = [
    "copy_attributes",
    "mount_merged",
    "mount_overlay",
    "mount_shared",
    "overlay_options",
    "sweep_shared",
]

_PRIVATE = MountFlag.READ_ONLY | MountFlag.NO_SUID | MountFlag.NO_DEVICES
_OVERLAY = "trusted.overlay."


def mount_shared(places: Places, meta: str, data: Sequence[int], chunks: Path | None) -> None:
    """Mount a stack's images at their private places, those that are not. Call it under the lock of mounts.

    `chunks` is the chunk file, which the data images map.

    Raises: as `create_mount`.
    """
    run_device = places.run.stat().st_dev
    for number in data:
        options: list[Option] = [("source", places.data_image(number))]
        options += [("device", chunks)] if chunks is not None else []
        # Without these the compressed bytes would be cached beside what they decode to.
        options += ["directio", ("cache_strategy", "disabled"), "ro"]
        if _mount_once(places.data_mount(number), options, run_device):
            read_far_ahead(places.data_mount(number))
    _mount_once(places.meta_mount(meta), [("source", places.meta_image(meta)), "ro"], run_device)


def overlay_options(places: Places, meta: str, data: Sequence[Path], *, rw: bool) -> list[Option]:
    """The lower layers of a stack, as options of overlayfs."""
    options: list[Option] = [("lowerdir+", places.meta_mount(meta))]
    if not data:
        options.append(("lowerdir+", places.empty))  # one lower layer alone is refused
    options += [("datadir+", path) for path in data]
    return [*options, ("metacopy", "on"), ("redirect_dir", "on" if rw else "follow")]


def mount_overlay(
    places: Places,
    meta: str,
    data: Sequence[Path],
    target: Path,
    *,
    token: str,
    upper: Path | None,
) -> None:
    """Mount a stack at `target`, over what is there; `upper` has or gets `fs` and `work`. Raises: as `create_mount`."""
    options: list[Option] = [("source", token)]
    options += overlay_options(places, meta, data, rw=upper is not None)
    flags = MountFlag.READ_ONLY
    if upper is not None:
        changes, work = upper / "fs", upper / "work"
        if not changes.is_dir():
            changes.mkdir(mode=0o700, parents=True)
            copy_attributes(places.meta_mount(meta), changes)
        work.mkdir(mode=0o700, exist_ok=True)
        options += [("upperdir", changes), ("workdir", work)]
        flags = MountFlag.NONE
    with create_mount("overlay", options, flags) as mount:
        mount.attach(target)


def copy_attributes(source: Path, target: Path) -> None:
    """Give a folder the owner, mode, extended attributes and times of another: an overlay's root shows its upper's."""
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(status.st_mode & 0o7777)
    for name in os.listxattr(source):
        if not name.startswith(_OVERLAY):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))


def mount_merged(places: Places, meta: str, data: Sequence[Path]) -> None:
    """Mount a stack, whole and read-only, at its private place, if it is not. Call it under the lock of mounts."""
    place = places.merged_mount(meta)
    place.mkdir(mode=0o700, exist_ok=True)
    if os.path.ismount(place):
        return
    try:
        mount_overlay(places, meta, data, place, token="layerstore:merged", upper=None)
    except (LayerstoreError, OSError):
        with suppress(OSError):
            place.rmdir()
        raise


def sweep_shared(places: Places, wanted: Collection[Path]) -> None:
    """Unmount the private mounts that are not among those wanted. Call it under the lock of mounts."""
    kept = set(map(str, wanted))
    ours = tuple(f"{places.run}/{kind}/" for kind in ("merged", "meta", "data"))
    for entry in reversed(read_mountinfo()):
        if entry.target.startswith(ours) and entry.target not in kept:
            # Somebody may look inside; lazily, it goes with him, and a mount made meanwhile is another one.
            unmount(Path(entry.target), lazy=True)
            with suppress(OSError):
                Path(entry.target).rmdir()


def _mount_once(place: Path, options: Sequence[Option], run_device: int) -> bool:
    """Whether it was not mounted yet."""
    place.mkdir(mode=0o700, exist_ok=True)
    if place.stat().st_dev != run_device:
        return False
    try:
        with create_mount("erofs", options, _PRIVATE) as mount:
            mount.attach(place)
    except (LayerstoreError, OSError):
        with suppress(OSError):
            place.rmdir()
        raise
    return True
