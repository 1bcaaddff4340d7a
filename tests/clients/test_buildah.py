"""buildah (and podman, which shares its libraries) takes what `save` wrote, and gives it back."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.digest import digest_of
from tests.clients.images import runnable_image
from tests.clients.servers import run, unmount_below
from tests.support.archive_builders import docker_archive_of
from tests.support.stores import assert_holds

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.client("buildah"), pytest.mark.root, pytest.mark.slow]


def test_buildah_pulls_what_was_saved_and_pushes_it_back(tmp_path: Path) -> None:
    image = runnable_image("test/buildah:1")
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    roots = ("--root", tmp_path / "root", "--runroot", tmp_path / "run", "--storage-driver", "vfs")
    name = "docker.io/test/buildah:1"
    with open_store(tmp_path / "store") as store:
        store.load(io.BytesIO(docker_archive_of([image])))
        store.save("test/buildah:1", tmp_path / "saved.tar")
    try:
        source = f"docker-archive:{tmp_path}/saved.tar"
        pulled = run("buildah", *roots, "pull", "--signature-policy", policy, source).strip()
        assert f"sha256:{pulled}" == digest_of(image.config)
        listed = json.loads(run("buildah", *roots, "images", "--json"))
        assert listed[0]["names"] == [name], "and not localhost/test/buildah"
        # To OCI's form buildah would write the config anew, which is another image ID.
        target = f"docker-archive:{tmp_path}/back.tar:{name}"
        run("buildah", *roots, "push", "--signature-policy", policy, pulled, target)
        with open_store(tmp_path / "back") as back:
            back.load(tmp_path / "back.tar")
            assert_holds(back, image)
    finally:
        unmount_below(tmp_path)
