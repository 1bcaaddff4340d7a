"""What the store holds, by name: layers, blobs, images, references. Small JSON records in LMDB.

    layers:  diff ID (32 bytes)          -> LayerRecord: the recipe of the layer's tar
    blobs:   blob digest (32 bytes)      -> BlobRecord: kept bytes, or which layer it is the wrapping of
    images:  manifest digest (32 bytes)  -> ImageRecord
    refs:    full reference (UTF-8)      -> digest of a manifest or an index (32 bytes)

Whatever a record points to was durable before the record: layers before images, images before references.

Source: docs/format.md, "Catalog".
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from layerstore.digest import DiffID, Digest, from_raw, parse_digest, raw
from layerstore.errors import CorruptStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerstore.store.database import Database, Transaction

__all__ = ["BlobRecord", "Catalog", "ImageRecord", "LayerRecord", "Stretch", "Wrapping"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a stream: the chunks that hold its literals, and those that hold its part.

    Without a part the stretch is just its literals.
    """

    literals: tuple[int, ...]
    part: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A layer: `size` bytes of tar, from its stretches in order; `entries` members."""

    size: int
    entries: int
    stretches: tuple[Stretch, ...]
    created_ns: int


class Wrapping(StrEnum):
    """How the bytes of a blob can be had."""

    KEPT = "kept"  # from the blob's own stretches
    REGENERATED = "regenerated"  # from the layer's tar and a gzip recipe, which the stretches hold
    PLAIN = "plain"  # it is the layer's tar
    DROPPED = "dropped"  # not at all: only the tar that was inside


@dataclass(frozen=True, slots=True)
class BlobRecord:
    """A blob of `size` bytes; `diff_id` where it is a layer, `compression` as in `codecs.Compression`.

    `reason` says of a kept one why it could not be made again from a recipe; empty: nobody has tried.
    """

    size: int
    wrapping: Wrapping
    diff_id: DiffID | None
    compression: str
    stretches: tuple[Stretch, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image whose every layer is here. `config` and the manifest itself are kept blobs."""

    config: Digest
    diff_ids: tuple[DiffID, ...]
    loaded_ns: int


class Catalog:
    """The records of one store.

    Thread safety: stateless; transactions are the caller's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def layer(self, txn: Transaction, diff_id: DiffID) -> LayerRecord | None:
        """A layer's record, or None."""
        data = self._database.get(txn, "layers", raw(diff_id))
        return None if data is None else _layer(data)

    def layer_identity(self, txn: Transaction, diff_id: DiffID) -> bytes | None:
        """What tells a layer from one of the same diff ID that was removed and loaded again; None if it is not here."""
        return self._database.get(txn, "layers", raw(diff_id))

    def put_layer(self, txn: Transaction, diff_id: DiffID, record: LayerRecord) -> None:
        """Record a layer whose chunks are all indexed (invariant I2)."""
        document = {
            "size": record.size,
            "entries": record.entries,
            "created_ns": record.created_ns,
            "stretches": _dump_stretches(record.stretches),
        }
        self._database.put(txn, "layers", raw(diff_id), _dump(document))

    @staticmethod
    def stretches(row: bytes) -> tuple[Stretch, ...]:
        """The stretches of a layer's or blob's row."""
        with _record(row) as document:
            return _load_stretches(document["stretches"])

    def delete_layer(self, txn: Transaction, diff_id: DiffID) -> bool:
        """Forget a layer that nothing leads to; whether it was there. Its chunks become garbage."""
        return self._database.delete(txn, "layers", raw(diff_id))

    def layer_digests(self, txn: Transaction) -> Iterator[DiffID]:
        """The diff IDs of all layers; their records are not read."""
        return (DiffID(from_raw(key)) for key in self._database.keys(txn, "layers"))

    def layers(self, txn: Transaction) -> Iterator[tuple[DiffID, LayerRecord]]:
        """All layers."""
        for key, data in self._database.items(txn, "layers"):
            yield DiffID(from_raw(key)), _layer(data)

    def blob(self, txn: Transaction, digest: Digest) -> BlobRecord | None:
        """A blob's record, or None."""
        data = self._database.get(txn, "blobs", raw(digest))
        return None if data is None else _blob(data)

    def put_blob(self, txn: Transaction, digest: Digest, record: BlobRecord) -> None:
        """Record a blob whose chunks, or whose layer, are recorded."""
        document = {
            "size": record.size,
            "wrapping": record.wrapping,
            "diff_id": record.diff_id,
            "compression": record.compression,
            "stretches": _dump_stretches(record.stretches),
        }
        if record.reason:
            document["reason"] = record.reason
        self._database.put(txn, "blobs", raw(digest), _dump(document))

    def delete_blob(self, txn: Transaction, digest: Digest) -> bool:
        """Forget a blob that nothing leads to; whether it was there. Its own chunks become garbage."""
        return self._database.delete(txn, "blobs", raw(digest))

    def blob_digests(self, txn: Transaction) -> Iterator[Digest]:
        """The digests of all blobs."""
        return (from_raw(key) for key, _ in self._database.items(txn, "blobs"))

    def blobs(self, txn: Transaction) -> Iterator[tuple[Digest, BlobRecord]]:
        """All blobs."""
        for key, data in self._database.items(txn, "blobs"):
            yield from_raw(key), _blob(data)

    def image(self, txn: Transaction, digest: Digest) -> ImageRecord | None:
        """The image of a manifest digest, or None."""
        data = self._database.get(txn, "images", raw(digest))
        return None if data is None else _image(data)

    def put_image(self, txn: Transaction, digest: Digest, record: ImageRecord) -> None:
        """Record an image whose manifest, config and layers are recorded (invariant I3)."""
        document = {
            "config": record.config,
            "diff_ids": record.diff_ids,
            "loaded_ns": record.loaded_ns,
        }
        self._database.put(txn, "images", raw(digest), _dump(document))

    def delete_image(self, txn: Transaction, digest: Digest) -> bool:
        """Forget an image; what it alone held becomes garbage."""
        return self._database.delete(txn, "images", raw(digest))

    def image_digests(self, txn: Transaction) -> Iterator[Digest]:
        """The manifest digests of all images."""
        return (from_raw(key) for key, _ in self._database.items(txn, "images"))

    def images(self, txn: Transaction) -> Iterator[tuple[Digest, ImageRecord]]:
        """All images."""
        for key, data in self._database.items(txn, "images"):
            yield from_raw(key), _image(data)

    def ref(self, txn: Transaction, name: str) -> Digest | None:
        """What a full reference points to, or None."""
        data = self._database.get(txn, "refs", name.encode())
        return None if data is None else from_raw(data)

    def put_ref(self, txn: Transaction, name: str, target: Digest) -> None:
        """Point a full reference to a manifest or an index; written last (invariant I3)."""
        self._database.put(txn, "refs", name.encode(), raw(target))

    def delete_ref(self, txn: Transaction, name: str) -> bool:
        """Forget a reference."""
        return self._database.delete(txn, "refs", name.encode())

    def refs(self, txn: Transaction) -> Iterator[tuple[str, Digest]]:
        """All references, in the order of their names."""
        for key, data in self._database.items(txn, "refs"):
            yield key.decode("utf-8", "backslashreplace"), from_raw(data)


def _layer(data: bytes) -> LayerRecord:
    with _record(data) as document:
        return LayerRecord(
            int(document["size"]),
            int(document["entries"]),
            _load_stretches(document["stretches"]),
            int(document["created_ns"]),
        )


def _blob(data: bytes) -> BlobRecord:
    with _record(data) as document:
        diff_id = document["diff_id"]
        return BlobRecord(
            int(document["size"]),
            Wrapping(document["wrapping"]),
            None if diff_id is None else DiffID(parse_digest(diff_id)),
            str(document["compression"]),
            _load_stretches(document["stretches"]),
            str(document.get("reason", "")),
        )


def _image(data: bytes) -> ImageRecord:
    with _record(data) as document:
        return ImageRecord(
            parse_digest(document["config"]),
            tuple(DiffID(parse_digest(diff_id)) for diff_id in document["diff_ids"]),
            int(document["loaded_ns"]),
        )


def _dump(document: dict[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


@contextmanager
def _record(data: bytes) -> Iterator[dict[str, Any]]:
    """A record's document; what is wrong with it is damage of ours, as LMDB has no checksums."""
    try:
        yield json.loads(data)
    except (LookupError, OverflowError, TypeError, ValueError) as error:
        raise CorruptStore(f"a record of the catalog is damaged: {error!r}") from error


def _dump_stretches(stretches: Sequence[Stretch]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(stretch.literals, stretch.part) for stretch in stretches]


def _load_stretches(pairs: list[list[list[int]]]) -> tuple[Stretch, ...]:
    return tuple(
        Stretch(tuple(map(int, literals)), tuple(map(int, part))) for literals, part in pairs
    )
