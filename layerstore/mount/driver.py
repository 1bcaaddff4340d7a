"""What every driver is: a way to show a stack of layers in a folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from layerstore.digest import DiffID
    from layerstore.mount.places import Places
    from layerstore.store.mountstate import MountRecord
    from layerstore.store.store import Store

__all__ = ["Driver", "DriverName", "Needs", "Support"]

DriverName = str


@dataclass(frozen=True, slots=True)
class Support:
    """Whether a driver works here, and if not, why not, for people."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a mount will use; it goes into the record before the mount is made."""

    meta: str = ""
    data: tuple[int, ...] = ()

    def put_in(self, record: MountRecord) -> MountRecord:
        """The record with it."""
        return replace(record, meta=self.meta, data=self.data)


class Driver(Protocol):
    """A way to show a stack of layers. Methods but `probe` and `prepare` run under the lock of mounts."""

    name: DriverName

    def finished_mark(self, places: Places, record: MountRecord) -> Path | None:
        """The file that says that it is finished, and there; None where the kernel shows the record's token."""
        ...

    def probe(self, store: Store, places: Places, *, rw: bool) -> Support:
        """Whether it works here, found out by doing it once, small."""
        ...

    def prepare(self, store: Store, places: Places, diff_ids: Sequence[DiffID]) -> Needs:
        """Make what the mount will read."""
        ...

    def mount(self, store: Store, places: Places, record: MountRecord) -> None:
        """Show the stack at the record's target. What fails half way is taken away again."""
        ...

    def umount(self, store: Store, places: Places, target: Path) -> None:
        """Take it away. Raises: Busy: a file of it is in use."""
        ...

    def discard(self, places: Places, record: MountRecord) -> None:
        """Remove what it keeps for a mount that is gone, or was never finished."""
        ...
