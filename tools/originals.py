"""What is in an archive of images, found without layerstore: the other side of a comparison.

Reads docker-archives and OCI layouts (a folder, or a tar that is plain or gzip) with the standard library, decompresses
every layer, and names each config and each tar by the SHA-256 of its bytes. It trusts its input; layerstore does not.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OriginalImage", "OriginalLayer", "read_originals", "tar_blocks"]

_BLOCK = 1 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class OriginalLayer:
    """`diff_id` and `size` are those of the tar; `blob` and `blob_size` of the bytes in the archive."""

    diff_id: str
    size: int
    blob: str
    blob_size: int


@dataclass(frozen=True, slots=True)
class OriginalImage:
    """`id` is the SHA-256 of the config, Docker's image ID."""

    id: str
    layers: tuple[OriginalLayer, ...]


class _Archive:
    """Files by name, of a folder or a tar, with links of the tar followed."""

    def __init__(self, path: Path) -> None:
        self._folder = path if path.is_dir() else None
        self._tar = None if path.is_dir() else tarfile.open(path)  # noqa: SIM115  # closed by close
        self._layers: dict[str, OriginalLayer] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tar is not None:
            self._tar.close()

    def open(self, name: str) -> IO[bytes] | None:
        if self._folder is not None:
            path = self._folder / name
            return path.open("rb") if path.is_file() else None
        assert self._tar is not None
        try:
            member = self._tar.getmember(name)
        except KeyError:
            return None
        while member.issym() or member.islnk():
            target = member.linkname
            if member.issym():
                target = os.path.normpath(str(Path(member.name).parent / target))
            member = self._tar.getmember(target)
        return self._tar.extractfile(member)

    def read(self, name: str) -> bytes:
        file = self.open(name)
        if file is None:
            raise FileNotFoundError(name)
        with file:
            return file.read()

    def layer(self, name: str) -> OriginalLayer:
        """Hash a layer and the tar in it; each blob once."""
        if name not in self._layers:
            file = self.open(name)
            if file is None:
                raise FileNotFoundError(name)
            with file:
                counted = _Hashing(file)
                tar, size = hashlib.sha256(), 0
                for block in tar_blocks(counted):
                    tar.update(block)
                    size += len(block)
                self._layers[name] = OriginalLayer(
                    f"sha256:{tar.hexdigest()}", size, f"sha256:{counted.hexdigest()}", counted.size
                )
        return self._layers[name]


class _Hashing(io.RawIOBase):
    """Hashes what is read through it."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self._hash, self.size = source, hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._hash.update(data)
        self.size += len(data)
        return data

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def read_originals(path: Path) -> list[OriginalImage]:
    """All images of an archive, or of those of its platforms that are present.

    Raises: OSError, tarfile.TarError, ValueError: it cannot be read so.
    """
    with _Archive(path) as archive:
        if (index := archive.open("index.json")) is not None:
            with index:
                return list(_of_index(archive, json.load(index)))
        images = []
        for entry in json.loads(archive.read("manifest.json")):
            config = hashlib.sha256(archive.read(entry["Config"])).hexdigest()
            layers = tuple(archive.layer(name) for name in entry["Layers"])
            images.append(OriginalImage(f"sha256:{config}", layers))
        return images


def _of_index(archive: _Archive, index: dict[str, Any]) -> Iterator[OriginalImage]:
    for entry in index["manifests"]:
        file = archive.open(_blob(entry["digest"]))
        if file is None:
            continue
        with file:
            document = json.load(file)
        if "manifests" in document:
            yield from _of_index(archive, document)
        elif "rootfs" in json.loads(archive.read(_blob(document["config"]["digest"]))):
            layers = tuple(archive.layer(_blob(layer["digest"])) for layer in document["layers"])
            yield OriginalImage(document["config"]["digest"], layers)


def tar_blocks(source: Any) -> Iterator[bytes]:
    """The plain bytes of a layer, block by block: gzip of several members, zstd of several frames, or plain."""
    block = source.read(_BLOCK)
    if block.startswith(_GZIP):
        decoder = zlib.decompressobj(wbits=31)
        while block:
            yield decoder.decompress(block)
            block = decoder.unused_data or source.read(_BLOCK)
            if decoder.eof and block:
                decoder = zlib.decompressobj(wbits=31)
    elif block.startswith(_ZSTD):
        frames = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)
        while block:
            yield frames.decompress(block)
            block = source.read(_BLOCK)
    else:
        while block:
            yield block
            block = source.read(_BLOCK)


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")
