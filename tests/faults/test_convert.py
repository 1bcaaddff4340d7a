"""Errors and ends at the durability steps of a conversion, and of a load that converts: every blob that is there comes out."""

from __future__ import annotations

import errno
import gzip
import io
import multiprocessing
from shutil import copytree
from typing import TYPE_CHECKING

import pytest

from layerstore import kernels
from layerstore.api import open_store
from layerstore.digest import digest_of
from layerstore.errors import StoreFull
from layerstore.images.load import BlobPolicy
from tests.faults.injection import GONE, failing, stopping
from tests.support.archive_builders import Image, layer_tar, oci_layout_of, tar_of
from tests.support.gzips import text_of
from tests.support.stores import assert_clean

if TYPE_CHECKING:
    from pathlib import Path

    from layerstore.api import LayerStore
    from layerstore.digest import Digest

pytestmark = pytest.mark.skipif(
    kernels.NAME != "native", reason="splitting needs the native kernels"
)

_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["layerstore.api", "tests.faults.injection"])


NAME = {"org.opencontainers.image.ref.name": "test/kept:1"}


def _blobs() -> dict[bytes, bytes]:
    """Two layers, and their blobs."""
    tars = [layer_tar({"a": text_of(20_000, seed)}) for seed in (1, 2)]
    return {tar: gzip.compress(tar, 6, mtime=0) for tar in tars}


def _by_digest(made: dict[bytes, bytes]) -> dict[Digest, bytes]:
    return {digest_of(blob): blob for blob in made.values()}


def load(store: LayerStore, blobs: BlobPolicy) -> dict[Digest, bytes]:
    """Load an image with two gzip layers; returns the blobs."""
    made = _blobs()
    files = oci_layout_of([(Image.of(list(made)), NAME)], "gzip", made)
    store.load(io.BytesIO(tar_of(files)), blobs=blobs)
    return _by_digest(made)


def keep_blobs(root: Path) -> dict[Digest, bytes]:
    """A store with two kept gzip layers; returns the blobs."""
    with open_store(root) as store:
        return load(store, BlobPolicy.DEFER)


def assert_gives(root: Path, blobs: dict[Digest, bytes]) -> None:
    with open_store(root) as store:
        assert_clean(store)
        for digest, blob in blobs.items():
            assert b"".join(store.iter_blob(digest)) == blob


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("name", ["fdatasync", "pwrite_all", "fsync_directory"])
def test_error_at_any_durability_call_leaves_every_blob(
    tmp_path: Path, name: str, code: int
) -> None:
    at = 0
    blobs = keep_blobs(tmp_path / "kept")
    while True:
        root = copytree(tmp_path / "kept", tmp_path / f"store-{at}")
        with open_store(root) as store, failing(name, code, at) as fault:
            try:
                store.optimize()
            except StoreFull:
                assert code == errno.ENOSPC
            except OSError as error:
                assert error.errno == code  # noqa: PT017  # it may also end well
        assert_gives(root, blobs)
        with open_store(root) as store:
            store.optimize()
            store.prune()
        assert_gives(root, blobs)
        if not fault.hit:
            break
        at += 1
    assert at > 0, f"a conversion calls {name}"


def _optimize_and_stop(root: Path, at: int) -> None:
    with open_store(root) as store, stopping(at):
        store.optimize()


def test_process_that_ends_at_any_step_leaves_every_blob(tmp_path: Path) -> None:
    at = 0
    blobs = keep_blobs(tmp_path / "kept")
    while True:
        root = copytree(tmp_path / "kept", tmp_path / f"store-{at}")
        child = _children.Process(target=_optimize_and_stop, args=(root, at))
        child.start()
        child.join(60)
        assert child.exitcode in (0, GONE)
        assert_gives(root, blobs)
        with open_store(root) as store:
            store.optimize()
            store.prune()
        assert_gives(root, blobs)
        if child.exitcode == 0:
            break
        at += 13  # before and after are in turn, so that both come
    assert at > 20, "a conversion has many steps"


def _load_and_stop(root: Path, at: int) -> None:
    with open_store(root) as store, stopping(at):
        load(store, BlobPolicy.EXACT)


def test_process_that_ends_at_any_step_of_a_load_has_the_image_with_its_blobs_or_not(
    tmp_path: Path,
) -> None:
    at = 0
    while True:
        root = tmp_path / f"store-{at}"
        with open_store(root):
            pass
        child = _children.Process(target=_load_and_stop, args=(root, at))
        child.start()
        child.join(60)
        assert child.exitcode in (0, GONE)
        with open_store(root) as store:
            assert_clean(store)
            is_there = bool(store.images())
            assert is_there or child.exitcode == GONE
            if not is_there:
                load(store, BlobPolicy.EXACT)
        assert_gives(root, _by_digest(_blobs()))
        if child.exitcode == 0:
            break
        at += 17  # before and after are in turn, so that both come
    assert at > 40, "a load has many steps"
