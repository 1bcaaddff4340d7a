"""umoci, an unpacker that has nothing in common with us, makes the same files of what was saved."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.images.load import BlobPolicy
from layerstore.images.save import ArchiveKind
from tests.clients.images import awkward_image, runnable_image, tree_of
from tests.clients.servers import run
from tests.support.archive_builders import oci_layout_of, write_folder

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
