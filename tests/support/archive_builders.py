"""Small archives of images of every kind, built from layer tars; independent of the code under test.

docker_archive([layer], style="old")        <id>/layer.tar, VERSION, json, manifest.json last, repositories
docker_archive([layer], style="new")        podman and skopeo: <diff id>.tar, and <id>/layer.tar linking to it
docker_archive([layer], style="combined")   Docker since 25: an OCI layout with plain layers, and manifest.json
oci_layout([layer])                         the files of an OCI layout, for `write_folder` or `tar_of`
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "Image",
    "docker_archive",
    "docker_archive_of",
    "image_config",
    "layer_tar",
    "oci_layout",
    "oci_layout_of",
    "sha256",
    "tar_of",
    "write_folder",
]

Style = Literal["old", "new", "combined"]
Codec = Literal["none", "gzip", "zstd"]

_OCI = "application/vnd.oci.image."
_SUFFIX = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}


@dataclass(frozen=True)
class Image:
    """What an archive holds: layer tars bottom first, the config's bytes, references as written."""

    layers: Sequence[bytes]
    config: bytes
    tags: Sequence[str] = ()

    @classmethod
    def of(cls, layers: Sequence[bytes], *tags: str) -> Image:
        return cls(layers, image_config(layers), tags)


@dataclass(frozen=True)
class Link:
    """A symbolic link, where a file's bytes could be."""

    target: str


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def layer_tar(files: Mapping[str, bytes]) -> bytes:
    """A layer with these files; equal arguments give equal bytes."""
    return tar_of(files)


def image_config(layers: Sequence[bytes], **fields: object) -> bytes:
    """An image config with the layers' diff IDs; `fields` replace or add members."""
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer)}" for layer in layers]},
        "history": [{"created_by": f"step {i}"} for i, _ in enumerate(layers)],
    }
    return _json(document | fields)


def docker_archive(
    layers: Sequence[bytes],
    config: bytes | None = None,
    style: Style = "old",
    tags: Sequence[str] = ("example/app:1",),
) -> bytes:
    """A docker-archive of one image, as a tar."""
    return docker_archive_of([Image(layers, config or image_config(layers), tags)], style)


def docker_archive_of(images: Sequence[Image], style: Style = "old", prefix: str = "") -> bytes:
    """A docker-archive of several images, as a tar; `prefix` goes before every member name."""
    if style == "combined":
        return tar_of(_combined(images), prefix)
    files: dict[str, bytes | Link] = {}
    manifest = []
    repositories: dict[str, dict[str, str]] = {}
    for image in images:
        names = []
        for i, layer in enumerate(image.layers):
            layer_id = sha256(f"{i} {sha256(layer)} {sha256(image.config)}".encode())
            names.append(f"{layer_id}/layer.tar" if style == "old" else f"{sha256(layer)}.tar")
            if style == "new":
                files[names[-1]] = layer
            files[f"{layer_id}/layer.tar"] = layer if style == "old" else Link(f"../{names[-1]}")
            files[f"{layer_id}/VERSION"] = b"1.0"
            files[f"{layer_id}/json"] = _json({"id": layer_id})
            for tag in image.tags:
                repository, _, version = tag.rpartition(":")
                repositories.setdefault(repository, {})[version] = layer_id
        files[f"{sha256(image.config)}.json"] = image.config
        manifest.append(
            {
                "Config": f"{sha256(image.config)}.json",
                "RepoTags": list(image.tags) or None,
                "Layers": names,
            }
        )
    files["manifest.json"] = _json(manifest)
    files["repositories"] = _json(repositories)
    return tar_of(files, prefix)


def oci_layout(
    layers: Sequence[bytes],
    config: bytes | None = None,
    codec: Codec = "gzip",
    annotations: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
    """The files of an OCI layout with one image; by default its only name is the tag `latest`."""
    image = Image(layers, config or image_config(layers))
    return oci_layout_of(
        [(image, annotations or {"org.opencontainers.image.ref.name": "latest"})], codec
    )


def oci_layout_of(
    images: Iterable[tuple[Image, Mapping[str, str]]],
    codec: Codec = "gzip",
    compressed: Mapping[bytes, bytes] | None = None,
) -> dict[str, bytes]:
    """The files of an OCI layout: images with the annotations of their entries in `index.json`.

    `compressed` has the blobs of layers that are not to be compressed here.
    """
    ready = compressed or {}
    blobs: dict[str, bytes] = {}
    roots = []
    for image, notes in images:
        layers = [
            _put(
                blobs,
                _OCI + "layer.v1.tar" + _SUFFIX[codec],
                ready[x] if x in ready else _compress(x, codec),
            )
            for x in image.layers
        ]
        config = _put(blobs, _OCI + "config.v1+json", image.config)
        manifest = {
            "schemaVersion": 2,
            "mediaType": _OCI + "manifest.v1+json",
            "config": config,
            "layers": layers,
        }
        root = _put(blobs, _OCI + "manifest.v1+json", _json(manifest))
        roots.append(root | ({"annotations": dict(notes)} if notes else {}))
    index = {"schemaVersion": 2, "mediaType": _OCI + "index.v1+json", "manifests": roots}
    return blobs | {
        "index.json": _json(index),
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
    }


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder; returns the folder."""
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def tar_of(files: Mapping[str, bytes | Link], prefix: str = "") -> bytes:
    """A tar of files and links, in order; equal arguments give equal bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(prefix + name)
            if isinstance(data, Link):
                info.type, info.linkname = tarfile.SYMTYPE, data.target
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _combined(images: Sequence[Image]) -> dict[str, bytes]:
    """As Docker 25 and later: names in both halves, layers uncompressed."""
    entries = []
    for image in images:
        for tag in image.tags or [""]:
            name = {"io.containerd.image.name": f"docker.io/{tag}"} if tag else {}
            entries.append((image, name))
    files = oci_layout_of(entries, "none")
    manifest = [
        {
            "Config": f"blobs/sha256/{sha256(image.config)}",
            "RepoTags": list(image.tags) or None,
            "Layers": [f"blobs/sha256/{sha256(layer)}" for layer in image.layers],
        }
        for image in images
    ]
    return files | {"manifest.json": _json(manifest)}


def _put(blobs: dict[str, bytes], media_type: str, data: bytes) -> dict[str, object]:
    blobs[f"blobs/sha256/{sha256(data)}"] = data
    return {"mediaType": media_type, "digest": f"sha256:{sha256(data)}", "size": len(data)}


def _compress(data: bytes, codec: Codec) -> bytes:
    if codec == "gzip":
        return gzip.compress(data, 6, mtime=0)
    return zstandard.ZstdCompressor().compress(data) if codec == "zstd" else data


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
