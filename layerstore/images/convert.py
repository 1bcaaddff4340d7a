"""Convert: a gzip blob that is kept becomes a recipe, from which the store makes it again bit for bit.

    split > recipe into the store > made again from what is stored > the digest is right > one commit

Nothing is trusted before the last step, and until it the record and chunks of the kept blob stay: a crash or an error
at any point leaves a blob that comes out exactly. A blob that cannot be converted stays as it is, and its record says why.

Source: docs/durability.md, invariant I11.
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from layerstore import emit
from layerstore.digest import Digest
from layerstore.errors import CorruptStore, NotFound
from layerstore.formats.codecs import Compression
from layerstore.formats.gzipsplit import NotSplit, encode_recipe, split_gzip
from layerstore.regenerate import iter_regenerated
from layerstore.store.catalog import BlobRecord, Stretch, Wrapping
from layerstore.store.layout import BLOB_RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerstore.archives import MemberReader
    from layerstore.digest import DiffID, Readable
    from layerstore.formats.gzipsplit import GzipRecipe
    from layerstore.store.session import WriteSession
    from layerstore.store.store import Store

__all__ = [
    "Conversion",
    "Splitting",
    "convert_blob",
    "is_convertible",
    "record_recipe",
    "split_blob",
]

_PATIENCE_S = 30.0
_S_PER_MB = 4.0  # slow machines need 2 with zlib's level 9 and text
SMALLEST = 300  # bytes of a blob whose recipe, in a frame of its own, is clearly smaller


@dataclass(frozen=True, slots=True)
class Conversion:
    """What became of a blob of `size` bytes.

    Attributes:
        model: the encoder that its recipe names; empty if it stays kept.
        recipe: bytes of its recipe; 0 if it stays kept.
        reason: why it stays kept; empty if it is regenerated.
    """

    digest: Digest
    size: int
    model: str = ""
    recipe: int = 0
    reason: str = ""


def is_convertible(record: BlobRecord) -> bool:
    """Whether a blob is the gzip of a layer that is kept as it is."""
    return (
        record.wrapping is Wrapping.KEPT
        and record.compression == Compression.GZIP.value
        and record.diff_id is not None
    )


def convert_blob(store: Store, session: WriteSession, digest: Digest) -> Conversion | None:
    """Make a kept gzip blob a regenerated one, durably; None where there is nothing to do (any more).

    The bytes of the kept one become garbage, which `prune` frees.

    Raises: CorruptStore: what is stored is damaged. Unsupported: no native kernels. StoreFull.
    """
    session.hold([digest])
    with store.read() as txn:
        before = store.catalog.blob(txn, digest)
    if before is None or before.diff_id is None or not is_convertible(before):
        return None
    try:
        recipe = split_blob(_Blocks(emit.iter_blob(store, digest)), before.size)
        after = record_recipe(store, session, digest, before.diff_id, recipe)
        done = Conversion(digest, before.size, str(recipe.model), recipe.size)
    except NotSplit as error:
        after = replace(before, reason=str(error))
        done = Conversion(digest, before.size, reason=str(error))
    with session.commit() as txn:
        if session.catalog.blob(txn, digest) != before:  # somebody else was quicker
            return None
        session.catalog.put_blob(txn, digest, after)
    return done


def split_blob(source: Readable, size: int, patience_s: float = _PATIENCE_S) -> GzipRecipe:
    """The recipe of a blob of `size` bytes. Raises: NotSplit: there is none that is worth having; Unsupported.

    A blob that is made to cost time has none: it ends with the segment in which `patience_s` of processor time, and 4 s
    for each MB of the blob, are over.
    """
    if size < SMALLEST:
        raise NotSplit(f"smaller than {SMALLEST} bytes")
    timed = _Timed(source, patience_s)
    recipe = split_gzip(timed, timed.check)
    timed.check()  # what took that long would take it again whenever the blob is read
    return recipe


class Splitting:
    """Splits a blob in a thread of its own, while the block that this is used for does something else with it.

    Thread safety: one thread at a time.
    """

    def __init__(self, open_source: Callable[[], MemberReader], size: int) -> None:
        self._open_source, self._size = open_source, size
        self._is_stopped = False
        self._pool = ThreadPoolExecutor(1, "layerstore-split")

    def __enter__(self) -> Self:
        self._recipe = self._pool.submit(self._split)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopped = True
        self._pool.shutdown()

    def result(self) -> GzipRecipe:
        """Wait for the recipe. Raises: as `split_blob`; what reading the source raises."""
        return self._recipe.result()

    def read(self, size: int, /) -> bytes:
        """What the thread reads: nothing more as soon as nobody waits for it."""
        return b"" if self._is_stopped else self._source.read(size)

    def _split(self) -> GzipRecipe:
        with self._open_source() as self._source:
            return split_blob(self, self._size)


class _Timed:
    """A source that ends the splitting where it takes more time than that of any blob which an encoder made.

    Time is the thread's own, looked at before each segment and at the end, by `split_blob`.
    """

    def __init__(self, source: Readable, patience_s: float) -> None:
        self._source = source
        self._deadline_s = time.thread_time() + patience_s

    def check(self) -> None:
        """Raises: NotSplit: the time is over."""
        if time.thread_time() > self._deadline_s:
            raise NotSplit("takes too long to split")

    def read(self, size: int, /) -> bytes:
        """Give at most `size` bytes, and more time for them."""
        data = self._source.read(size)
        self._deadline_s += len(data) * _S_PER_MB / 1e6
        return data


def record_recipe(
    store: Store, session: WriteSession, digest: Digest, diff_id: DiffID, recipe: GzipRecipe
) -> BlobRecord:
    """Store a recipe, and prove that the blob comes out of the store again; returns the record, which is not committed.

    The session holds the layer. From the return on, only versions that know recipes open the store.

    Raises: NotSplit: it does not come out. CorruptStore: the layer is damaged.
    """
    numbers = session.put_bytes(encode_recipe(recipe))
    session.flush()
    stretch = Stretch(tuple(session.numbers_of(numbers).tolist()), ())
    record = BlobRecord(
        recipe.blob_size, Wrapping.REGENERATED, diff_id, Compression.GZIP.value, (stretch,)
    )
    with store.read() as txn:
        layer = store.catalog.layer(txn, diff_id)
    if layer is None:
        raise NotFound(f"no layer {diff_id} in this store")
    if layer.size != recipe.plain_size:
        raise NotSplit("its tar is not that of its layer")
    hasher = hashlib.sha256()
    try:
        for block in iter_regenerated(store, record, layer):
            hasher.update(block)
    except CorruptStore as error:
        if _is_damaged(store, diff_id):
            raise
        raise NotSplit("does not come out of the store as it came in") from error
    if Digest("sha256:" + hasher.hexdigest()) != digest:
        raise NotSplit("does not come out of the store as it came in")
    store.layout.add_incompatible(BLOB_RECIPES)
    return record


def _is_damaged(store: Store, diff_id: DiffID) -> bool:
    try:
        for _ in emit.iter_layer(store, diff_id):
            pass
    except CorruptStore:
        return True
    return False


class _Blocks:
    """Blocks as something to read from."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._next: Callable[[], bytes | None] = lambda: next(blocks, None)
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Give at most `size` bytes."""
        if not self._rest:
            self._rest = self._next() or b""
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
