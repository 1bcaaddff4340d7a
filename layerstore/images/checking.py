"""Verify: the store's check, with the images that each damage hits."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from layerstore import emit
from layerstore.errors import CorruptStore, InvalidArgument
from layerstore.images.lookup import names_by_target
from layerstore.images.progress import SILENT
from layerstore.store.catalog import Wrapping
from layerstore.store.check import Damage, Depth, VerifyOptions, VerifyReport, verify_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from layerstore.images.progress import Progress
    from layerstore.store.store import Store

__all__ = ["ImageDamage", "StoreReport", "verify_images", "with_images"]


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


def verify_images(
    store: Store,
    depth: str = Depth.EVERYTHING,
    rate: int | None = None,
    jobs: int | None = None,
    resume: bool = False,
    blobs: bool = False,
    progress: Progress = SILENT,
) -> StoreReport:
    """Check a store as closely as is asked, and name the images that are hit.

    With `blobs`, every regenerated blob is made again, and compared with its digest, when nothing else is damaged.

    Raises: InvalidArgument.
    """
    if depth not in list(Depth):
        raise InvalidArgument(f"depth {depth!r}: give {', '.join(Depth)}")
    options = VerifyOptions(Depth(depth), rate, jobs, resume)
    begun = False

    def start(task: str, size: int) -> None:
        nonlocal begun
        begun = True
        progress.start(task, size)

    with store.hold(everything=True):
        report = verify_store(store, options, start=start, done=progress.advance)
        if blobs and not report.damages:
            report = replace(report, damages=tuple(_check_blobs(store, start, progress)))
    if begun:
        progress.finish("damaged" if report.damages else "whole")
    return StoreReport(report, with_images(store, report.damages))


def with_images(store: Store, damages: Sequence[Damage]) -> tuple[ImageDamage, ...]:
    """Each damage with the images that it hits."""
    holders: dict[str, set[str]] = {}
    # LMDB may not survive damaged tables.
    if damages and not any(damage.what == "tables" for damage in damages):
        with suppress(CorruptStore):  # a document, which is among the damages
            holders = _holders(store)
    return tuple(
        ImageDamage(damage, tuple(sorted(holders.get(damage.name, ())))) for damage in damages
    )


def _check_blobs(
    store: Store, start: Callable[[str, int], None], progress: Progress
) -> Iterator[Damage]:
    """Blobs that do not come out of their tar and recipe."""
    with store.read() as txn:
        wanted = {
            digest: record.size
            for digest, record in store.catalog.blobs(txn)
            if record.wrapping is Wrapping.REGENERATED
        }
    start("blobs", sum(wanted.values()))
    for digest in wanted:
        try:
            for block in emit.iter_blob(store, digest):
                progress.advance(len(block))
        except CorruptStore as error:
            yield Damage("blob", digest, str(error))


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
