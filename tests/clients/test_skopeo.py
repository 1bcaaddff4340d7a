"""skopeo reads what `save` wrote, in every transport it has for local files, and sees the same image."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.digest import digest_of
from layerstore.images.load import BlobPolicy
from layerstore.images.save import ArchiveKind
from tests.clients.images import runnable_image
from tests.clients.servers import run
from tests.support.archive_builders import (
    Image,
    docker_archive_of,
    oci_layout_of,
    write_folder,
)
from tests.support.stores import assert_holds
from tests.support.tars import END, entry, noise

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layerstore.api import LayerStore

pytestmark = pytest.mark.client("skopeo")

_TAG = "test/skopeo:1"
_TRANSPORTS = [
    ("docker-archive", ArchiveKind.DOCKER, ""),
    ("oci-archive", ArchiveKind.DOCKER, ":1"),
    ("oci-archive", ArchiveKind.OCI, ":1"),
    ("oci", ArchiveKind.FOLDER, ":1"),
]
_IDS = ["docker-archive", "oci-archive of a docker archive", "oci-archive", "oci"]


@pytest.fixture
def image() -> Image:
    return runnable_image(_TAG)


@pytest.fixture
def store(tmp_path: Path, image: Image) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as store:
        store.load(io.BytesIO(docker_archive_of([image])))
        yield store


def _skopeo(*words: str | Path) -> str:
    return run("skopeo", "--insecure-policy", *words)


@pytest.mark.parametrize("zstd", [False, True], ids=["plain", "zstd"])
@pytest.mark.parametrize(("transport", "kind", "suffix"), _TRANSPORTS, ids=_IDS)
def test_skopeo_copies_what_was_saved(
    store: LayerStore,
    image: Image,
    tmp_path: Path,
    transport: str,
    kind: ArchiveKind,
    suffix: str,
    zstd: bool,
) -> None:
    saved = tmp_path / "saved"
    store.save(_TAG, saved, kind=kind, zstd=zstd)
    source = f"{transport}:{saved}{suffix}"
    assert _skopeo("inspect", "--config", "--raw", source).encode() == image.config
    # From Docker's form to OCI's, skopeo would write the config anew, which is another image ID.
    target = "oci" if transport.startswith("oci") else "docker-archive"
    _skopeo("copy", source, f"{target}:{tmp_path}/copied:{_TAG if target != 'oci' else '1'}")
    with open_store(tmp_path / "back") as back:
        report = back.load(tmp_path / "copied", name=_TAG)
        assert report.images[0].id == digest_of(image.config)
        assert_holds(back, image)


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_skopeo_inspects_a_kept_image_as_it_did_the_original(
    store: LayerStore, image: Image, tmp_path: Path, codec: str
) -> None:
    files = oci_layout_of(
        [(image, {"org.opencontainers.image.ref.name": "1"})],
        codec,  # type: ignore[arg-type]  # a Literal
    )
    original = write_folder(tmp_path / "original", files)
    store.load(original, blobs=BlobPolicy.DEFER, name="test/kept:1")
    store.save("test/kept:1", tmp_path / "saved", kind=ArchiveKind.FOLDER)
    seen = [
        json.loads(_skopeo("inspect", f"oci:{folder}:1"))
        for folder in (original, tmp_path / "saved")
    ]
    assert seen[0] == seen[1]
    raw = [_skopeo("inspect", "--raw", f"oci:{f}:1") for f in (original, tmp_path / "saved")]
    assert raw[0] == raw[1]


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
def test_what_skopeo_writes_is_loaded(
    store: LayerStore, image: Image, tmp_path: Path, transport: str
) -> None:
    store.save(_TAG, tmp_path / "saved", kind=ArchiveKind.FOLDER)
    target = f"{transport}:{tmp_path}/by-skopeo.tar:docker.io/{_TAG}"
    _skopeo("copy", f"oci:{tmp_path}/saved:1", target)
    with open_store(tmp_path / "back") as back:
        back.load(tmp_path / "by-skopeo.tar")
        assert_holds(back, image)
    assert all(
        layer.new_chunks == 0 for layer in store.load(tmp_path / "by-skopeo.tar").images[0].layers
    )


def test_layers_of_zstd_chunked_come_back_and_equal_files_are_stored_once(tmp_path: Path) -> None:
    """Two layers of the same files with other mtimes: the frames of contents are equal, those of headers are not."""
    files = [noise(6_000, i) for i in range(200)]
    reports = []
    with open_store(tmp_path / "store") as store:
        for turn in (1, 2):
            # Not by tarfile: skopeo 1.9 loses what is behind two blocks of zeros, and the diff ID with it.
            tar = b"".join(entry(b"%d" % i, one, mtime=turn) for i, one in enumerate(files))
            tar += END
            named = (Image.of([tar]), {"org.opencontainers.image.ref.name": "1"})
            plain = write_folder(tmp_path / f"plain-{turn}", oci_layout_of([named], "none"))
            made = tmp_path / f"made-{turn}"
            words = ("--dest-compress", "--dest-compress-format", "zstd:chunked")
            _skopeo("copy", *words, f"oci:{plain}:1", f"oci:{made}:1")
            reports.append(store.load(made, name=f"test/chunked:{turn}"))
            store.save(f"test/chunked:{turn}", tmp_path / f"saved-{turn}", kind=ArchiveKind.FOLDER)
            blobs = [
                {path.name: path.read_bytes() for path in (folder / "blobs/sha256").iterdir()}
                for folder in (made, tmp_path / f"saved-{turn}")
            ]
            assert blobs[0].items() <= blobs[1].items()
        first, second = (report.new_bytes for report in reports)
        assert first > 2_000_000, "the chunks of the tar, and the frames, which do not compress"
        assert second < first // 8
