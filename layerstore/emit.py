"""Bytes go out: the inverse of `ingest`. A layer's tar, a blob, a document, exactly as they came in.

What is given out is hashed on its way; wrong bytes end in `CorruptStore` and never in silence. Whoever writes to a
place that others see makes it visible only after the iterator has ended.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from layerstore.digest import Digest
from layerstore.errors import CorruptStore, NotFound
from layerstore.regenerate import iter_regenerated
from layerstore.store.catalog import Wrapping

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore.digest import DiffID
    from layerstore.store.catalog import BlobRecord, LayerRecord
    from layerstore.store.store import Store

__all__ = ["iter_blob", "iter_layer", "read_document"]


def iter_layer(store: Store, diff_id: DiffID) -> Iterator[bytes]:
    """The tar of a layer, in blocks of up to a few MiB.

    Raises:
        NotFound: no such layer.
        CorruptStore: chunks are damaged, or (after the last block) the whole is not the layer.
    """
    record = _layer(store, diff_id)
    yield from _verified(store.reader.iter_stream(record.stretches), diff_id)


def iter_blob(store: Store, digest: Digest) -> Iterator[bytes]:
    """The exact bytes of a blob.

    Raises:
        NotFound: the blob is unknown, or only what was inside it was kept.
        CorruptStore: as `iter_layer`.
        Unsupported: it has to be made again, and the native kernels are missing.
    """
    record = _blob(store, digest)
    if record.wrapping is Wrapping.PLAIN and record.diff_id is not None:
        yield from iter_layer(store, record.diff_id)
        return
    yield from _verified(_blocks(store, digest, record), digest)


def read_document(store: Store, digest: Digest) -> bytes:
    """A kept blob that is small: a manifest, an index, a config. Raises as `iter_blob`."""
    return b"".join(iter_blob(store, digest))


def _blob(store: Store, digest: Digest) -> BlobRecord:
    with store.read() as txn:
        record = store.catalog.blob(txn, digest)
    if record is None:
        raise NotFound(f"no blob {digest} in this store")
    if record.wrapping is Wrapping.DROPPED:
        raise NotFound(
            f"blob {digest} was not kept, only the tar inside it; load it again without --drop-blobs"
        )
    return record


def _blocks(store: Store, digest: Digest, record: BlobRecord) -> Iterator[bytes]:
    """A blob that is kept or regenerated. It may be converted meanwhile: then it goes on from the new record."""
    given = 0
    while True:
        try:
            for block in _blocks_from(store, record, given):
                given += len(block)
                yield block
        except CorruptStore:
            now = _blob(store, digest)
            if now == record:
                raise
            record = now
        else:
            return


def _blocks_from(store: Store, record: BlobRecord, start: int) -> Iterator[bytes]:
    if record.wrapping is not Wrapping.REGENERATED:
        return store.reader.iter_stream(record.stretches, start)
    assert record.diff_id is not None, "a regenerated blob is one of a layer"
    return iter_regenerated(store, record, _layer(store, record.diff_id), start=start)


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
