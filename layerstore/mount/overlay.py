"""overlayfs over a metadata image and data layers, and the private mounts that all mounts of a store share.

    target = overlay( upper | metadata image (names, modes, …; files redirect to contents) || data layers (contents) )

A file's bytes are an inode of a data layer, and a data layer is mounted once for a store: that makes the page cache
shared. A second mount of the same image would be a second filesystem with a cache of its own (measured), hence the
private places under ROOT/run and the lock around them. The private mounts stay until no record needs them.

Source: Linux `Documentation/filesystems/overlayfs.rst`, "Data-only lower layers"; erofs `device=`, `directio`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.errors import LayerstoreError, Unsupported
from layerstore.mount.linux import DetachedMount, MountFlag, create_mount, unmount
from layerstore.mount.loop import LOOP_CONTROL, loop_device
from layerstore.mount.mountinfo import read_mountinfo
from layerstore.mount.sysfs import read_far_ahead

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from layerstore.mount.linux import Option
    from layerstore.mount.places import Places

__all__ = [
    "copy_attributes",
    "create_image_mount",
    "create_overlay",
    "mount_merged",
    "mount_overlay",
    "mount_shared",
    "overlay_options",
    "sweep_shared",
]

_PRIVATE = MountFlag.READ_ONLY | MountFlag.NO_SUID | MountFlag.NO_DEVICES
_OVERLAY = "trusted.overlay."
_JOINED = {
    "lowerdir+": ":",
    "datadir+": "::",
}  # what parts such a layer from the one before, in one option


def mount_shared(
    places: Places,
    meta: str,
    data: Sequence[int],
    chunks: Path | None,
    *,
    by_loop: bool = False,
) -> None:
    """Mount a stack's images at their private places, those that are not. Call it under the lock of mounts.

    `chunks` is the chunk file, which the data images map. Where the kernel mounts no image from a file, or
    `by_loop`, the metadata image is mounted from a loop device.

    Raises: as `create_mount`.
    """
    run_device = places.run.stat().st_dev
    for number in data:
        options: list[Option] = [("source", places.data_image(number))]
        options += [("device", chunks)] if chunks is not None else []
        # Without these the compressed bytes would be cached beside what they decode to.
        options += ["directio", ("cache_strategy", "disabled"), "ro"]
        place = places.data_mount(number)
        with _shown(place, run_device) as is_new:
            if is_new:
                with create_mount("erofs", options, _PRIVATE) as mount:
                    mount.attach(place)
                read_far_ahead(place)
    place = places.meta_mount(meta)
    with _shown(place, run_device) as is_new:
        if is_new:
            with create_image_mount(places.meta_image(meta), by_loop=by_loop) as mount:
                mount.attach(place)


def create_image_mount(image: Path, *, by_loop: bool = False) -> DetachedMount:
    """A metadata image, not mounted yet; as for `mount_shared`. Raises: as `create_mount`."""
    if not by_loop:
        try:
            return create_mount("erofs", [("source", image), "ro"], _PRIVATE)
        except Unsupported:
            if not LOOP_CONTROL.exists():
                raise
    with loop_device(image) as device:
        return create_mount("erofs", [("source", device), "ro"], _PRIVATE)


def overlay_options(places: Places, meta: str, data: Sequence[Path], *, rw: bool) -> list[Option]:
    """The lower layers of a stack, as options of overlayfs since Linux 6.8."""
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
    in_one_option: bool = False,
) -> None:
    """Mount a stack at `target`, over what is there; `upper` has or gets `fs` and `work`.

    All layers are named in one option where the kernel takes them in no other way (before 6.8), or if
    `in_one_option`; that is for one data layer at most.

    Raises: as `create_mount`.
    """
    lower = overlay_options(places, meta, data, rw=upper is not None)
    flags, above = _above(places, meta, upper)
    others: list[Option] = [("source", token), *above]
    with create_overlay(lower, others, flags, in_one_option=in_one_option) as mount:
        mount.attach(target)


def create_overlay(
    lower: Sequence[Option],
    others: Sequence[Option],
    flags: MountFlag,
    *,
    in_one_option: bool = False,
) -> DetachedMount:
    """An overlay of layers as `overlay_options` names them, not mounted yet. The rest is as of `mount_overlay`."""
    if not in_one_option:
        try:
            return create_mount("overlay", [*others, *lower], flags)
        except Unsupported:
            if sum(option[0] == "datadir+" for option in lower) > 1:
                raise
    with _one_option(lower) as options:
        return create_mount("overlay", [*others, *options], flags)


def _above(places: Places, meta: str, upper: Path | None) -> tuple[MountFlag, list[Option]]:
    """How the overlay is written to, if it is."""
    if upper is None:
        return MountFlag.READ_ONLY, []
    changes, work = upper / "fs", upper / "work"
    if not changes.is_dir():
        changes.mkdir(mode=0o700, parents=True)
        copy_attributes(places.meta_mount(meta), changes)
    work.mkdir(mode=0o700, exist_ok=True)
    return MountFlag.NONE, [("upperdir", changes), ("workdir", work)]


@contextmanager
def _one_option(options: Sequence[Option]) -> Iterator[list[Option]]:
    """The same with `lowerdir=META[:EMPTY][::DATA]`; by descriptors, as fsconfig(2) takes 255 bytes."""
    with ExitStack() as stack:
        text = ""
        others: list[Option] = []
        for option in options:
            if isinstance(option, tuple) and option[0] in _JOINED and isinstance(option[1], Path):
                fd = os.open(option[1], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                text += f"{_JOINED[option[0]] if text else ''}/proc/self/fd/{fd}"
            else:
                others.append(option)
        yield [("lowerdir", text), *others]


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


@contextmanager
def _shown(place: Path, run_device: int) -> Iterator[bool]:
    """A private place to mount at in the block: whether nothing is there. It goes again if that fails."""
    place.mkdir(mode=0o700, exist_ok=True)
    if place.stat().st_dev != run_device:
        yield False
        return
    try:
        yield True
    except (LayerstoreError, OSError):
        with suppress(OSError):
            place.rmdir()
        raise
