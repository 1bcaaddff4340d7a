"""What the store holds of a blob: how its bytes can be had, and what that takes beside the tar inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from layerstore.formats.gzipsplit import describe
from layerstore.store.catalog import Wrapping
from layerstore.store.reach import stream_numbers

if TYPE_CHECKING:
    from layerstore.digest import Digest
    from layerstore.store.store import Store

__all__ = ["BlobKind", "WrappedBlob", "blob_kinds", "wrapped_blob"]


@dataclass(frozen=True, slots=True)
class WrappedBlob:
    """One blob of `size` bytes.

    Attributes:
        wrapping: how its bytes can be had.
        stored: encoded bytes of its own chunks: of itself, or of its recipe. Others may hold some of them too.
        recipe: bytes of its recipe, before they are encoded; 0 without one.
        model: the encoder that its recipe names.
        reason: why it is kept and not regenerated, where that was tried.
    """

    size: int
    wrapping: Wrapping
    stored: int
    recipe: int
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class BlobKind:
    """The layer blobs whose bytes are had in one way. All in bytes, as in `WrappedBlob`.

    Attributes:
        how: the model of regenerated ones; of kept ones why they are, or their compression where nothing was tried.
        blobs: how many.
    """

    wrapping: Wrapping
    how: str
    blobs: int
    size: int
    stored: int
    recipe: int


def blob_kinds(store: Store) -> tuple[BlobKind, ...]:
    """All layer blobs by how they are had, the largest kind first. Hold them, if a `prune` may come.

    Raises: CorruptStore.
    """
    with store.read() as txn:
        compressions = {
            digest: record.compression
            for digest, record in store.catalog.blobs(txn)
            if record.diff_id is not None
        }
    kinds: dict[tuple[Wrapping, str], list[WrappedBlob]] = {}
    for digest, compression in compressions.items():
        blob = wrapped_blob(store, digest)
        if blob is not None:
            kept = compression if blob.wrapping is Wrapping.KEPT else ""
            kinds.setdefault((blob.wrapping, blob.model or blob.reason or kept), []).append(blob)
    found = [
        BlobKind(
            wrapping,
            how,
            len(blobs),
            sum(blob.size for blob in blobs),
            sum(blob.stored for blob in blobs),
            sum(blob.recipe for blob in blobs),
        )
        for (wrapping, how), blobs in kinds.items()
    ]
    return tuple(sorted(found, key=lambda kind: -kind.size))


def wrapped_blob(store: Store, digest: Digest) -> WrappedBlob | None:
    """The numbers of a blob; None for one that the store has never seen. Hold it, if a `prune` may come.

    Raises: CorruptStore.
    """
    with store.read() as txn:
        record = store.catalog.blob(txn, digest)
    if record is None:
        return None
    (numbers,) = stream_numbers(store, [record.stretches])
    with store.read() as txn:
        places = store.index.places(txn, numbers)
    recipe, model = 0, ""
    if record.wrapping is Wrapping.REGENERATED:
        recipe = int(places["decoded"].sum(dtype="u8"))
        first = np.array(record.stretches[0].literals[:1], "u8")
        model = describe(bytes(store.reader.read(first)[0]))
    return WrappedBlob(
        record.size,
        record.wrapping,
        int(places["encoded"].sum(dtype="u8")),
        recipe,
        model,
        record.reason,
    )
