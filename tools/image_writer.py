"""Real images out of plain files, written with `tarfile` and `gzip` alone.

    LayerFile…  > write_layer > Layer (a tar, its diff ID) > write_docker_archive   NAME.tar, layers plain
                                                           > write_oci_layout       NAME/, layers gzip or zstd

Nothing of layerstore is used here, so that what it makes of these images can be compared with what was meant. The
same files and times give the same bytes.

Source: OCI image-spec `layer.md`, `config.md`, `manifest.md`, `image-layout.md`; Docker's `manifest.json`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Image",
    "Layer",
    "LayerFile",
    "read_layout",
    "write_docker_archive",
    "write_layer",
    "write_oci_layout",
    "write_tree",
]

_MEDIA_TYPE = "application/vnd.oci.image"
_BLOCK = 1 << 20
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class LayerFile:
    """One regular file of a layer; its parent folders come by themselves. `source` is a file, or the bytes."""

    path: str
    source: Path | bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as a plain tar; compressed forms are kept beside it. `diff_id` is `sha256:<hex>` of the tar."""

    tar: Path
    diff_id: str
    created_by: str

    def compressed(self, compression: str) -> Path:
        """The tar as `gzip` (level 6) or `zstd` (level 3), made at the first call; `none` is the tar itself."""
        if compression == "none":
            return self.tar
        target = self.tar.with_suffix(f".{compression}")
        if not target.exists():
            partial = target.with_suffix(".partial")
            with self.tar.open("rb") as source, partial.open("wb") as sink:
                if compression == "zstd":
                    zstandard.ZstdCompressor(level=3).copy_stream(source, sink)
                else:
                    with gzip.GzipFile("", "wb", 6, sink, mtime=0) as encoder:
                        while block := source.read(_BLOCK):
                            encoder.write(block)
            partial.rename(target)
        return target


@dataclass(frozen=True, slots=True)
class Image:
    """Layers, bottom first, under a name such as `demo/site:1`; `created_s` is seconds since the epoch."""

    name: str
    layers: Sequence[Layer]
    command: Sequence[str]
    created_s: int

    def config(self, machine: str) -> bytes:
        """The image config; `machine` as `platform.machine()` gives it."""
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created_s))
        return _json(
            {
                "architecture": _ARCHITECTURES.get(machine, machine),
                "os": "linux",
                "created": created,
                "config": {"Cmd": list(self.command), "WorkingDir": "/srv/app"},
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
                "history": [
                    {"created": created, "created_by": layer.created_by} for layer in self.layers
                ],
            }
        )


def write_layer(target: Path, files: Iterable[LayerFile], mtime: int, created_by: str) -> Layer:
    """Write a layer's tar: every file and folder belongs to root and has the time `mtime`, seconds since the epoch."""
    folders: set[str] = set()
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for file in sorted(files, key=lambda file: file.path):
            for parent in reversed(PurePosixPath(file.path).parents):
                if str(parent) != "." and str(parent) not in folders:
                    folders.add(str(parent))
                    tar.addfile(_member(str(parent), tarfile.DIRTYPE, 0o755, mtime))
            data = file.source if isinstance(file.source, bytes) else file.source.read_bytes()
            member = _member(file.path, tarfile.REGTYPE, file.mode, mtime)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with target.open("rb") as source:
        return Layer(target, _digest(source), created_by)


def write_tree(
    target: Path, root: Path, paths: Iterable[str], mtime: int, created_by: str
) -> Layer:
    """Write a layer's tar from what lies at `paths` under `root`; owners and times as `write_layer`."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member = _anonymous(member)
        member.mtime = mtime
        return member

    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            tar.add(root / path, path, filter=anonymous)
    with target.open("rb") as source:
        return Layer(target, _digest(source), created_by)


def write_docker_archive(target: Path, image: Image, machine: str) -> None:
    """Write what `docker save` writes: plain layers, a config, and `manifest.json`."""
    config = image.config(machine)
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    layers = [f"{layer.diff_id[7:]}/layer.tar" for layer in image.layers]
    manifest = [{"Config": config_name, "RepoTags": [image.name], "Layers": layers}]
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, layer in zip(layers, image.layers, strict=True):
            tar.add(layer.tar, name, filter=_anonymous)
        _add_bytes(tar, config_name, config)
        _add_bytes(tar, "manifest.json", _json(manifest))


def write_oci_layout(folder: Path, image: Image, machine: str, compression: str = "gzip") -> None:
    """Write an OCI layout with `gzip`, `zstd` or plain (`none`) layers into a new folder."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    descriptors = []
    for layer in image.layers:
        blob = layer.compressed(compression)
        with blob.open("rb") as source:
            digest = _digest(source)
        if not (blobs / digest[7:]).exists():
            (blobs / digest[7:]).hardlink_to(blob)  # layouts of one fleet share their blobs
        media_type = f"{_MEDIA_TYPE}.layer.v1.tar+{compression}".removesuffix("+none")
        descriptors.append({"mediaType": media_type, "digest": digest, "size": blob.stat().st_size})
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA_TYPE}.manifest.v1+json",
            "config": _put(blobs, image.config(machine), f"{_MEDIA_TYPE}.config.v1+json"),
            "layers": descriptors,
        }
    )
    root = _put(blobs, manifest, f"{_MEDIA_TYPE}.manifest.v1+json")
    root["annotations"] = {
        "io.containerd.image.name": image.name,
        "org.opencontainers.image.ref.name": image.name.partition(":")[2] or "latest",
    }
    (folder / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [root]}))
    (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))


def read_layout(folder: Path) -> list[tuple[Path, str]]:
    """The layers of the one image of a layout, bottom first: the blob's file and the diff ID."""

    def document(digest: str) -> Any:
        return json.loads((folder / "blobs" / digest.replace(":", "/")).read_bytes())

    index = json.loads((folder / "index.json").read_bytes())
    manifest = document(index["manifests"][0]["digest"])
    diff_ids = document(manifest["config"]["digest"])["rootfs"]["diff_ids"]
    blobs = [folder / "blobs" / layer["digest"].replace(":", "/") for layer in manifest["layers"]]
    return list(zip(blobs, diff_ids, strict=True))


def _member(name: str, kind: bytes, mode: int, mtime: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, mode, mtime
    return member


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = _member(name, tarfile.REGTYPE, 0o644, 0)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _put(blobs: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _digest(source: Any) -> str:
    return "sha256:" + hashlib.file_digest(source, "sha256").hexdigest()


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
