"""Lower directories by the best way that works here: mounted in place from the store, else as plain files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerstore.errors import FailedPrecondition, Unsupported
from layerstore.mount.mounter import hold_lower
from layerstore.snapshots.lower import Lower
from layerstore.snapshots.plainfiles import PlainLowers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.digest import DiffID
    from layerstore.store.store import Store

__all__ = ["StoreLowers"]


class StoreLowers:
    """Lower directories of one store. Thread safety: all methods, from any thread.

    Attributes:
        reason: why plain files were used, the last time they were; empty if they never were.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._plain = store, PlainLowers(store)
        self.reason = ""

    def lower(self, diff_ids: Sequence[DiffID]) -> Lower:
        """The merged root of a stack. Raises: NotFound, CorruptStore, StoreFull."""
        if not self.reason:
            try:
                held = hold_lower(self._store, diff_ids)
            except (Unsupported, FailedPrecondition) as error:
                self.reason = str(error)
            else:
                return Lower(held.root, held.data)
        return self._plain.lower(diff_ids)
