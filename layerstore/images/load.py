"""Load: images out of an archive or a layout, layer by layer, visible only when whole.

    archive > documents > each layer not known yet: ingest, and split its blob beside it > recipe proven, or blob kept
            > one commit of documents, images, names

A layer is committed by itself, so that a load which is interrupted is not repeated from the start; an image, its
index and its names are committed together, after all their layers.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from layerstore import kernels
from layerstore.archives import DockerArchive, OciLayout
from layerstore.digest import DiffID, Digest, digest_of
from layerstore.errors import DigestMismatch, MalformedInput, NotFound
from layerstore.formats import oci
from layerstore.formats.codecs import Compression, sniff
from layerstore.formats.gzipsplit import NotSplit
from layerstore.images.convert import Splitting, record_recipe
from layerstore.images.progress import SILENT, CountedReader
from layerstore.ingest import Expected, ingest_blob, ingest_document, ingest_layer, verify_layer
from layerstore.reference import parse_reference
from layerstore.store.catalog import BlobRecord, ImageRecord, LayerRecord, Wrapping

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerstore.archives import DockerImage, ImageArchive, LayoutRoot, MemberReader
    from layerstore.images.progress import Progress
    from layerstore.store.database import Transaction
    from layerstore.store.session import WriteSession
    from layerstore.store.store import Store

__all__ = [
    "BlobPolicy",
    "LayerReport",
    "LayerStatus",
    "LoadOptions",
    "LoadReport",
    "LoadedImage",
    "load_archive",
]

_MAX_INDEX_DEPTH = 4  # an index of indexes exists; deeper is an attack
_SNIFF = 64
_WORTH = {Wrapping.DROPPED: 0, Wrapping.KEPT: 1, Wrapping.REGENERATED: 2, Wrapping.PLAIN: 3}


class BlobPolicy(StrEnum):
    """What becomes of compressed layers, whose digest is the one that manifests name."""

    EXACT = "exact"  # made again from a recipe; what has none that is proven is kept as it is
    DEFER = "defer"  # kept as they are, for `optimize` to convert
    DROP = "drop"  # only the tars inside are kept: manifests get other digests on the way out


class LayerStatus(StrEnum):
    """How a layer came to be in the store."""

    NEW = "new"
    KNOWN = "known"  # by its digest: not even read
    VERIFIED = "verified"  # another wrapping of a known tar: read, compared, not stored


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load.

    Attributes:
        blobs: what becomes of compressed layers.
        platform: of an index, only the manifest for this platform (`linux/arm64`); all that are present by default.
        name: give the (only) image this name instead of those in the archive.
    """

    blobs: BlobPolicy = BlobPolicy.EXACT
    platform: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer of a loaded image; `new_bytes` is what its tar added to the disk, in compressed chunks.

    `wrapping` says how the blob that the manifest names can be had, as in `catalog.Wrapping`; `reason` why a gzip one is
    kept and not regenerated.
    """

    diff_id: DiffID
    size: int
    status: LayerStatus
    chunks: int = 0
    new_chunks: int = 0
    new_bytes: int = 0
    wrapping: Wrapping = Wrapping.PLAIN
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """One image as it is now in the store.

    Attributes:
        names: full references that point to it, or to the index it came with.
        id: digest of its config, Docker's image ID.
        digest: of its manifest.
        exact: whether the manifest's compressed layers can be given out again byte for byte.
    """

    names: tuple[str, ...]
    id: Digest
    digest: Digest
    platform: str
    layers: tuple[LayerReport, ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did. `new_bytes` counts everything written, metadata included."""

    images: tuple[LoadedImage, ...]
    new_chunks: int
    new_bytes: int
    warnings: tuple[str, ...]


def load_archive(
    store: Store, archive: ImageArchive, options: LoadOptions, progress: Progress = SILENT
) -> LoadReport:
    """Load all images of an archive; each is durable and visible before the next begins.

    Raises:
        MalformedInput: names the file, entry and offset; images loaded before stay, this one does not appear.
        StoreFull, NotFound (nothing for the platform), InvalidArgument (a name).
    """
    images: list[LoadedImage] = []
    with store.begin() as session:
        if isinstance(archive, DockerArchive):
            entries = archive.images()
            _check_name(options, len(entries))
            for image in entries:
                names = _full_names(options, image.names)
                images += _Loader(store, session, options, progress).load_docker(
                    archive, image, names
                )
        else:
            roots = archive.roots()
            _check_name(options, len(roots))
            for root in roots:
                names = _full_names(options, root.names)
                images += _Loader(store, session, options, progress).load_root(archive, root, names)
        return LoadReport(
            tuple(images), session.new_chunks, session.new_bytes, tuple(archive.warnings)
        )


def _check_name(options: LoadOptions, count: int) -> None:
    if options.name is not None:
        parse_reference(options.name)
        if count != 1:
            raise MalformedInput(f"one name for {count} images; load without a name and use `tag`")


def _full_names(options: LoadOptions, names: tuple[str, ...]) -> tuple[str, ...]:
    wanted = (options.name,) if options.name is not None else names
    return tuple(str(parse_reference(name)) for name in wanted)


@dataclass(slots=True)
class _Loader:
    """One root of an archive: layers go in at once, records are collected for one commit at the end."""

    store: Store
    session: WriteSession
    options: LoadOptions
    progress: Progress
    records: list[Callable[[Transaction], None]] = field(default_factory=list)
    seen: set[Digest] = field(default_factory=set)  # an index may name a child many times
    images: list[tuple[Digest, Digest, str, tuple[LayerReport, ...], bool]] = field(
        default_factory=list
    )

    def load_root(
        self, archive: OciLayout, root: LayoutRoot, names: tuple[str, ...]
    ) -> list[LoadedImage]:
        self._load_descriptor(archive, root.descriptor, 0)
        if not self.images:
            wanted = f" for {self.options.platform}" if self.options.platform else ""
            raise NotFound(
                f"{archive.source}: {root.descriptor.digest} has no image{wanted} in this archive"
            )
        return self._commit(root.descriptor.digest, names)

    def load_docker(
        self, archive: DockerArchive, image: DockerImage, names: tuple[str, ...]
    ) -> list[LoadedImage]:
        """An image without a manifest gets one: its layers as plain tars."""
        config = oci.parse_config(image.config, archive.source)
        self._check_layer_count(len(image.layers), config, archive.source)
        self.session.hold(config.diff_ids)
        layers = tuple(
            self._load_member(archive, member, diff_id)
            for member, diff_id in zip(image.layers, config.diff_ids, strict=True)
        )
        config_digest = self._keep_document(image.config)
        manifest = oci.encode_manifest(
            oci.Descriptor(oci.OCI_CONFIG, config_digest, len(image.config)),
            [oci.Descriptor(oci.OCI_LAYER, layer.diff_id, layer.size) for layer in layers],
        )
        digest = self._keep_document(manifest)
        self._add_image(digest, config_digest, config, layers, exact=True)
        return self._commit(digest, names)

    def _load_descriptor(self, archive: OciLayout, descriptor: oci.Descriptor, depth: int) -> None:
        if descriptor.digest in self.seen:
            return
        self.seen.add(descriptor.digest)
        data = archive.read_blob(descriptor, oci.MANIFEST_LIMIT)
        document = oci.parse_document(
            data, descriptor.media_type, f"{archive.source}, {descriptor.digest}"
        )
        if isinstance(document, oci.Manifest):
            if oci.is_image_manifest(document):
                self._load_image(archive, descriptor.digest, document)
            else:
                for blob in (document.config, *document.layers):
                    self._keep_blob(archive, blob)
        else:
            if depth == _MAX_INDEX_DEPTH:
                raise MalformedInput("indexes are nested too deep", source=archive.source)
            for entry in self._wanted(document):
                # An index lists platforms that were never fetched: that is normal.
                if archive.has_blob(entry.digest):
                    self._load_descriptor(archive, entry, depth + 1)
        self._keep_document(data)

    def _wanted(self, index: oci.Index) -> tuple[oci.Descriptor, ...]:
        if self.options.platform is None:
            return index.manifests
        return (oci.select_platform(index, oci.parse_platform(self.options.platform)),)

    def _load_image(self, archive: OciLayout, digest: Digest, manifest: oci.Manifest) -> None:
        data = archive.read_blob(manifest.config, oci.CONFIG_LIMIT)
        source = f"{archive.source}, {manifest.config.digest}"
        config = oci.parse_config(data, source)
        self._check_layer_count(len(manifest.layers), config, source)
        self.session.hold([*config.diff_ids, *(layer.digest for layer in manifest.layers)])
        loaded = [
            self._load_layer(archive, layer, diff_id)
            for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
        ]
        self._keep_document(data)
        exact = all(report.wrapping is not Wrapping.DROPPED for report in loaded)
        self._add_image(
            digest,
            manifest.config.digest,
            config,
            tuple(loaded),
            exact=exact,
        )

    def _load_layer(
        self, archive: OciLayout, layer: oci.Descriptor, diff_id: DiffID
    ) -> LayerReport:
        """One layer blob."""
        with self.store.read() as txn:
            record = self.store.catalog.layer(txn, diff_id)
            blob = self.store.catalog.blob(txn, layer.digest)
        if blob is not None and blob.diff_id not in (None, diff_id):
            raise DigestMismatch(diff_id, str(blob.diff_id), blob.size, source=layer.digest)
        is_settled = blob is not None and (
            blob.wrapping is not Wrapping.DROPPED or self.options.blobs is BlobPolicy.DROP
        )
        if record is not None and (is_settled or not archive.has_blob(layer.digest)):
            self.progress.start(_short(layer.digest), layer.size)
            self.progress.finish("known")
            report = LayerReport(diff_id, record.size, LayerStatus.KNOWN)
            return _wrapped(report, blob)
        if not archive.has_blob(layer.digest):
            raise MalformedInput(
                f"layer {layer.digest} is not in the archive", source=archive.source
            )
        expected = Expected(layer.digest, layer.digest, layer.size, diff_id)
        report, entry = self._store_blob(archive, layer, expected, record)
        with self.session.commit() as txn:
            # Another load may have kept the blob meanwhile: a record is never made poorer.
            blob = self.session.catalog.blob(txn, layer.digest)
            if blob is None or _WORTH[blob.wrapping] < _WORTH[entry.wrapping]:
                self.session.catalog.put_blob(txn, layer.digest, entry)
                blob = entry
        return _wrapped(report, blob)

    def _store_blob(
        self,
        archive: OciLayout,
        layer: oci.Descriptor,
        expected: Expected,
        record: LayerRecord | None,
    ) -> tuple[LayerReport, BlobRecord]:
        """The tar of a blob, and all that the blob itself needs; its record is not committed yet."""

        def open_source() -> MemberReader:
            return archive.open_blob(layer.digest)

        compression = _sniffed(open_source)
        is_split = (
            compression is Compression.GZIP
            and self.options.blobs is BlobPolicy.EXACT
            and kernels.NAME == "native"
        )
        with Splitting(open_source, layer.size) if is_split else nullcontext() as splitting:
            report = self._store_layer(open_source, expected, compression, layer.size, record)
            none = BlobRecord(layer.size, Wrapping.DROPPED, report.diff_id, compression.value, ())
            if compression is Compression.NONE:
                return report, replace(none, wrapping=Wrapping.PLAIN)
            if self.options.blobs is BlobPolicy.DROP:
                return report, none
            reason = ""
            if splitting is not None:
                try:
                    return report, record_recipe(
                        self.store,
                        self.session,
                        layer.digest,
                        report.diff_id,
                        splitting.result(),
                    )
                except NotSplit as error:
                    reason = str(error)
        with open_source() as source:
            stretches = ingest_blob(source, expected, self.session)
        kept = replace(none, wrapping=Wrapping.KEPT, stretches=stretches, reason=reason)
        return report, kept

    def _load_member(self, archive: DockerArchive, member: str, diff_id: DiffID) -> LayerReport:
        with self.store.read() as txn:
            record = self.store.catalog.layer(txn, diff_id)
        if record is not None:
            self.progress.start(_short(diff_id), record.size)
            self.progress.finish("known")
            report = LayerReport(diff_id, record.size, LayerStatus.KNOWN)
        else:
            reader, size = archive.open_member(member)
            reader.close()

            def open_source() -> MemberReader:
                return archive.open_member(member)[0]

            expected = Expected(f"{archive.source}, {member}", diff_id=diff_id)
            report = self._store_layer(open_source, expected, _sniffed(open_source), size, None)
        plain = BlobRecord(report.size, Wrapping.PLAIN, diff_id, Compression.NONE.value, ())
        self._put_if_new(diff_id, plain)
        return report

    def _store_layer(
        self,
        open_source: Callable[[], MemberReader],
        expected: Expected,
        compression: Compression,
        size: int,
        record: LayerRecord | None,
    ) -> LayerReport:
        """Ingest a layer, or only compare it where its tar is known."""
        self.progress.start(_short(expected.diff_id or expected.name), size)
        outcome = "failed"
        try:
            with open_source() as source:
                counted = CountedReader(source, self.progress.advance)
                if record is not None:
                    diff_id = verify_layer(counted, expected, compression, self.store.limits)
                    report = LayerReport(diff_id, record.size, LayerStatus.VERIFIED)
                else:
                    done = ingest_layer(counted, expected, compression, self.session)
                    report = LayerReport(
                        done.diff_id,
                        done.size,
                        LayerStatus.NEW,
                        done.chunks,
                        done.new_chunks,
                        done.new_bytes,
                    )
            outcome = report.status.value
        finally:
            self.progress.finish(outcome)
        return report

    def _keep_blob(self, archive: OciLayout, blob: oci.Descriptor) -> None:
        """A blob that is no layer of an image (an attestation): as it is, where the archive has it."""
        self.session.hold([blob.digest])
        with self.store.read() as txn:
            known = self.store.catalog.blob(txn, blob.digest)
        if known is not None or not archive.has_blob(blob.digest):
            return
        with archive.open_blob(blob.digest) as source:
            expected = Expected(blob.digest, blob.digest, blob.size)
            stretches = ingest_blob(source, expected, self.session)
        record = BlobRecord(blob.size, Wrapping.KEPT, None, Compression.NONE.value, stretches)
        self._put_if_new(blob.digest, record)

    def _keep_document(self, data: bytes) -> Digest:
        digest = digest_of(data)
        stretches = ingest_document(data, self.session)
        none = Compression.NONE.value

        def put(txn: Transaction) -> None:
            # Asked only now: the record may have been collected since the load began.
            if self.session.catalog.blob(txn, digest) is None:
                record = BlobRecord(len(data), Wrapping.KEPT, None, none, stretches())
                self.session.catalog.put_blob(txn, digest, record)

        self.records.append(put)
        return digest

    def _put_if_new(self, digest: Digest, record: BlobRecord) -> None:
        def put(txn: Transaction) -> None:
            if self.session.catalog.blob(txn, digest) is None:
                self.session.catalog.put_blob(txn, digest, record)

        self.records.append(put)

    def _add_image(
        self,
        digest: Digest,
        config_digest: Digest,
        config: oci.ImageConfig,
        layers: tuple[LayerReport, ...],
        *,
        exact: bool,
    ) -> None:
        self.images.append((digest, config_digest, str(config.platform), layers, exact))
        record = ImageRecord(config_digest, config.diff_ids, time.time_ns())

        def put(txn: Transaction) -> None:
            # Asked only now: the image may have been removed since the load began.
            if self.session.catalog.image(txn, digest) is None:
                self.session.catalog.put_image(txn, digest, record)

        self.records.append(put)

    def _check_layer_count(self, count: int, config: oci.ImageConfig, source: str) -> None:
        self.store.limits.check("layers", count, source=source)
        if count != len(config.diff_ids):
            raise MalformedInput(
                f"{count} layers, but the config names {len(config.diff_ids)}", source=source
            )

    def _commit(self, target: Digest, names: tuple[str, ...]) -> list[LoadedImage]:
        """Make the images visible, and durable: names last. Where nothing changes, LMDB writes nothing."""
        with self.session.commit() as txn:
            for record in self.records:
                record(txn)
            for name in names:
                if self.session.catalog.ref(txn, name) != target:
                    self.session.catalog.put_ref(txn, name, target)
        return [
            LoadedImage(names, config, digest, platform, layers, exact)
            for digest, config, platform, layers, exact in self.images
        ]


def _sniffed(open_source: Callable[[], MemberReader]) -> Compression:
    with open_source() as source:
        return sniff(source.read(_SNIFF))


def _wrapped(report: LayerReport, blob: BlobRecord | None) -> LayerReport:
    """The report with what it says of the blob."""
    if blob is None:  # never seen: its layer is known from elsewhere
        return replace(report, wrapping=Wrapping.DROPPED)
    return replace(report, wrapping=blob.wrapping, reason=blob.reason)


def _short(digest: str) -> str:
    return digest[7:19] if digest.startswith("sha256:") else digest
