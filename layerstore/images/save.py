"""Save: images to an archive that Docker, containerd, skopeo and umoci load, or to an OCI layout folder.

    blobs/sha256/<hex>   config, manifests, layers      oci-layout, index.json      for OCI readers
    manifest.json, repositories                                                    for `docker load`

One tar serves both kinds of reader. A manifest goes out byte for byte where every blob it names can: layers that
came in plain, or were kept. Else the image gets a new manifest over plain (or zstd) layers; its image ID is the same.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard

from layerstore import emit
from layerstore.archives import FolderSink, TarSink
from layerstore.digest import Digest, digest_of
from layerstore.errors import CorruptStore, InvalidArgument, NotFound
from layerstore.formats import oci
from layerstore.images.lookup import find_target, image_of, names_by_target
from layerstore.images.progress import SILENT
from layerstore.reference import parse_reference
from layerstore.store import files
from layerstore.store.catalog import Wrapping

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import BinaryIO

    from layerstore.archives import ImageSink
    from layerstore.digest import DiffID
    from layerstore.images.progress import Progress
    from layerstore.store.store import Store

__all__ = ["ArchiveKind", "SaveOptions", "SaveReport", "SavedImage", "save_images"]

_BLOCK = 1 << 20
_ZSTD_LEVEL = 3


class ArchiveKind(StrEnum):
    """What to write."""

    DOCKER = "docker"  # a tar for OCI readers and `docker load` alike
    OCI = "oci"  # a tar with an OCI layout only
    FOLDER = "folder"  # an OCI layout folder


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """How to save.

    Attributes:
        kind: of archive.
        zstd: compress layers that do not go out as they came in; they are plain otherwise.
        platform: of an index, only the image for this platform.
    """

    kind: ArchiveKind = ArchiveKind.DOCKER
    zstd: bool = False
    platform: str | None = None


@dataclass(frozen=True, slots=True)
class SavedImage:
    """One saved root: what it was asked as, its digest in the archive, and whether that is the one it came with."""

    name: str
    digest: Digest
    exact: bool


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What was written."""

    images: tuple[SavedImage, ...]
    blobs: int
    bytes: int


def save_images(
    store: Store,
    names: Sequence[str],
    target: Path | BinaryIO,
    options: SaveOptions,
    progress: Progress = SILENT,
) -> SaveReport:
    """Write images to a file or folder, which appears only when it is whole, or to a stream.

    Raises:
        NotFound, InvalidArgument: a name.
        CorruptStore: the store has damaged bytes; no file appears.
        StoreFull: no room at the target.
    """
    if not names:
        raise InvalidArgument("name at least one image to save")
    with _open_sink(target, options.kind) as sink, files.no_room("write the archive"):
        saver = _Saver(store, sink, options, progress)
        for name in names:
            saver.save(name)
        saver.finish()
        sink.commit()
    return SaveReport(tuple(saver.saved), len(saver.written), sum(saver.written.values()))


def _open_sink(target: Path | BinaryIO, kind: ArchiveKind) -> ImageSink:
    if kind is not ArchiveKind.FOLDER:
        return TarSink(target)
    if not isinstance(target, Path):
        raise InvalidArgument("a layout folder needs a path, not a stream")
    return FolderSink(target)


@dataclass(slots=True)
class _Saver:
    """One archive being written."""

    store: Store
    sink: ImageSink
    options: SaveOptions
    progress: Progress
    saved: list[SavedImage] = field(default_factory=list)
    written: dict[Digest, int] = field(default_factory=dict)  # blob -> size
    roots: list[oci.Descriptor] = field(default_factory=list)  # index.json
    docker: dict[Digest, dict[str, object]] = field(
        default_factory=dict
    )  # manifest.json, by config
    compressed: dict[DiffID, oci.Descriptor] = field(default_factory=dict)

    def save(self, name: str) -> None:
        target = find_target(self.store, name)
        with self.store.hold(target):
            self._save(name, target)

    def _save(self, name: str, target: Digest) -> None:
        if self.options.platform is not None or self.options.kind is ArchiveKind.DOCKER:
            # What `docker load` reads has room for one platform.
            target = image_of(self.store, target, self.options.platform)
        tags = self._tags(name)
        descriptor = self._put_document(target, tags)
        exact = descriptor.digest == target
        self.saved.append(SavedImage(name, descriptor.digest, exact))
        for tag in tags or [""]:
            annotations = {}
            if tag:
                reference = parse_reference(tag)
                annotations = {
                    oci.ANNOTATION_CONTAINERD_NAME: tag,
                    oci.ANNOTATION_REF_NAME: reference.tag or "",
                }
            self.roots.append(replace(descriptor, annotations=annotations))

    def finish(self) -> None:
        """The documents that list the rest."""
        layout = b'{"imageLayoutVersion":"1.0.0"}'
        self._put_file("oci-layout", layout)
        existing = self.sink.index if isinstance(self.sink, FolderSink) else None
        if existing is None:
            index = oci.encode_index(self.roots)
        else:
            index = oci.extend_index(existing, self.roots, "index.json")
        self._put_file("index.json", index)
        if self.options.kind is ArchiveKind.DOCKER:
            self._put_file("manifest.json", _json(list(self.docker.values())))

    def _tags(self, name: str) -> list[str]:
        """The name that was asked for, or all names where an ID was."""
        with self.store.read() as txn:
            try:
                full = str(parse_reference(name))
            except InvalidArgument:
                full = ""
            if full and "@" not in full and self.store.catalog.ref(txn, full) is not None:
                return [full]
        return names_by_target(self.store).get(find_target(self.store, name), [])

    def _put_document(self, digest: Digest, tags: Sequence[str]) -> oci.Descriptor:
        """A manifest or index, exact if all below it is; returns the descriptor of what was written."""
        data = emit.read_document(self.store, digest)
        document = oci.parse_document(data, None, digest)
        if isinstance(document, oci.Manifest):
            return self._put_manifest(data, document, tags)
        children = []
        for entry in document.manifests:
            with self.store.read() as txn:
                known = self.store.catalog.blob(txn, entry.digest) is not None
            if known:
                written = self._put_document(entry.digest, tags)
                children.append((entry, replace(entry, digest=written.digest, size=written.size)))
        if any(before.digest != after.digest for before, after in children):
            # Attestations speak of the manifests as they were.
            kept = [after for before, after in children if not oci.is_attestation(before)]
            data = oci.encode_index(kept, document.annotations, document.media_type)
        return self._put_blob_bytes(data, document.media_type)

    def _put_manifest(
        self, data: bytes, manifest: oci.Manifest, tags: Sequence[str]
    ) -> oci.Descriptor:
        config = manifest.config
        if not oci.is_image_manifest(manifest):
            for blob in (config, *manifest.layers):
                self._put_stored_blob(blob)
            return self._put_blob_bytes(data, manifest.media_type)
        config_data = emit.read_document(self.store, config.digest)
        self._put_blob_bytes(config_data, config.media_type)
        layers = manifest.layers
        if all(self._is_exact(layer) for layer in layers):
            for layer in layers:
                self._put_stored_blob(layer)
        else:
            diff_ids = oci.parse_config(config_data, config.digest).diff_ids
            layers = tuple(self._put_layer(diff_id) for diff_id in diff_ids)
            data = oci.encode_manifest(
                replace(config, media_type=oci.OCI_CONFIG), layers, manifest.annotations
            )
        self._list_for_docker(config.digest, layers, tags)
        media_type = oci.OCI_MANIFEST if layers is not manifest.layers else manifest.media_type
        return self._put_blob_bytes(data, media_type)

    def _is_exact(self, layer: oci.Descriptor) -> bool:
        with self.store.read() as txn:
            record = self.store.catalog.blob(txn, layer.digest)
        return record is not None and record.wrapping is not Wrapping.DROPPED

    def _put_layer(self, diff_id: DiffID) -> oci.Descriptor:
        """A layer in the form that this archive gives to layers whose blob is gone."""
        with self.store.read() as txn:
            record = self.store.catalog.layer(txn, diff_id)
        if record is None:
            raise CorruptStore(f"layer {diff_id} of an image is missing; run `layerstore verify`")
        if not self.options.zstd:
            self._put_blob(diff_id, record.size, emit.iter_layer(self.store, diff_id))
            return oci.Descriptor(oci.OCI_LAYER, diff_id, record.size)
        if diff_id not in self.compressed:
            with _compressed(emit.iter_layer(self.store, diff_id), self.store.layout.tmp) as spool:
                file, digest, size = spool
                self._put_blob(digest, size, iter(lambda: file.read(_BLOCK), b""))
            self.compressed[diff_id] = oci.Descriptor(oci.OCI_LAYER_ZSTD, digest, size)
        return self.compressed[diff_id]

    def _put_stored_blob(self, blob: oci.Descriptor) -> None:
        try:
            self._put_blob(blob.digest, blob.size, emit.iter_blob(self.store, blob.digest))
        except NotFound:
            if oci.is_layer(blob):
                raise

    def _put_blob_bytes(self, data: bytes, media_type: str) -> oci.Descriptor:
        digest = digest_of(data)
        self._put_blob(digest, len(data), [data])
        return oci.Descriptor(media_type, digest, len(data))

    def _put_blob(self, digest: Digest, size: int, blocks: Iterable[bytes]) -> None:
        if digest in self.written:
            return
        self.progress.start(digest[7:19], size)
        outcome = "failed"
        try:
            self.sink.put(_path(digest), size, self._counted(blocks))
            outcome = "saved"
        finally:
            self.progress.finish(outcome)
        self.written[digest] = size

    def _counted(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in blocks:
            yield block
            self.progress.advance(len(block))

    def _put_file(self, name: str, data: bytes) -> None:
        self.sink.put(name, len(data), [data])

    def _list_for_docker(
        self, config: Digest, layers: Sequence[oci.Descriptor], tags: Sequence[str]
    ) -> None:
        entry = self.docker.setdefault(
            config,
            {
                "Config": _path(config),
                "RepoTags": [],
                "Layers": [_path(layer.digest) for layer in layers],
            },
        )
        known = entry["RepoTags"]
        if isinstance(known, list):
            # Full names: buildah and podman take a short one for an image of `localhost`.
            known += [name for tag in tags if (name := str(parse_reference(tag))) not in known]


@contextmanager
def _compressed(blocks: Iterable[bytes], folder: Path) -> Iterator[tuple[BinaryIO, Digest, int]]:
    """A layer as one zstd frame in an unnamed file: its size must be known before it goes into a tar."""
    with tempfile.TemporaryFile(dir=folder) as file, files.no_room("compress a layer"):
        encoder = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()
        hasher, size = hashlib.sha256(), 0
        for block in blocks:
            data = encoder.compress(block)
            hasher.update(data)
            size += file.write(data)
        data = encoder.flush()
        hasher.update(data)
        size += file.write(data)
        file.seek(0)
        yield file, Digest("sha256:" + hasher.hexdigest()), size


def _path(digest: Digest) -> str:
    return f"blobs/sha256/{digest[7:]}"


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
