"""What removing images would free, before they are removed: in whole blocks of the disk, as `prune` then gives them back.

What images share among themselves and with nothing else comes back with the last of them: the sum of each alone is less
than what all of them free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerstore.errors import NotFound
from layerstore.images.accounting import account
from layerstore.images.lookup import find_target, names_by_target
from layerstore.images.naming import name_in, plan_removal
from layerstore.store.gc import estimate_garbage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.digest import Digest
    from layerstore.store.store import Store

__all__ = ["RemovalForecast", "RemovedImage", "forecast_removal"]


@dataclass(frozen=True, slots=True)
class RemovedImage:
    """An image that would go; `freed` bytes of the disk if it went alone."""

    digest: Digest
    names: tuple[str, ...]
    freed: int


@dataclass(frozen=True, slots=True)
class RemovalForecast:
    """What would go. Bytes are whole blocks of the disk.

    Attributes:
        untagged: names that would be forgotten.
        deleted: the images that would go with them.
        layers: layer records that only they need.
        chunks: chunks that only they need.
        freed: what the disk gets back for all of them together.
        shared: of `freed`, what no single one of them would free.
        garbage: what `prune` frees in any case.
    """

    untagged: tuple[str, ...]
    deleted: tuple[RemovedImage, ...]
    layers: int
    chunks: int
    freed: int
    shared: int
    garbage: int


def forecast_removal(store: Store, texts: Sequence[str], *, force: bool = False) -> RemovalForecast:
    """What `remove_image` of these, one after another, and then a prune would free. Changes nothing.

    Raises: as `remove_image`, also for one that is gone with those before it. CorruptStore.
    """
    names = names_by_target(store)
    gone: dict[Digest, None] = {}
    untagged: list[str] = []
    for text in texts:
        target = find_target(store, text)
        left = names.pop(target, [])
        if name_in(text, untagged) or (not left and target in gone):
            raise NotFound(f"{text} would be gone with what is removed before it")
        step = plan_removal(store, text, target, {**names, target: left}, force=force)
        rest = [name for name in left if name not in step.untagged]
        if rest:
            names[target] = rest
        untagged += step.untagged
        gone.update(dict.fromkeys(step.deleted))
    with store.hold(everything=True):
        now = estimate_garbage(store)
        then = estimate_garbage(store, refs=untagged, images=gone)
        usage = {image.digest: image for image in account(store).images} if gone else {}
    deleted = tuple(RemovedImage(one, usage[one].names, usage[one].freed) for one in gone)
    freed = then.bytes - now.bytes
    return RemovalForecast(
        tuple(untagged),
        deleted,
        then.layers - now.layers,
        then.chunks - now.chunks,
        freed,
        freed - sum(one.freed for one in deleted),
        now.bytes,
    )
