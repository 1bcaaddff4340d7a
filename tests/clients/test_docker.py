"""Docker loads what `save` wrote, with the same image ID, and what it saves comes back as the same image."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.digest import digest_of
from layerstore.images.load import BlobPolicy
from tests.clients.images import awkward_image, runnable_image
from tests.clients.servers import run
from tests.support.archive_builders import docker_archive_of, oci_layout_of, write_folder
from tests.support.stores import assert_holds

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.client("containerd", "ctr", "dockerd", "docker"),
    pytest.mark.root,
    pytest.mark.slow,
]


@pytest.mark.parametrize("make", [runnable_image, awkward_image])
def test_docker_loads_what_was_saved_and_saves_it_back(
    docker: list[str], tmp_path: Path, make: object
) -> None:
    tag = f"test/{make.__name__.replace('_', '-')}:1"  # type: ignore[attr-defined]  # a function
    image = make(tag)  # type: ignore[operator]
    image_id = digest_of(image.config)
    with open_store(tmp_path / "store") as store:
        store.load(io.BytesIO(docker_archive_of([image])))
        store.save(tag, tmp_path / "saved.tar")
        assert tag in run(*docker, "load", "-i", tmp_path / "saved.tar")
        (seen,) = json.loads(run(*docker, "image", "inspect", tag))
        assert seen["Id"] == image_id
        assert seen["RootFS"]["Layers"] == [digest_of(layer) for layer in image.layers]
        run(*docker, "save", "-o", tmp_path / "by-docker.tar", tag)
        again = store.load(tmp_path / "by-docker.tar")
        assert [loaded.id for loaded in again.images] == [image_id]
    with open_store(tmp_path / "back") as back:
        back.load(tmp_path / "by-docker.tar")
        assert back.images()[0].id == image_id
        assert back.images()[0].names == (f"docker.io/{tag}",)
        assert back.verify().damages == ()
    run(*docker, "rmi", tag)


def test_docker_loads_an_image_that_came_in_compressed(docker: list[str], tmp_path: Path) -> None:
    image = runnable_image("test/compressed:1")
    files = oci_layout_of([(image, {"org.opencontainers.image.ref.name": "1"})], "gzip")
    with open_store(tmp_path / "store") as store:
        for blobs in (BlobPolicy.DROP, BlobPolicy.EXACT):
            store.load(
                write_folder(tmp_path / "in", files),
                name="test/compressed:1",
                blobs=blobs,
            )
            store.save("test/compressed:1", tmp_path / "saved.tar")
            run(*docker, "load", "-i", tmp_path / "saved.tar")
            (seen,) = json.loads(run(*docker, "image", "inspect", "test/compressed:1"))
            assert seen["Id"] == digest_of(image.config)
            run(*docker, "rmi", "test/compressed:1")
        assert_holds(store, image)
