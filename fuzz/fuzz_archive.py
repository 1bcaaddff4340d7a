"""Fuzz target: an archive of images, as a stream of bytes.

Whatever the bytes: only a `LayerstoreError` may leave `open_archive`, and the reading of what it lists. Every input is
also tried with right header checksums, as a fuzzer would not find one by itself.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import tempfile
from pathlib import Path

from layerstore.archives import open_archive
from layerstore.archives.docker import DockerArchive
from layerstore.errors import LayerstoreError
from layerstore.limits import Limits
from tests.support.archive_builders import Image, docker_archive_of, layer_tar, oci_layout, tar_of
from tests.support.tars import DIALECTS, with_checksums

__all__ = ["check", "seeds"]

_LIMITS = Limits(members=2000, document_bytes=1 << 20, spool_bytes=4 << 20)


def check(data: bytes) -> None:
    """Raises what should not have left."""
    with tempfile.TemporaryDirectory() as folder:
        for archive in (data, with_checksums(data)):
            with contextlib.suppress(LayerstoreError):
                _read(archive, Path(folder))
        assert not list(Path(folder).iterdir()), "a temporary file is left"


def seeds() -> dict[str, bytes]:
    """Inputs to start from."""
    image = Image.of([layer_tar({"a": b"1"}), layer_tar({"b": b"2"})], "example/app:1")
    found = {
        "old": docker_archive_of([image], "old"),
        "new": docker_archive_of([image], "new"),
        "combined": docker_archive_of([image], "combined"),
    }
    layout = tar_of(oci_layout(image.layers, image.config))
    small = {name: tar for name, tar in DIALECTS.items() if len(tar) < 10_000}
    return found | {"oci": layout, "gzip": gzip.compress(layout, mtime=0)} | small


def _read(data: bytes, folder: Path) -> None:
    with open_archive(io.BytesIO(data), folder, _LIMITS) as archive:
        if isinstance(archive, DockerArchive):
            for image in archive.images():
                for name in image.layers:
                    reader, size = archive.open_member(name)
                    with reader:
                        assert len(reader.read(size + 1)) <= size
        else:
            for root in archive.roots():
                if archive.has_blob(root.descriptor.digest):
                    archive.read_blob(root.descriptor, 1 << 20)
