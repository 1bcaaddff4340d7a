r"""What to mount to see a snapshot, as containerd and mount(2) take it: computed from names, without touching a disk.

    active, nothing below   bind     source=UPPER                     rw,rbind
    view, nothing below     bind     source=UPPER (empty)             ro,rbind
    view of plain files     bind     source=LOWER                     ro,rbind
    view with data layers   overlay  lowerdir=LOWER::DATA…            metacopy=on,redirect_dir=follow
    active on a stack       overlay  workdir,upperdir,lowerdir=LOWER  index=off

A stack is merged before it is shown, so there is one lower directory however many layers there are. In `lowerdir`, a
backslash stands before `\`, `:` and `,`.

Source: Linux, Documentation/filesystems/overlayfs.rst ("Data-only lower layers"); containerd's overlay snapshotter.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from layerstore.snapshots.lower import Lower

__all__ = ["MAX_OPTIONS", "MountSpec", "active_specs", "options_length", "view_specs"]

# mount(2) takes a page of options; from 512 bytes less on, containerd's client rewrites `lowerdir` in a way that knows
# nothing of data layers (its `mount_linux.go`).
MAX_OPTIONS = 4096 - 512 - 1

_SPECIAL = re.compile(r"([\\:,])")


@dataclass(frozen=True, slots=True)
class MountSpec:
    """One mount: filesystem type, source and options of mount(8)."""

    type: str
    source: str
    options: tuple[str, ...]


def active_specs(upper: Path, work: Path, lower: Lower | None) -> list[MountSpec]:
    """A writable snapshot's mounts."""
    if lower is None:
        return [MountSpec("bind", str(upper), ("rw", "rbind"))]
    follow = ("redirect_dir=on", "metacopy=on") if lower.data else ()
    options = (f"workdir={work}", f"upperdir={upper}", f"lowerdir={_lowerdir(lower)}")
    return [MountSpec("overlay", "overlay", ("index=off", *follow, *options))]


def view_specs(empty: Path, lower: Lower | None) -> list[MountSpec]:
    """A read-only snapshot's mounts; `empty` is shown when there is no layer."""
    if lower is None or not lower.data:
        source = empty if lower is None else lower.root
        return [MountSpec("bind", str(source), ("ro", "rbind"))]
    options = ("ro", "redirect_dir=follow", "metacopy=on", f"lowerdir={_lowerdir(lower)}")
    return [MountSpec("overlay", "overlay", options)]


def options_length(specs: Sequence[MountSpec]) -> int:
    """Bytes that the longest of the mounts has of options, as mount(2) takes them."""
    return max(len(os.fsencode(",".join(spec.options))) for spec in specs)


def _lowerdir(lower: Lower) -> str:
    return "::".join(_SPECIAL.sub(r"\\\1", str(path)) for path in (lower.root, *lower.data))
