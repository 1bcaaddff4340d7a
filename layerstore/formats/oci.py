"""Manifests, indexes and image configs: the JSON documents that make layers an image.

    index ─┬─> manifest (linux/amd64) ─┬─> config      architecture, diff IDs, history, how to run
           │                           ├─> layer       a compressed tar, bottom first
           │                           └─> layer
           ├─> manifest (linux/arm64)  ...
           └─> manifest (unknown/unknown)   buildkit's attestation: an in-toto layer, no image

An arrow is a descriptor: media type, digest, size. The values here keep what this project needs; whoever must give
the document out again keeps its exact bytes, because its digest is its name. Unknown fields and media types are fine.

Documents are hostile: duplicate keys, numbers that are no sizes, lone surrogates and a document that is both a
manifest and an index (CVE-2021-41190) are refused, since two readers would see two images.

Source: OCI image-spec `manifest.md`, `image-index.md`, `config.md`, `descriptor.md`; Docker "Image Manifest Version 2,
Schema 2"; buildkit's attestation storage (`vnd.docker.reference.type`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from layerstore.digest import DiffID
from layerstore.errors import MalformedInput, NotFound, Unsupported
from layerstore.formats.platform import Platform, parse_platform, rank
from layerstore.formats.strictjson import Place, open_document

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from layerstore.digest import Digest

__all__ = [
    "ANNOTATION_CONTAINERD_NAME",
    "ANNOTATION_REFERENCE_TYPE",
    "ANNOTATION_REF_NAME",
    "CONFIG_LIMIT",
    "DOCKER_CONFIG",
    "DOCKER_FOREIGN_LAYER_GZIP",
    "DOCKER_INDEX",
    "DOCKER_LAYER",
    "DOCKER_LAYER_GZIP",
    "DOCKER_LAYER_ZSTD",
    "DOCKER_MANIFEST",
    "MANIFEST_LIMIT",
    "OCI_CONFIG",
    "OCI_INDEX",
    "OCI_LAYER",
    "OCI_LAYER_GZIP",
    "OCI_LAYER_ZSTD",
    "OCI_MANIFEST",
    "Descriptor",
    "HistoryEntry",
    "ImageConfig",
    "Index",
    "Manifest",
    "Platform",
    "encode_index",
    "encode_manifest",
    "extend_index",
    "is_attestation",
    "is_foreign_layer",
    "is_image_manifest",
    "is_index",
    "is_layer",
    "is_layer_type",
    "is_manifest",
    "parse_config",
    "parse_document",
    "parse_index",
    "parse_manifest",
    "parse_platform",
    "select_platform",
]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = OCI_LAYER + "+gzip"
OCI_LAYER_ZSTD = OCI_LAYER + "+zstd"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = DOCKER_LAYER + ".gzip"
DOCKER_LAYER_ZSTD = DOCKER_LAYER + ".zstd"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_FOREIGN_LAYER_GZIP = DOCKER_FOREIGN_LAYER + ".gzip"
_OCI_LAYERS = "application/vnd.oci.image.layer."
_OCI_FOREIGN_LAYERS = "application/vnd.oci.image.layer.nondistributable."
_DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+"

ANNOTATION_REF_NAME = "org.opencontainers.image.ref.name"
ANNOTATION_CONTAINERD_NAME = "io.containerd.image.name"
ANNOTATION_REFERENCE_TYPE = "vnd.docker.reference.type"

MANIFEST_LIMIT = 4 << 20  # bytes; registries refuse larger manifests and indexes
CONFIG_LIMIT = 16 << 20  # bytes; the largest seen in practice are some hundred KiB

T = TypeVar("T")


def _no_texts() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An arrow to a blob: its media type is a claim, its digest and size are checked when it is read."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=_no_texts, hash=False)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    artifact_type: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform (or any artifact: ask `is_image_manifest`). Layers are bottom first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=_no_texts, hash=False)
    subject: Descriptor | None = None
    artifact_type: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests, usually one for each platform; they need not all be present."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=_no_texts, hash=False)
    subject: Descriptor | None = None
    artifact_type: str = ""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One build step; those that are not `empty_layer` are the layers in order, if the builder kept it well."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image is made of and how to run it.

    Attributes:
        created: RFC 3339 text as the builder wrote it, or empty.
        diff_ids: digests of the uncompressed layers, bottom first.
        runtime: the `config` object (`Env`, `Cmd`, `Labels`, ...); read it, do not change it.
    """

    architecture: str
    os: str
    variant: str
    created: str
    author: str
    diff_ids: tuple[DiffID, ...]
    history: tuple[HistoryEntry, ...]
    runtime: Mapping[str, Any] = field(hash=False)

    @property
    def platform(self) -> Platform:
        """The platform in the form that indexes use."""
        return Platform(self.os, self.architecture, self.variant)


def parse_document(data: bytes, media_type: str | None, source: str) -> Manifest | Index:
    """Parse a manifest or an index, whichever it is.

    Its own `mediaType` decides, then the one it was served under, then its shape.

    Raises:
        MalformedInput: naming `source` and the JSON path.
        Unsupported: a Docker schema 1 manifest, which does not name its layers' diff IDs.
    """
    root = open_document(data, MANIFEST_LIMIT, source)
    declared = root.text("mediaType") or media_type or ""
    if declared.startswith(_DOCKER_SCHEMA1) or root.at("schemaVersion").value == 1:
        raise Unsupported(
            f"{source}: a Docker schema 1 manifest; pull and push the image with a newer Docker"
        )
    if is_index(declared):
        return _index(root)
    if is_manifest(declared):
        return _manifest(root)
    if "manifests" in root.as_object():
        return _index(root)
    if root.has("layers") or root.has("config"):
        return _manifest(root)
    raise MalformedInput("neither an image manifest nor an index", source=source)


def parse_manifest(data: bytes, source: str) -> Manifest:
    """Parse a manifest; raises MalformedInput naming `source` and the JSON path."""
    return _manifest(open_document(data, MANIFEST_LIMIT, source))


def parse_index(data: bytes, source: str) -> Index:
    """Parse an index, a Docker manifest list or an OCI layout's `index.json`; raises MalformedInput."""
    return _index(open_document(data, MANIFEST_LIMIT, source))


def parse_config(data: bytes, source: str) -> ImageConfig:
    """Parse an image config; raises MalformedInput naming `source` and the JSON path."""
    root = open_document(data, CONFIG_LIMIT, source)
    rootfs = root.member("rootfs")
    if rootfs is None:
        raise root.bad("rootfs is missing: not an image config")
    kind = rootfs.text("type")
    if kind not in {"", "layers"}:
        raise rootfs.bad(f"type {kind[:40]!r} instead of 'layers'")
    runtime = root.member("config")
    return ImageConfig(
        architecture=root.text("architecture"),
        os=root.text("os"),
        variant=root.text("variant"),
        created=root.text("created"),
        author=root.text("author"),
        diff_ids=tuple(DiffID(d) for d in rootfs.sequence("diff_ids", Place.as_digest)),
        history=root.sequence("history", _history_entry),
        runtime=MappingProxyType({} if runtime is None else runtime.as_object()),
    )


def is_index(media_type: str) -> bool:
    """Whether this is the media type of an index."""
    return media_type in {OCI_INDEX, DOCKER_INDEX}


def is_manifest(media_type: str) -> bool:
    """Whether this is the media type of a manifest."""
    return media_type in {OCI_MANIFEST, DOCKER_MANIFEST}


def is_image_manifest(manifest: Manifest) -> bool:
    """Whether the manifest is an image that can be unpacked, and no attestation or other artifact."""
    if manifest.config.media_type not in {OCI_CONFIG, DOCKER_CONFIG}:
        return False
    return all(is_layer(layer) for layer in manifest.layers)


def is_layer(descriptor: Descriptor) -> bool:
    """Whether the descriptor's media type is a layer's, of any compression, foreign ones included."""
    return is_layer_type(descriptor.media_type)


def is_layer_type(media_type: str) -> bool:
    """Whether this is the media type of a layer."""
    return media_type.startswith((_OCI_LAYERS, DOCKER_LAYER, DOCKER_FOREIGN_LAYER))


def is_foreign_layer(descriptor: Descriptor) -> bool:
    """Whether the layer may be absent from archives and registries (Windows base layers)."""
    return descriptor.media_type.startswith((_OCI_FOREIGN_LAYERS, DOCKER_FOREIGN_LAYER))


def is_attestation(descriptor: Descriptor) -> bool:
    """Whether an index entry is buildkit's attestation for another entry."""
    if ANNOTATION_REFERENCE_TYPE in descriptor.annotations:
        return True
    platform = descriptor.platform
    return platform is not None and platform.os == platform.architecture == "unknown"


def select_platform(index: Index, platform: Platform) -> Descriptor:
    """Choose the entry that runs best on a platform: the same OS and CPU, the highest variant not above its own.

    An entry without a platform is taken if it is the only candidate. The result may itself be an index.

    Raises: NotFound: nothing fits; the message lists what there is.
    """
    candidates = [d for d in index.manifests if not is_attestation(d)]
    best: tuple[tuple[int, ...], Descriptor] | None = None
    for descriptor in candidates:
        suits = None if descriptor.platform is None else rank(descriptor.platform, platform)
        if suits is not None and (best is None or suits > best[0]):
            best = suits, descriptor
    if best is not None:
        return best[1]
    nameless = [d for d in candidates if d.platform is None]
    if len(nameless) == 1 == len(candidates):
        return nameless[0]
    there = ", ".join(sorted({str(d.platform) for d in candidates if d.platform is not None}))
    raise NotFound(f"no image for {platform}; there is: {there or 'nothing'}")


def encode_manifest(
    config: Descriptor,
    layers: Sequence[Descriptor],
    annotations: Mapping[str, str] = MappingProxyType({}),
    media_type: str = OCI_MANIFEST,
) -> bytes:
    """Write a manifest as compact JSON; the same arguments always give the same bytes."""
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _descriptor_json(config),
        "layers": [_descriptor_json(layer) for layer in layers],
    }
    return _dump(document, annotations)


def encode_index(
    manifests: Sequence[Descriptor],
    annotations: Mapping[str, str] = MappingProxyType({}),
    media_type: str = OCI_INDEX,
) -> bytes:
    """Write an index (also a layout's `index.json`) as compact JSON; the same arguments give the same bytes."""
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [_descriptor_json(manifest) for manifest in manifests],
    }
    return _dump(document, annotations)


def extend_index(existing: bytes, manifests: Sequence[Descriptor], source: str) -> bytes:
    """Add entries to a layout's `index.json`, keeping what it says otherwise.

    An old entry with the name annotations of a new one is replaced, as is one that is the same without a name.

    Raises: MalformedInput: `existing` is not an index.
    """
    root = open_document(existing, MANIFEST_LIMIT, source)
    old = _index(root).manifests
    replaced = {_identity(d) for d in manifests}
    kept = [
        entry
        for entry, descriptor in zip(root.sequence("manifests", Place.as_object), old, strict=True)
        if _identity(descriptor) not in replaced
    ]
    return _dump({**root.as_object(), "manifests": [*kept, *map(_descriptor_json, manifests)]}, {})


def _identity(descriptor: Descriptor) -> tuple[str, ...]:
    names = [
        descriptor.annotations.get(k, "") for k in (ANNOTATION_CONTAINERD_NAME, ANNOTATION_REF_NAME)
    ]
    return tuple(names) if any(names) else (descriptor.digest,)


def _manifest(root: Place) -> Manifest:
    if root.has("manifests"):
        raise root.bad("a manifest that is also an index; no one reading of it is right")
    if is_index(root.text("mediaType")):
        raise root.bad("mediaType says index")
    config = root.member("config")
    if config is None:
        raise root.bad("config is missing")
    return Manifest(
        media_type=root.text("mediaType") or _manifest_type(config.text("mediaType")),
        config=_descriptor(config),
        layers=root.sequence("layers", _descriptor),
        annotations=root.texts("annotations"),
        subject=_optional(root.member("subject"), _descriptor),
        artifact_type=root.text("artifactType"),
    )


def _manifest_type(config_type: str) -> str:
    # OCI made the field optional; then the config's type tells the two kinds apart.
    return DOCKER_MANIFEST if config_type == DOCKER_CONFIG else OCI_MANIFEST


def _index(root: Place) -> Index:
    if root.has("layers") or root.has("config"):
        raise root.bad("an index that is also a manifest; no one reading of it is right")
    if is_manifest(root.text("mediaType")):
        raise root.bad("mediaType says manifest")
    if "manifests" not in root.as_object():
        raise root.bad("manifests is missing")
    return Index(
        media_type=root.text("mediaType") or OCI_INDEX,
        manifests=root.sequence("manifests", _descriptor),
        annotations=root.texts("annotations"),
        subject=_optional(root.member("subject"), _descriptor),
        artifact_type=root.text("artifactType"),
    )


def _descriptor(place: Place) -> Descriptor:
    return Descriptor(
        media_type=place.text("mediaType"),
        digest=place.at("digest").as_digest(),
        size=place.size("size"),
        annotations=place.texts("annotations"),
        platform=_optional(place.member("platform"), _platform),
        urls=place.sequence("urls", Place.as_text),
        artifact_type=place.text("artifactType"),
    )


def _platform(place: Place) -> Platform:
    return Platform(
        place.text("os"),
        place.text("architecture"),
        place.text("variant"),
        place.text("os.version"),
    )


def _history_entry(place: Place) -> HistoryEntry:
    return HistoryEntry(
        created=place.text("created"),
        created_by=place.text("created_by"),
        author=place.text("author"),
        comment=place.text("comment"),
        empty_layer=place.flag("empty_layer"),
    )


def _optional(place: Place | None, parse: Callable[[Place], T]) -> T | None:
    return None if place is None else parse(place)


def _descriptor_json(descriptor: Descriptor) -> dict[str, object]:
    document: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.urls:
        document["urls"] = list(descriptor.urls)
    if descriptor.annotations:
        document["annotations"] = dict(sorted(descriptor.annotations.items()))
    if descriptor.platform is not None:
        platform = descriptor.platform
        fields = {"architecture": platform.architecture, "os": platform.os}
        optional = {"os.version": platform.os_version, "variant": platform.variant}
        document["platform"] = fields | {key: text for key, text in optional.items() if text}
    if descriptor.artifact_type:
        document["artifactType"] = descriptor.artifact_type
    return document


def _dump(document: dict[str, object], annotations: Mapping[str, str]) -> bytes:
    if annotations:
        document = {**document, "annotations": dict(sorted(annotations.items()))}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
