"""Verify: the store's check, with the images that each damage hits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerstore.images.lookup import names_by_target
from layerstore.images.progress import SILENT
from layerstore.store.check import Damage, VerifyReport, verify_store

if TYPE_CHECKING:
    from layerstore.images.progress import Progress
    from layerstore.store.store import Store

__all__ = ["ImageDamage", "StoreReport", "verify_images"]


@dataclass(frozen=True, slots=True)
class ImageDamage:
    """A damage, and the images (by name, or by digest without one) that can no longer be given out whole."""

    damage: Damage
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What `verify` found; `damages` is empty in a healthy store."""

    checked: VerifyReport
    damages: tuple[ImageDamage, ...]


def verify_images(store: Store, progress: Progress = SILENT) -> StoreReport:
    """Check every byte of the store, and name the images that are hit.

    Raises: CorruptStore: the tables themselves cannot be read.
    """
    with store.hold(everything=True):
        report = verify_store(store, start=progress.start, done=progress.advance)
    progress.finish("damaged" if report.damages else "whole")
    if not report.damages:
        return StoreReport(report, ())
    holders = _holders(store)
    return StoreReport(
        report,
        tuple(
            ImageDamage(damage, tuple(sorted(holders.get(damage.name, ()))))
            for damage in report.damages
        ),
    )


def _holders(store: Store) -> dict[str, set[str]]:
    """Which images need a layer, blob, image or reference."""
    holders: dict[str, set[str]] = {}
    with store.read() as txn:
        images = list(store.catalog.images(txn))
    names = {digest: set(refs) for digest, refs in names_by_target(store).items()}
    for digest, record in images:
        label = names.get(digest) or {digest}
        for held in (digest, record.config, *record.diff_ids):
            holders.setdefault(held, set()).update(label)
    for digest, refs in names.items():
        for name in refs:
            holders.setdefault(name, set()).add(name)
            holders.setdefault(digest, set()).add(name)
    return holders
