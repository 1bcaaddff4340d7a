"""A registry that has an image already is sent nothing of it when the image comes out of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.images.load import BlobPolicy
from layerstore.images.save import ArchiveKind
from tests.clients.images import awkward_image
from tests.clients.servers import registry, run
from tests.support.archive_builders import docker_archive_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.client("skopeo"), pytest.mark.client("docker-registry")]


def _push(source: str, address: str, memory: Path) -> None:
    """Copy to the registry, with nothing in skopeo's memory of which compressed blob belongs to which tar."""
    run(
        *("env", "_CONTAINERS_ROOTLESS_UID=1", f"XDG_DATA_HOME={memory}"),
        *("skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false"),
        *(source, f"docker://{address}/test/image:1"),
    )


def _uploads(folder: Path) -> int:
    """How many blobs somebody has begun to send."""
    return sum('"POST /v2/' in line for line in (folder / "log").read_text().splitlines())


@pytest.mark.parametrize(
    ("kind", "blobs"),
    [*((kind, BlobPolicy.EXACT) for kind in ArchiveKind), (ArchiveKind.FOLDER, BlobPolicy.DEFER)],
)
def test_skopeo_uploads_nothing_that_the_registry_has(
    tmp_path: Path, kind: ArchiveKind, blobs: BlobPolicy
) -> None:
    (tmp_path / "image.tar").write_bytes(docker_archive_of([awkward_image("test/image:1")]))
    run(
        *("skopeo", "--insecure-policy", "copy"),
        *(f"docker-archive:{tmp_path}/image.tar", f"oci:{tmp_path}/original:1"),
    )
    with registry(tmp_path) as address:
        _push(f"oci:{tmp_path}/original:1", address, tmp_path / "memory-1")
        before = _uploads(tmp_path)
        assert before > 0
        with open_store(tmp_path / "store") as store:
            store.load(tmp_path / "original", name="test/image:1", blobs=blobs)
            store.save("test/image:1", tmp_path / "saved", kind=kind)
        transport = "oci" if kind is ArchiveKind.FOLDER else "oci-archive"
        _push(f"{transport}:{tmp_path}/saved:1", address, tmp_path / "memory-2")
        assert _uploads(tmp_path) == before
        with open_store(tmp_path / "tars") as store:
            store.load(tmp_path / "original", name="test/image:1", blobs=BlobPolicy.DROP)
            store.save("test/image:1", tmp_path / "plain", kind=ArchiveKind.FOLDER)
        _push(f"oci:{tmp_path}/plain:1", address, tmp_path / "memory-3")
        assert _uploads(tmp_path) > before
