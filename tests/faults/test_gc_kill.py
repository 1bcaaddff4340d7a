"""The end of the process at any durability step of a garbage collection: nothing that is needed is lost, the rest is freed."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from layerstore.api import open_store
from layerstore.store import gc
from tests.faults.injection import GONE, stopping
from tests.support.stores import assert_holds, assert_tight, sample_images, write_archive

_FAST = Path("/dev/shm")
_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["layerstore.api", "tests.faults.injection"])


def _prune_until_stopped(root: str, at: int) -> None:
    gc._FIRST_ROWS = gc._MAX_ROWS = 8
    with open_store(root) as store, stopping(at):
        store.prune()


@pytest.mark.slow
def test_end_of_the_process_at_any_step_of_a_prune_loses_nothing() -> None:
    place = _FAST if _FAST.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        images = sample_images(80, count=3, layer_size=40_000)
        model = Path(folder, "model")
        with open_store(model) as store:
            for image in images:
                store.load(write_archive(Path(folder), image))
            store.remove(images[1].tags[0])
        for at in range(2000):
            root = Path(folder, "store")
            subprocess.run(["cp", "-a", "--sparse=always", model, root], check=True)
            child = _children.Process(target=_prune_until_stopped, args=(str(root), at))
            child.start()
            child.join()
            with open_store(root) as store:
                assert store.verify().damages == ()
                store.prune()
                for image in (images[0], images[2]):
                    assert_holds(store, image)
                assert_tight(store)
                store.load(write_archive(Path(folder), images[1]))
                assert_holds(store, images[1])
            shutil.rmtree(root)
            if child.exitcode == 0:
                break
            assert child.exitcode == GONE
        assert at > 20, "a prune has many steps"
