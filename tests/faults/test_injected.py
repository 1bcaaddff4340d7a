"""Errors and ends at every durability step: typed errors, nothing acknowledged lost, the next session works."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.errors import CorruptStore, FailedPrecondition, StoreFull
from layerstore.store import session as session_module
from tests.faults.injection import CALLS, GONE, failing, stopping
from tests.support.stores import (
    assert_clean,
    assert_holds,
    payload,
    put_file,
    sample_images,
    write_archive,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.api import LayerStore

_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["layerstore.api", "tests.faults.injection"])


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many flushes and background syncs in a small load."""
    monkeypatch.setattr(session_module, "GROUP_BYTES", 256 << 10)
    monkeypatch.setattr(session_module, "_SYNC_EVERY", 64 << 10)


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("name", [name for name in CALLS if name != "ftruncate"])
def test_error_at_any_durability_call_loses_nothing(tmp_path: Path, name: str, code: int) -> None:
    first, *others = sample_images(5, count=41, layer_size=150_000, layers=3)
    with open_store(tmp_path / "store") as store:
        store.load(write_archive(tmp_path, first))
    failures = at = 0
    for at, image in enumerate(others):
        archive = write_archive(tmp_path, image)
        with failing(name, code, at) as fault:
            loaded = _try_load(tmp_path / "store", archive, code)
        failures += not loaded
        with open_store(tmp_path / "store") as store:
            assert_clean(store)
            assert_holds(store, first)
            if loaded:
                assert_holds(store, image)
            store.load(archive)
            assert_holds(store, image)
        if not fault.hit:
            break
    assert not fault.hit, "the load makes more calls than were tried"
    assert at > 0, f"a load calls {name}"
    if name in ("fdatasync", "pwrite_all"):
        assert failures, "an error that matters is told"


def _try_load(root: Path, archive: Path, code: int) -> bool:
    try:
        with open_store(root) as store:
            store.load(archive)
    except StoreFull:
        assert code == errno.ENOSPC
        return False
    except OSError as error:
        assert error.errno == code  # noqa: PT017  # it may also load
        return False
    return True


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EFBIG])
def test_file_that_cannot_grow_is_told_and_grows_later(tmp_path: Path, code: int) -> None:
    (image,) = sample_images(4, count=1, layer_size=100_000)
    archive = write_archive(tmp_path, image)
    with open_store(tmp_path / "store") as store:
        with failing("ftruncate", code, 0) as fault, pytest.raises((OSError, StoreFull)) as caught:
            store.load(archive)
        assert fault.hit
        assert isinstance(caught.value, StoreFull) is (code != errno.EIO)
        assert_clean(store)
        store.load(archive)
        assert_holds(store, image)


def test_short_write_with_an_error_behind_it_is_no_chunk(tmp_path: Path) -> None:
    (image,) = sample_images(6, count=1, layer_size=100_000)
    archive = write_archive(tmp_path, image)
    with open_store(tmp_path / "store") as store:
        with failing("pwrite_all", errno.EIO, 0, short=True) as fault, pytest.raises(OSError):  # noqa: PT011
            store.load(archive)
        assert fault.hit
        assert_clean(store)
        store.load(archive)
        assert_holds(store, image)


def test_kernel_that_writes_a_few_bytes_at_a_time_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(
        "os.pwrite", lambda fd, data, address: real(fd, memoryview(data)[:4097], address)
    )
    (image,) = sample_images(7, count=1, layer_size=100_000)
    with open_store(tmp_path / "store") as store:
        store.load(write_archive(tmp_path, image))
        assert_clean(store)
        assert_holds(store, image)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as store:
        yield store


def test_session_is_of_no_use_after_a_failed_sync(store: LayerStore) -> None:
    with store.store.begin() as session:
        put_file(session, payload(1, 50_000))
        with failing("fdatasync", errno.EIO, 0), pytest.raises(OSError, match="Input/output"):
            session.flush()
        with pytest.raises(FailedPrecondition):
            session.flush()
        with pytest.raises(FailedPrecondition):
            put_file(session, payload(2, 50_000))
    with store.store.begin() as session:
        put_file(session, payload(1, 50_000))
        session.flush()
    assert_clean(store)


def test_session_is_of_no_use_after_a_failed_write(store: LayerStore) -> None:
    with store.store.begin() as session:
        put_file(session, payload(3, 50_000))
        with failing("pwrite_all", errno.EIO, 0):
            put_file(session, payload(4, 50_000))
            with pytest.raises(OSError, match="Input/output"):
                session.settle()
        with pytest.raises(FailedPrecondition):
            session.flush()
    with store.store.read() as txn:
        assert store.store.index.count(txn) == 0, "nothing became visible"


def test_error_that_only_the_background_sync_sees_fails_the_commit(store: LayerStore) -> None:
    with store.store.begin() as session:
        with failing("fdatasync", errno.EIO, 0) as fault:
            put_file(session, payload(5, 300_000))
            session.settle()
            session._write_back.close()
        assert fault.hit, "the background thread synced"
        with pytest.raises(OSError, match="Input/output"), session.commit():
            pass
    with store.store.read() as txn:
        assert store.store.index.count(txn) == 0
    assert_clean(store)


def test_later_success_does_not_hide_a_failed_background_sync(store: LayerStore) -> None:
    with store.store.begin() as session:
        with failing("fdatasync", errno.EIO, 0):
            put_file(session, payload(6, 300_000))
            session.settle()
            session._write_back.close()
        put_file(session, payload(7, 300_000))  # syncs once more in the background, with success
        session.settle()
        session._write_back.close()
        with pytest.raises(OSError, match="Input/output"):
            session.flush()


def test_full_disk_while_a_session_closes_is_not_an_error_of_its_work(
    store: LayerStore, tmp_path: Path
) -> None:
    (image,) = sample_images(8, count=1, layer_size=100_000)
    archive = write_archive(tmp_path, image)
    with failing("punch_hole", errno.ENOSPC, 0) as fault:
        store.load(archive)
    assert fault.hit
    assert_holds(store, image)
    with open_store(tmp_path / "store") as again:  # reclaims what could not be given back
        assert_clean(again)


def _load_until_stopped(root: str, archive: str, at: int) -> None:
    session_module.GROUP_BYTES = 128 << 10
    with stopping(at), open_store(root) as store:
        store.load(archive)


@pytest.mark.slow
def test_end_of_the_process_at_any_durability_step_leaves_a_clean_store(tmp_path: Path) -> None:
    (image,) = sample_images(9, count=1, layer_size=200_000)
    archive = write_archive(tmp_path, image)
    steps = 0
    for at in range(1000):
        root = tmp_path / f"store-{at}"
        child = _children.Process(target=_load_until_stopped, args=(str(root), str(archive), at))
        child.start()
        child.join()
        with open_store(root) as store:
            assert_clean(store)
            known = {name for summary in store.images() for name in summary.names}
            if known:
                assert_holds(store, image)
            store.load(archive)
            assert_holds(store, image)
            assert_clean(store)
        if child.exitcode == 0:
            assert known
            break
        assert child.exitcode == GONE
        steps += 1
    assert steps > 20, "making a store and loading takes many steps"


def test_error_during_open_leaves_nothing_open(tmp_path: Path) -> None:
    with open_store(tmp_path / "store"):
        pass
    before = len(list(Path("/proc/self/fd").iterdir()))
    with failing("fsync_directory", errno.EIO, 0), pytest.raises(OSError, match="Input/output"):
        open_store(tmp_path / "store")
    (tmp_path / "store" / "chunks").rename(tmp_path / "chunks")
    with pytest.raises(CorruptStore):
        open_store(tmp_path / "store")
    (tmp_path / "chunks").rename(tmp_path / "store" / "chunks")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with open_store(tmp_path / "store") as store:
        assert_clean(store)
