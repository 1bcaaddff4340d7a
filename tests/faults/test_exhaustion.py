"""What runs out besides the disk: descriptors, address space, LMDB's map, the right to write, and time that goes backwards."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from layerstore.api import LayerStore, open_store
from layerstore.digest import DiffID, digest_of
from layerstore.errors import FailedPrecondition, NotFound, StoreFull
from layerstore.store import lmdbenv
from tests.support.stores import assert_clean, assert_holds, sample_images, write_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

    from tests.support.archive_builders import Image

_MIB = 1 << 20
_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["layerstore.api"])

# Loads with a limit on top of what the interpreter has by then; prints how that ended.
_LIMITED = """
import resource, sys
from layerstore import images, ingest
from layerstore.api import open_store
from layerstore.images import load, prune
root, archive, what, limit = sys.argv[1:]
if what == "RLIMIT_AS":
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    limit = used + int(limit) * 2**20
resource.setrlimit(getattr(resource, what), (int(limit), int(limit)))
try:
    with open_store(root) as store:
        store.load(archive)
        store.prune()
except Exception as error:
    print(type(error).__name__, error)
else:
    print("done")
"""


@pytest.fixture
def images() -> list[Image]:
    return sample_images(90, count=2, layer_size=_MIB)


@pytest.fixture
def store(tmp_path: Path, images: list[Image]) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as opened:
        opened.load(write_archive(tmp_path, images[0]))
        yield opened


def _load_limited(root: Path, archive: Path, what: str, limit: int) -> str:
    words = [sys.executable, "-c", _LIMITED, str(root), str(archive), what, str(limit)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "limits", "words"),
    [
        ("RLIMIT_NOFILE", (5, 9, 40), ("OSError [Errno 24]",)),
        # MiB more than the interpreter has: too few for the map, for threads, for zstd; enough.
        (
            "RLIMIT_AS",
            (1, 85, 600),
            ("OSError [Errno 12]", "MemoryError", "RuntimeError can't start new thread"),
        ),
    ],
)
def test_load_that_runs_out_says_so_and_loses_nothing(
    tmp_path: Path,
    store: LayerStore,
    images: list[Image],
    what: str,
    limits: tuple[int, ...],
    words: tuple[str, ...],
) -> None:
    archive = write_archive(tmp_path, images[1])
    ends = []
    for limit in limits:
        ends.append(_load_limited(tmp_path / "store", archive, what, limit))
        assert ends[-1] == "done" or ends[-1].startswith(words)
        with open_store(tmp_path / "store") as again:
            assert_clean(again)
            assert_holds(again, images[0])
    assert ends[0] != "done"
    assert ends[-1] == "done", "and a load does not need much"
    assert_holds(store, images[1])


def test_tables_that_fill_their_map_are_a_full_store_and_another_process_goes_on(
    tmp_path: Path, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdbenv, "_map_size", lambda: _MIB)
    with open_store(tmp_path / "store") as store:
        store.load(write_archive(tmp_path, images[0]))
        with pytest.raises(StoreFull, match="MAP_FULL"), store.store.write() as txn:  # noqa: PT012  # at some row of it
            target = next(store.store.catalog.refs(txn))[1]
            for number in range(20_000):
                store.store.catalog.put_ref(txn, f"docker.io/test/n:{number}-{'x' * 90}", target)
        assert_holds(store, images[0])
        assert len(store.images()[0].names) == 1
    monkeypatch.undo()
    with open_store(tmp_path / "store") as store:
        store.tag(images[0].tags[0], "test/tagged:after")
        assert_clean(store)


def _read_on(root: Path, told: Connection, go_on: Connection) -> None:
    """With a map that has little room, before and after another process has made the tables longer."""
    lmdbenv._map_size = lambda: _MIB
    outcomes = []
    with open_store(root) as store:
        told.send(len(store.images()[0].names))
        go_on.recv()
        for act in (store.images, lambda: store.tag("test/90:0", "test/tagged:mine")):
            try:
                act()
            except FailedPrecondition as error:
                outcomes.append("open it again" in str(error))
    lmdbenv._map_size = lambda: 64 * _MIB
    with open_store(root) as store:
        store.tag("test/90:0", "test/tagged:mine")
        told.send((outcomes, len(store.images()[0].names)))


def test_tables_that_outgrow_the_map_of_another_process_are_told_and_opened_again(
    tmp_path: Path, store: LayerStore
) -> None:
    ours, theirs = _children.Pipe(duplex=False)
    wait, go_on = _children.Pipe(duplex=False)
    child = _children.Process(target=_read_on, args=(tmp_path / "store", theirs, wait))
    child.start()
    theirs.close()
    wait.close()
    assert ours.recv() == 1
    with store.store.write() as txn:
        target = next(store.store.catalog.refs(txn))[1]
        for number in range(10_000):
            store.store.catalog.put_ref(txn, f"docker.io/test/more:{number}-{'x' * 90}", target)
    go_on.send(None)
    outcomes, names = ours.recv()
    child.join()
    assert outcomes == [True, True]
    assert names == 10_002


@pytest.mark.root
def test_store_on_a_filesystem_that_can_only_be_read(
    tmp_path: Path, store: LayerStore, images: list[Image]
) -> None:
    store.close()
    root = tmp_path / "store"
    subprocess.run(["mount", "--bind", root, root], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
        with pytest.raises(FailedPrecondition, match="for reading only"):
            open_store(root)
        with open_store(root, read_only=True) as reading:
            assert_holds(reading, images[0])
            assert reading.verify().damages == ()
            for change in (reading.prune, lambda: reading.tag(images[0].tags[0], "test/new:1")):
                with pytest.raises(FailedPrecondition):
                    change()
    finally:
        subprocess.run(["umount", root], check=True)
    with open_store(root) as again:
        assert_clean(again)


def test_clock_that_goes_backwards_ends_no_lease_early_and_one_that_jumps_ahead_is_told(
    store: LayerStore, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns()
    lease = store.lease(images[0].tags[0], ttl=60)
    store.remove(images[0].tags[0])
    for seconds in (-86_400, -3600, 0, 30):
        monkeypatch.setattr(time, "time_ns", lambda ns=seconds * 10**9: now + ns)
        store.prune()
        for layer in images[0].layers:
            assert b"".join(store.iter_layer(_diff_id(layer))) == layer
    # Renewed while the clock is an hour behind, it ends by that clock: the holder renews by its own.
    monkeypatch.setattr(time, "time_ns", lambda: now - 3600 * 10**9)
    lease.renew(60)
    monkeypatch.setattr(time, "time_ns", lambda: now + 3600 * 10**9)
    with pytest.raises(NotFound, match="has ended"):
        lease.renew(60)
    store.prune()
    with store.store.read() as txn:
        assert list(store.store.catalog.layers(txn)) == []
    lease.release()
    assert_clean(store)


def _diff_id(layer: bytes) -> DiffID:
    return DiffID(digest_of(layer))
