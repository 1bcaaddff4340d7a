"""Where repair takes bytes from: archives and layouts of images, other stores. Nothing that they say is trusted.

    ArchiveSource   layers, read as `load` reads them; documents and blobs as they are
    StoreSource     chunks by their IDs; layers and blobs joined

Whoever uses a source compares chunks with their IDs, layers and blobs with their digests.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from layerstore import emit
from layerstore.archives import DockerArchive
from layerstore.digest import DiffID, Digest, Readable, digest_of
from layerstore.errors import CorruptStore, MalformedInput, Unsupported
from layerstore.formats import oci
from layerstore.formats.codecs import SNIFF_SIZE, sniff
from layerstore.images.progress import CountedReader
from layerstore.ingest import Expected, find_chunks
from layerstore.mount.upper import BlockReader
from layerstore.store.catalog import Wrapping

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from collections.abc import Set as AbstractSet

    from layerstore.archives import DockerImage, ImageArchive, OciLayout
    from layerstore.images.progress import Progress
    from layerstore.store.store import Store

__all__ = ["ArchiveSource", "Opener", "Source", "StoreSource"]

Opener: TypeAlias = "Callable[[], AbstractContextManager[Readable]]"


class Source(Protocol):
    """What repair asks for."""

    def chunks(
        self, wanted: Collection[bytes], first: AbstractSet[str]
    ) -> Iterator[tuple[bytes, bytes]]:
        """Chunks that may have these IDs, with their bytes; `first` names layers that surely hold some.

        What is no longer in `wanted` is no longer looked for. Raises: MalformedInput: the source is damaged.
        """

    def open_layer(self, diff_id: DiffID) -> Opener | None:
        """A layer's tar, compressed or not; None if it is not here."""

    def open_blob(self, digest: Digest) -> Opener | None:
        """A blob, or None."""


class ArchiveSource:
    """An archive or a layout of images.

    Attributes:
        layers: what opens each layer.
        blobs: what opens each blob, documents among them.
    """

    def __init__(self, archive: ImageArchive, store: Store, progress: Progress) -> None:
        """Read the documents. `store` says how long the layers are, which a made manifest has to name."""
        self._source, self._store, self._progress = archive.source, store, progress
        self.layers: dict[DiffID, Opener] = {}
        self.blobs: dict[Digest, Opener] = {}
        if isinstance(archive, DockerArchive):
            for image in archive.images():
                self._add_docker(archive, image)
        else:
            for root in archive.roots():
                self._add(archive, root.descriptor)

    def chunks(
        self, wanted: Collection[bytes], first: AbstractSet[str]
    ) -> Iterator[tuple[bytes, bytes]]:
        """Cut the layers again, those of `first` before the others."""
        for diff_id in sorted(self.layers, key=lambda one: one not in first):
            if not wanted:
                return
            with self.layers[diff_id]() as probe:
                compression = sniff(probe.read(SNIFF_SIZE))
            self._progress.start(diff_id[7:19], None)
            with self.layers[diff_id]() as stream:
                counted = CountedReader(stream, self._progress.advance)
                expected = Expected(f"{self._source}, {diff_id}")
                yield from find_chunks(counted, expected, compression, self._store.limits, wanted)
            self._progress.finish("read")

    def open_layer(self, diff_id: DiffID) -> Opener | None:
        """A layer, or None."""
        return self.layers.get(diff_id)

    def open_blob(self, digest: Digest) -> Opener | None:
        """A blob, or None."""
        return self.blobs.get(digest)

    def _add_docker(self, archive: DockerArchive, image: DockerImage) -> None:
        """An image without a manifest has the one that `load` makes."""
        config = oci.parse_config(image.config, archive.source)
        for member, diff_id in zip(image.layers, config.diff_ids, strict=False):
            self.layers[diff_id] = lambda member=member: archive.open_member(member)[0]  # type: ignore[misc]  # its own member
        with self._store.read() as txn:
            records = [self._store.catalog.layer(txn, diff_id) for diff_id in config.diff_ids]
        digest = self._add_document(image.config)
        if None not in records:
            layers = [
                oci.Descriptor(oci.OCI_LAYER, diff_id, record.size)
                for diff_id, record in zip(config.diff_ids, records, strict=True)
                if record is not None
            ]
            own = oci.Descriptor(oci.OCI_CONFIG, digest, len(image.config))
            self._add_document(oci.encode_manifest(own, layers))

    def _add(self, archive: OciLayout, descriptor: oci.Descriptor) -> None:
        digest = descriptor.digest
        if digest in self.blobs or not archive.has_blob(digest):
            return
        self.blobs[digest] = lambda: archive.open_blob(digest)
        if descriptor.size > oci.MANIFEST_LIMIT:
            return
        data = archive.read_blob(descriptor, oci.MANIFEST_LIMIT)
        try:
            document = oci.parse_document(data, descriptor.media_type, archive.source)
        except (MalformedInput, Unsupported):  # a blob that is no document
            return
        if isinstance(document, oci.Index):
            for entry in document.manifests:
                self._add(archive, entry)
            return
        for blob in (document.config, *document.layers):
            if archive.has_blob(blob.digest):
                self.blobs[blob.digest] = lambda digest=blob.digest: archive.open_blob(digest)  # type: ignore[misc]  # its own digest
        if oci.is_image_manifest(document) and archive.has_blob(document.config.digest):
            data = archive.read_blob(document.config, oci.CONFIG_LIMIT)
            config = oci.parse_config(data, archive.source)
            for layer, diff_id in zip(document.layers, config.diff_ids, strict=False):
                if archive.has_blob(layer.digest):
                    self.layers[diff_id] = self.blobs[layer.digest]

    def _add_document(self, data: bytes) -> Digest:
        digest = digest_of(data)
        self.blobs[digest] = lambda: io.BytesIO(data)
        return digest


class StoreSource:
    """Another store, open for reading."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def chunks(
        self, wanted: Collection[bytes], first: AbstractSet[str]
    ) -> Iterator[tuple[bytes, bytes]]:
        """Chunks by their IDs; those that are damaged there as well are left out."""
        del first
        with self._store.read() as txn:
            found = self._store.index.lookup(txn, sorted(wanted))
        for chunk_id, number in found.items():
            with suppress(CorruptStore):
                (content,) = self._store.reader.read(np.array([number], "u8"))
                yield bytes(chunk_id), bytes(content)

    def open_layer(self, diff_id: DiffID) -> Opener | None:
        """A layer, or None."""
        with self._store.read() as txn:
            if self._store.catalog.layer(txn, diff_id) is None:
                return None
        return lambda: nullcontext(_Theirs(emit.iter_layer(self._store, diff_id), diff_id))

    def open_blob(self, digest: Digest) -> Opener | None:
        """A blob, or None."""
        with self._store.read() as txn:
            record = self._store.catalog.blob(txn, digest)
        if record is None or record.wrapping is Wrapping.DROPPED:
            return None
        return lambda: nullcontext(_Theirs(emit.iter_blob(self._store, digest), digest))


class _Theirs:
    """Bytes of another store: its damage is bad input here."""

    def __init__(self, blocks: Iterator[bytes], name: str) -> None:
        self._reader, self._name = BlockReader(blocks), name

    def read(self, size: int, /) -> bytes:
        try:
            return self._reader.read(size)
        except CorruptStore as error:
            raise MalformedInput(
                f"damaged in the other store: {error}", source=self._name
            ) from error
