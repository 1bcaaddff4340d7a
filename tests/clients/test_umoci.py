"""umoci, an unpacker that has nothing in common with us, makes the same files of what was saved."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from layerstore import kernels
from layerstore.api import open_store
from layerstore.images.load import BlobPolicy
from layerstore.images.save import ArchiveKind
from layerstore.store.catalog import Wrapping
from tests.clients.images import awkward_image, runnable_image, tree_of
from tests.clients.servers import run
from tests.support.archive_builders import Image, layer_tar, oci_layout_of, write_folder
from tests.support.gzips import text_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.client("umoci"), pytest.mark.root]


@pytest.mark.parametrize("blobs", list(BlobPolicy))
@pytest.mark.parametrize("make", [runnable_image, awkward_image])
def test_umoci_unpacks_the_same_tree(tmp_path: Path, make: object, blobs: BlobPolicy) -> None:
    started = time.time_ns() - 10**9  # the kernel's clock for files is a few milliseconds behind
    image = make("test/umoci:1")  # type: ignore[operator]  # one of two functions
    files = oci_layout_of([(image, {"org.opencontainers.image.ref.name": "1"})], "gzip")
    original = write_folder(tmp_path / "original", files)
    with open_store(tmp_path / "store") as store:
        store.load(original, name="test/umoci:1", blobs=blobs)
        store.save("test/umoci:1", tmp_path / "saved", kind=ArchiveKind.FOLDER)
    trees = []
    for folder in (original, tmp_path / "saved"):
        out = tmp_path / f"{folder.name}-unpacked"
        run("umoci", "unpack", "--image", f"{folder}:1", out)
        trees.append(tree_of(out / "rootfs", started))
    assert len(trees[0]) > 5
    assert trees[0] == trees[1]


@pytest.mark.client("skopeo")
def test_blobs_of_skopeo_and_umoci_are_made_again_and_read_by_both(tmp_path: Path) -> None:
    """A base layer that skopeo compressed, and one on top by `umoci repack`."""
    started = time.time_ns() - 10**9
    layer = layer_tar({f"usr/lib/{i}": text_of(400_000, i) for i in range(4)})
    named = (Image.of([layer]), {"org.opencontainers.image.ref.name": "1"})
    plain = write_folder(tmp_path / "plain", oci_layout_of([named], "none"))
    original, saved = tmp_path / "original", tmp_path / "saved"
    skopeo("copy", "--dest-compress", f"oci:{plain}:1", f"oci:{original}:1")
    work = tmp_path / "work"
    run("umoci", "unpack", "--image", f"{original}:1", work)
    (work / "rootfs/usr/lib/new").write_bytes(text_of(900_000, 9))
    (work / "rootfs/usr/lib/1").unlink()
    run("umoci", "repack", "--image", f"{original}:1", work)

    with open_store(tmp_path / "store") as store:
        report = store.load(original, name="test/umoci:1")
        wrappings = [one.wrapping for one in report.images[0].layers]
        models = [kind.how for kind in store.usage().blobs]
        store.save("test/umoci:1", saved, kind=ArchiveKind.FOLDER)
    if kernels.NAME == "native":
        assert wrappings == [Wrapping.REGENERATED] * 2
        assert sorted(models) == [
            *("klauspost 5, blocks of 1024 KiB", "klauspost 5, blocks of 256 KiB")
        ]

    trees = []
    for folder in (original, saved):
        tag = json.loads((folder / "index.json").read_text())["manifests"][0]["annotations"]
        source = f"{folder}:{tag['org.opencontainers.image.ref.name']}"
        out = tmp_path / f"{folder.name}-unpacked"
        run("umoci", "unpack", "--image", source, out)
        trees.append(tree_of(out / "rootfs", started))
        skopeo("copy", f"oci:{source}", f"dir:{folder}-dir")
        skopeo("copy", f"dir:{folder}-dir", f"dir:{folder}-again")
    assert len(trees[0]) > 5
    assert trees[0] == trees[1]
    ours, theirs = (
        {path.name: path.read_bytes() for path in tmp_path.joinpath(f"{name}-again").iterdir()}
        for name in ("saved", "original")
    )
    assert len(ours) == 5, "manifest, config, two layers, version"
    assert ours == theirs


def skopeo(*words: str) -> str:
    return run("skopeo", "--insecure-policy", *words)
