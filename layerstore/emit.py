"""Bytes go out: the inverse of `ingest`. A layer's tar, a blob, a document, exactly as they came in.

What is given out is hashed on its way; wrong bytes end in `CorruptStore` and never in silence. Whoever writes to a
place that others see makes it visible only after the iterator has ended.

A range cannot be compared with the digest of the whole. Its bytes come from chunks that each were compared with their ID:
of the blob itself, or of the tar and the recipe that were proven to give the blob when they were committed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from layerstore.digest import Digest
from layerstore.errors import CorruptStore, InvalidArgument, NotFound
from layerstore.regenerate import iter_regenerated
from layerstore.store.catalog import Wrapping

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore.digest import DiffID
    from layerstore.store.catalog import BlobRecord, LayerRecord
    from layerstore.store.store import Store

__all__ = ["blob_record", "check_range", "iter_blob", "iter_layer", "read_document"]


def iter_layer(store: Store, diff_id: DiffID) -> Iterator[bytes]:
    """The tar of a layer, in blocks of up to a few MiB.

    Raises:
        NotFound: no such layer.
        CorruptStore: chunks are damaged, or (after the last block) the whole is not the layer.
    """
    record = _layer(store, diff_id)
    yield from _verified(store.reader.iter_stream(record.stretches), diff_id)


def iter_blob(
    store: Store, digest: Digest, start: int = 0, end: int | None = None
) -> Iterator[bytes]:
    """The exact bytes of a blob from `start` to before `end`, all by default; no more is read than a range needs.

    Raises:
        NotFound: the blob is unknown, or only what was inside it was kept.
        InvalidArgument: the blob has no such range.
        CorruptStore: as `iter_layer`.
        Unsupported: it has to be made again, and the native kernels are missing.
    """
    record = blob_record(store, digest)
    end = check_range(digest, record.size, start, end)
    blocks = _blocks(store, digest, record, start, end)
    if end - start == record.size:
        blocks = _verified(blocks, digest)
    yield from blocks


def read_document(store: Store, digest: Digest) -> bytes:
    """A kept blob that is small: a manifest, an index, a config. Raises as `iter_blob`."""
    return b"".join(iter_blob(store, digest))


def check_range(digest: Digest, size: int, start: int, end: int | None) -> int:
    """The end of a range of a blob of `size` bytes, `size` by default. Raises: InvalidArgument: there is no such range."""
    end = size if end is None else end
    if not 0 <= start <= end <= size:
        raise InvalidArgument(f"blob {digest} of {size} bytes has no range {start}..{end}")
    return end


def blob_record(store: Store, digest: Digest) -> BlobRecord:
    """The record of a blob that can be had. Raises: NotFound: as `iter_blob`."""
    with store.read() as txn:
        record = store.catalog.blob(txn, digest)
    if record is None:
        raise NotFound(f"no blob {digest} in this store")
    if record.wrapping is Wrapping.DROPPED:
        raise NotFound(
            f"blob {digest} was not kept, only the tar inside it; load it again without --drop-blobs"
        )
    return record


def _blocks(
    store: Store, digest: Digest, record: BlobRecord, start: int, end: int
) -> Iterator[bytes]:
    """A range of a blob. It may be converted meanwhile: then it goes on from the new record."""
    while True:
        try:
            for block in _blocks_from(store, record, start, end):
                start += len(block)
                yield block
        except CorruptStore:
            now = blob_record(store, digest)
            if now == record:
                raise
            record = now
        else:
            return


def _blocks_from(store: Store, record: BlobRecord, start: int, end: int) -> Iterator[bytes]:
    if record.diff_id is None or record.wrapping is Wrapping.KEPT:
        return _until(store.reader.iter_stream(record.stretches, start), end - start)
    layer = _layer(store, record.diff_id)
    if record.wrapping is Wrapping.PLAIN:
        return _until(store.reader.iter_stream(layer.stretches, start), end - start)
    return iter_regenerated(store, record, layer, start=start, end=end)


def _until(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The first `size` bytes, and no block more."""
    while size:
        block = next(blocks, b"")[:size]
        if not block:
            raise CorruptStore("a blob is shorter than its record says; run `layerstore verify`")
        yield block
        size -= len(block)


def _layer(store: Store, diff_id: DiffID) -> LayerRecord:
    with store.read() as txn:
        record = store.catalog.layer(txn, diff_id)
    if record is None:
        raise NotFound(f"no layer {diff_id} in this store")
    return record


def _verified(blocks: Iterable[bytes], want: Digest) -> Iterator[bytes]:
    hasher = hashlib.sha256()
    for block in blocks:
        hasher.update(block)
        yield block
    got = Digest("sha256:" + hasher.hexdigest())
    if got != want:
        raise CorruptStore(f"{want} comes out as {got}; run `layerstore verify`")
