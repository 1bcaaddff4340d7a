"""What a snapshot stands on: the merged root of a stack of layers, shown as a directory by somebody else.

Lower(root, attributes, data)   root        a directory with the whole tree
                                attributes  its owner, mode, times and extended attributes
                                data        data-only overlayfs layers that hold the contents of its files, if it has none itself
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from layerstore.digest import DiffID
    from layerstore.mount.mounter import NeededLowers
    from layerstore.mount.upper import RootAttributes
    from layerstore.store.database import Transaction

__all__ = ["Lower", "LowerProvider"]


@dataclass(frozen=True, slots=True)
class Lower:
    """A merged root, ready to be the lower directory of an overlay.

    Its attributes are known here, as it may be let go before somebody looks at it.
    """

    root: Path
    attributes: RootAttributes
    data: tuple[Path, ...] = ()


class LowerProvider(Protocol):
    """A way to show stacks of layers. Thread safety: all methods, from any thread."""

    def lower(self, diff_ids: Sequence[DiffID], *, in_one: bool = False) -> Lower:
        """Show a stack (not empty), bottom first; the second time is quick. It stays while `release` hears of it.

        `in_one`: as one directory, without data layers.

        Raises: NotFound: a layer. Unsupported: this machine cannot. CorruptStore, StoreFull.
        """
        ...

    def release(self, is_needed: Callable[[Transaction], NeededLowers]) -> None:
        """Let go of the stacks that nobody needs; the function is asked when nothing can change any more."""
        ...
