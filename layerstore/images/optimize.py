"""Optimize: convert the compressed layers that are still kept, so that the store holds their tars and small recipes only.

Each blob is converted and committed by itself (`convert`), several at once; an interrupted run goes on with the next.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerstore import kernels
from layerstore.errors import Unsupported
from layerstore.images.convert import Conversion, convert_blob, is_convertible
from layerstore.images.progress import SILENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerstore.digest import Digest
    from layerstore.images.progress import Progress
    from layerstore.store.catalog import BlobRecord
    from layerstore.store.store import Store

__all__ = ["OptimizeReport", "optimize_blobs"]

_MAX_THREADS = 8


@dataclass(frozen=True, slots=True)
class OptimizeReport:
    """What a run did.

    Attributes:
        conversions: one for each blob that was tried, largest first.
    """

    conversions: tuple[Conversion, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the blobs that are regenerated now, whose kept copies `prune` frees."""
        return sum(done.size for done in self.conversions if not done.reason)

    @property
    def recipe_bytes(self) -> int:
        """Bytes of their recipes."""
        return sum(done.recipe for done in self.conversions)

    @property
    def reasons(self) -> Mapping[str, int]:
        """Why blobs stay kept, and how many of them."""
        return Counter(done.reason for done in self.conversions if done.reason)


def optimize_blobs(
    store: Store, *, again: bool = False, progress: Progress = SILENT
) -> OptimizeReport:
    """Convert kept gzip layers; with `again` also those that an earlier run could not.

    Raises: Unsupported: no native kernels. CorruptStore: damage; what was converted before it stays. StoreFull.
    """
    store.need_write()
    if kernels.NAME != "native":
        raise Unsupported(
            "blobs are converted by the native kernels; install a wheel that has them"
        )
    with store.read() as txn:
        wanted = [
            (digest, record)
            for digest, record in store.catalog.blobs(txn)
            if is_convertible(record) and (again or not record.reason)
        ]
    wanted.sort(key=lambda item: -item[1].size)
    progress.start("optimize", sum(record.size for _, record in wanted))

    def convert(item: tuple[Digest, BlobRecord]) -> Conversion | None:
        digest, record = item
        with store.begin() as session:
            done = convert_blob(store, session, digest)
        progress.advance(record.size)
        return done

    outcome = "failed"
    try:
        with ThreadPoolExecutor(
            min(os.cpu_count() or 1, _MAX_THREADS), "layerstore-optimize"
        ) as pool:
            try:
                found = list(pool.map(convert, wanted))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        outcome = "done"
    finally:
        progress.finish(outcome)
    return OptimizeReport(tuple(done for done in found if done is not None))
