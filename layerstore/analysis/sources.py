"""Images to analyze, wherever they are: archives, layouts, folders of them, and images of a store. Their layers stay unread.

    folder    an OCI layout, or whatever in it is an archive or a layout
    file      a docker-archive or an OCI layout, compressed or not
    name      an image of the store; without any source, all images of it

An image that comes twice (equal config) counts once, under the names of all.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from layerstore.archives import DockerArchive, open_archive
from layerstore.digest import digest_of
from layerstore.errors import LayerstoreError, MalformedInput, NotFound
from layerstore.formats import oci
from layerstore.formats.codecs import SNIFF_SIZE, Compression, sniff
from layerstore.ingest import Expected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from layerstore.archives import ImageArchive, LayoutRoot, MemberReader, OciLayout
    from layerstore.digest import DiffID, Digest
    from layerstore.limits import Limits

__all__ = ["FoundImage", "FoundLayer", "Skipped", "Sources"]

_MAX_INDEX_DEPTH = 8

T = TypeVar("T")


class FoundLayer(NamedTuple):
    """A layer of an archive that is to be read. `size` is that of the blob as it lies there."""

    diff_id: DiffID
    expected: Expected
    size: int
    open: Callable[[], MemberReader]

    def compression(self) -> Compression:
        """How the blob is compressed, by its first bytes."""
        with self.open() as source:
            return sniff(source.read(SNIFF_SIZE))


@dataclass(slots=True)
class FoundImage:
    """An image. `blobs` are bytes of its layers as they came compressed, 0 where they came plain."""

    id: Digest
    names: tuple[str, ...]
    source: str
    diff_ids: tuple[DiffID, ...]
    blobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something in a folder of archives that was not taken, and why."""

    path: str
    reason: str


class Sources:
    """Opens archives and collects what is in them. Close it when the layers were read.

    Thread safety: `add` from one thread; the layers' `open` from any.

    Attributes:
        images: by ID, in the order they were found.
        layers: by diff ID, one that can be read for each.
        skipped: what folders held besides.
    """

    def __init__(self, spool: Path, limits: Limits) -> None:
        """Open nothing yet; `spool` is a folder for archives that are compressed as a whole."""
        self._spool, self._limits = spool, limits
        self._opened = ExitStack()
        self.images: dict[Digest, FoundImage] = {}
        self.layers: dict[DiffID, FoundLayer] = {}
        self.skipped: list[Skipped] = []

    def close(self) -> None:
        """Close all archives."""
        self._opened.close()

    def add(self, path: Path) -> None:
        """Add an archive, a layout, or all that a folder holds of them.

        Raises: NotFound: no such path, or a folder without any. MalformedInput: no archive; of a folder's, only noted.
        """
        if not path.is_dir() or (path / "index.json").is_file():
            self._add_archive(path)
            return
        before = len(self.images)
        for child in sorted(path.iterdir()):
            if child.name.startswith("."):
                continue
            try:
                if child.is_dir() and not (child / "index.json").is_file():
                    continue
                self._add_archive(child)
            except (LayerstoreError, OSError) as error:
                self.skipped.append(Skipped(str(child), str(error)))
        if len(self.images) == before:
            raise NotFound(f"{path}: no archive of images and no OCI layout is in this folder")

    def _add_archive(self, path: Path) -> None:
        archive = open_archive(path, self._spool, self._limits)
        self._opened.callback(archive.close)
        if isinstance(archive, DockerArchive):
            for image in archive.images():
                self._add_docker(archive, image.names, image.config, image.layers)
        else:
            for root in archive.roots():
                self._add_root(archive, root)

    def _add_docker(
        self, archive: DockerArchive, names: Sequence[str], config: bytes, members: Sequence[str]
    ) -> None:
        parsed = oci.parse_config(config, archive.source)
        layers = []
        for member, diff_id in self._pairs(archive, members, parsed.diff_ids):
            reader, size = archive.open_member(member)
            reader.close()
            expected = Expected(f"{archive.source}, {member}", diff_id=diff_id)
            layers.append(
                FoundLayer(diff_id, expected, size, partial(_open_member, archive, member))
            )
        self._add_image(archive, digest_of(config), names, layers)

    def _add_root(self, archive: OciLayout, root: LayoutRoot) -> None:
        found = list(self._manifests(archive, root.descriptor, 0))
        for manifest in found:
            data = archive.read_blob(manifest.config, oci.CONFIG_LIMIT)
            source = f"{archive.source}, {manifest.config.digest}"
            config = oci.parse_config(data, source)
            layers = [
                FoundLayer(
                    diff_id,
                    Expected(blob.digest, blob.digest, blob.size, diff_id),
                    blob.size,
                    partial(archive.open_blob, blob.digest),
                )
                for blob, diff_id in self._pairs(archive, manifest.layers, config.diff_ids)
            ]
            names = root.names
            if len(found) > 1:
                names = tuple(f"{name} {config.platform}" for name in names)
            self._add_image(archive, manifest.config.digest, names, layers)

    def _manifests(
        self, archive: OciLayout, descriptor: oci.Descriptor, depth: int
    ) -> Iterable[oci.Manifest]:
        if depth > _MAX_INDEX_DEPTH:
            raise MalformedInput("indexes are nested too deep", source=archive.source)
        data = archive.read_blob(descriptor, oci.MANIFEST_LIMIT)
        document = oci.parse_document(data, descriptor.media_type, archive.source)
        if isinstance(document, oci.Index):
            for entry in document.manifests:
                if archive.has_blob(entry.digest):  # platforms that were never fetched are normal
                    yield from self._manifests(archive, entry, depth + 1)
        elif oci.is_image_manifest(document) and all(
            archive.has_blob(layer.digest) for layer in document.layers
        ):
            yield document

    def _pairs(
        self, archive: ImageArchive, layers: Sequence[T], diff_ids: Sequence[DiffID]
    ) -> Iterable[tuple[T, DiffID]]:
        self._limits.check("layers", len(layers), source=archive.source)
        if len(layers) != len(diff_ids):
            raise MalformedInput(
                f"{len(layers)} layers, but the config names {len(diff_ids)}", source=archive.source
            )
        return zip(layers, diff_ids, strict=True)

    def _add_image(
        self,
        archive: ImageArchive,
        image_id: Digest,
        names: Sequence[str],
        layers: Sequence[FoundLayer],
    ) -> None:
        blobs = []
        for layer in layers:
            compressed = layer.compression() is not Compression.NONE
            blobs.append(layer.size if compressed else 0)
            known = self.layers.get(layer.diff_id)
            # A plain one is quicker to read.
            if known is None or (not compressed and known.size < layer.size):
                self.layers[layer.diff_id] = layer
        image = self.images.get(image_id)
        if image is None:
            diff_ids = tuple(layer.diff_id for layer in layers)
            source = archive.source
            self.images[image_id] = FoundImage(
                image_id, tuple(names), source, diff_ids, tuple(blobs)
            )
            return
        image.names = tuple(dict.fromkeys((*image.names, *names)))
        image.blobs = tuple(a or b for a, b in zip(image.blobs, blobs, strict=True))


def _open_member(archive: DockerArchive, name: str) -> MemberReader:
    return archive.open_member(name)[0]
