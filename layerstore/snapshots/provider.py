"""Lower directories by the best way that works here: mounted in place from the store, else as plain files."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from layerstore.errors import FailedPrecondition, Unsupported
from layerstore.mount.mounter import HeldLower, hold_lower, is_held, release_lowers
from layerstore.snapshots.lower import Lower
from layerstore.snapshots.plainfiles import PlainLowers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from layerstore.digest import DiffID
    from layerstore.mount.mounter import NeededLowers
    from layerstore.store.database import Transaction
    from layerstore.store.store import Store

__all__ = ["StoreLowers"]

_log = logging.getLogger(__name__)


class StoreLowers:
    """Lower directories of one store. Thread safety: all methods, from any thread.

    Attributes:
        reason: why plain files are used; empty as long as mounting works.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._plain = store, PlainLowers(store)
        self._held: dict[tuple[bool, tuple[DiffID, ...]], HeldLower] = {}
        self.reason = ""

    def lower(self, diff_ids: Sequence[DiffID], *, in_one: bool = False) -> Lower:
        """The merged root of a stack. Raises: NotFound, CorruptStore, StoreFull."""
        if not self.reason:
            key = in_one, tuple(diff_ids)
            held = self._held.get(key)
            try:
                if held is None or not is_held(self._store, held):
                    held = self._held[key] = hold_lower(self._store, diff_ids, merged=in_one)
            except (Unsupported, FailedPrecondition) as error:
                _log.warning(
                    "an image is written out as plain files, as it cannot be mounted: %s", error
                )
                if not in_one:  # the merged form asks more of the kernel than the other
                    self.reason = str(error)
            else:
                return Lower(held.root, held.attributes, held.data)
        return self._plain.lower(diff_ids)

    def release(self, is_needed: Callable[[Transaction], NeededLowers]) -> None:
        """Unmount what nobody needs. Raises: CorruptStore, StoreFull."""
        if not self.reason and release_lowers(self._store, is_needed):
            for key, held in list(self._held.items()):
                if not is_held(self._store, held):
                    self._held.pop(key, None)
