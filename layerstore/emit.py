"""Bytes go out: the inverse of `ingest`. A layer's tar, a blob, a document, exactly as they came in.

What is given out is hashed on its way; wrong bytes end in `CorruptStore` and never in silence. Whoever writes to a
place that others see makes it visible only after the iterator has ended.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from layerstore.digest import Digest
from layerstore.errors import CorruptStore, NotFound
from layerstore.store.catalog import Wrapping

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore.digest import DiffID
    from layerstore.store.store import Store

__all__ = ["iter_blob", "iter_layer", "read_document"]


def iter_layer(store: Store, diff_id: DiffID) -> Iterator[bytes]:
    """The tar of a layer, in blocks of up to a few MiB.

    Raises:
        NotFound: no such layer.
        CorruptStore: chunks are damaged, or (after the last block) the whole is not the layer.
    """
    with store.read() as txn:
        record = store.catalog.layer(txn, diff_id)
    if record is None:
        raise NotFound(f"no layer {diff_id} in this store")
    yield from _verified(store.reader.iter_stream(record.stretches), diff_id)


def iter_blob(store: Store, digest: Digest) -> Iterator[bytes]:
    """The exact bytes of a blob.

    Raises:
        NotFound: the blob is unknown, or only what was inside it was kept.
        CorruptStore: as `iter_layer`.
    """
    with store.read() as txn:
        record = store.catalog.blob(txn, digest)
    if record is None:
        raise NotFound(f"no blob {digest} in this store")
    if record.wrapping is Wrapping.PLAIN and record.diff_id is not None:
        yield from iter_layer(store, record.diff_id)
    elif record.wrapping is Wrapping.KEPT:
        yield from _verified(store.reader.iter_stream(record.stretches), digest)
    else:
        raise NotFound(
            f"blob {digest} was not kept, only the tar inside it; load it again with --keep-blobs"
        )


def read_document(store: Store, digest: Digest) -> bytes:
    """A kept blob that is small: a manifest, an index, a config. Raises as `iter_blob`."""
    return b"".join(iter_blob(store, digest))


def _verified(blocks: Iterable[bytes], want: Digest) -> Iterator[bytes]:
    hasher = hashlib.sha256()
    for block in blocks:
        hasher.update(block)
        yield block
    got = Digest("sha256:" + hasher.hexdigest())
    if got != want:
        raise CorruptStore(f"{want} comes out as {got}; run `layerstore verify`")
