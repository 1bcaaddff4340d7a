"""Opening: who may open what, and that several can at once."""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.errors import CorruptStore, FailedPrecondition, NotFound
from layerstore.store.store import Store
from tests.support.stores import (
    Loading,
    assert_clean,
    assert_holds,
    load_and_tell,
    sample_images,
    write_archive,
)

if TYPE_CHECKING:
    from pathlib import Path

_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["layerstore.api", "tests.support.stores"])


def test_store_is_made_where_nothing_is_and_opened_where_one_is(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    with open_store(root) as store:
        assert store.images() == []
    names = ["FORMAT", "chunks", "journal", "meta", "tmp"]
    assert sorted(path.name for path in root.iterdir()) == names
    with open_store(root, create=False) as store:
        assert store.verify().damages == ()


def test_store_that_is_not_to_be_made_is_not_found(tmp_path: Path) -> None:
    for read_only in (False, True):
        with pytest.raises(NotFound):
            open_store(tmp_path / "absent", create=False, read_only=read_only)
    with pytest.raises(NotFound):
        open_store(tmp_path / "absent", read_only=True)
    assert not (tmp_path / "absent").exists()


def test_folder_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FailedPrecondition, match=r"letter\.txt"):
        open_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_half_made_store_is_finished(tmp_path: Path) -> None:
    root = tmp_path / "store"
    (root / "meta").mkdir(parents=True)
    (root / "chunks").touch()
    (root / ".FORMAT.12-34.tmp").write_text("{")
    with open_store(root) as store:
        assert store.verify().damages == ()


def test_read_only_store_reads_and_refuses_every_change(tmp_path: Path) -> None:
    (image,) = sample_images(2, count=1, layer_size=10_000)
    archive = write_archive(tmp_path, image)
    with open_store(tmp_path / "store") as store:
        store.load(archive)
    with open_store(tmp_path / "store", read_only=True) as store:
        assert_holds(store, image)
        assert store.verify().damages == ()
        for change in (
            lambda: store.load(archive),
            lambda: store.tag(image.tags[0], "other:1"),
            lambda: store.remove(image.tags[0]),
            store.store.begin,
        ):
            with pytest.raises(FailedPrecondition):
                change()


def test_writer_beside_a_reader_of_the_same_process_is_told_so(tmp_path: Path) -> None:
    with open_store(tmp_path / "store"):
        pass
    with (
        open_store(tmp_path / "store", read_only=True),
        pytest.raises(FailedPrecondition, match="reading only"),
    ):
        open_store(tmp_path / "store")
    with open_store(tmp_path / "store") as store:
        store.store.begin().close()
        reader = open_store(tmp_path / "store", read_only=True)
        with pytest.raises(FailedPrecondition):
            reader.store.begin()
        reader.close()


def test_one_process_shares_its_database_and_each_close_counts_once(tmp_path: Path) -> None:
    first = open_store(tmp_path / "store")
    (tmp_path / "link").symlink_to(tmp_path / "store")
    second = open_store(tmp_path / "link")
    assert first.store.database is second.store.database
    first.close()
    first.close()
    assert second.images() == []
    second.close()
    third = open_store(tmp_path / "store")
    assert third.store.database is not second.store.database
    third.close()


def test_many_threads_make_one_store_together(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(8)

    def work(root: Path) -> None:
        try:
            barrier.wait()
            with open_store(root) as store:
                store.images()
        except BaseException as error:
            errors.append(error)

    for turn in range(10):
        root = tmp_path / str(turn)
        threads = [threading.Thread(target=work, args=(root,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        names = ["FORMAT", "chunks", "journal", "meta", "tmp"]
    assert sorted(path.name for path in root.iterdir()) == names


def test_two_processes_make_and_fill_one_store_together(tmp_path: Path) -> None:
    images = sample_images(3, count=4, layer_size=200_000)
    archives = [str(write_archive(tmp_path, image)) for image in images]
    root = str(tmp_path / "store")
    pipes = [_children.Pipe(duplex=False) for _ in range(2)]
    children = [
        _children.Process(
            target=load_and_tell, args=(Loading(root, tuple(archives[::step])), pipe[1])
        )
        for step, pipe in zip((1, -1), pipes, strict=True)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    for ours, theirs in pipes:
        ours.close()
        theirs.close()
    with open_store(root) as store:
        assert_clean(store)
        for image in images:
            assert_holds(store, image)
        with store.store.read() as txn:
            count = store.store.index.count(txn)
            runs = [(first, len(run)) for first, run in store.store.index.runs(txn)]
    assert [first for first, _ in runs] == [
        1 + sum(length for _, length in runs[:i]) for i in range(len(runs))
    ]
    assert sum(length for _, length in runs) == count, "numbers are dense"


def _in_child(action: object) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = action()  # type: ignore[operator]  # a function of no arguments
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_opens_the_store_again_and_may_not_use_the_parents(tmp_path: Path) -> None:
    (image,) = sample_images(4, count=1, layer_size=10_000)
    with open_store(tmp_path / "store") as store:
        store.load(write_archive(tmp_path, image))

        def use_the_parents() -> int:
            try:
                store.images()
            except FailedPrecondition:
                store.close()
                return 7
            return 0

        def open_again() -> int:
            with open_store(tmp_path / "store") as again:
                assert_holds(again, image)
                again.tag(image.tags[0], "child:1")
            return 8

        assert _in_child(use_the_parents) == 7
        assert _in_child(open_again) == 8
        assert_holds(store, image)
        assert "docker.io/library/child:1" in store.images()[0].names
        store.tag(image.tags[0], "parent:1")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_in_the_middle_of_a_transaction_does_not_end_it(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store, store.store.read():

        def open_again() -> int:
            try:
                open_store(tmp_path / "store")
            except FailedPrecondition:
                return 9
            return 0

        assert _in_child(open_again) == 9
        assert store.store.database._env.readers().strip().count("\n") == 1, "the slot is held"


def test_store_lies_where_it_was_made_for_the_owner_only(tmp_path: Path) -> None:
    with open_store(tmp_path / "store"):
        pass
    for path in [tmp_path / "store", *(tmp_path / "store").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_store_object_of_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises((FailedPrecondition, NotFound, OSError)):
        Store(tmp_path / "file", create=True)


def test_bug_tables_that_a_crash_had_half_made_were_never_made_again(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with open_store(root):
        pass
    tables = (root / "meta" / "data.mdb").read_bytes()
    for size in (0, 1, 4096, 8191, 8192, 12_288):
        (root / "FORMAT").unlink(missing_ok=True)
        (root / "meta" / "data.mdb").write_bytes(tables[:size])
        with open_store(root) as store:
            assert store.verify().damages == ()


def test_format_that_is_missing_of_a_store_with_chunks_is_no_new_store(tmp_path: Path) -> None:
    (image,) = sample_images(1, count=1, layer_size=10_000)
    root = tmp_path / "store"
    with open_store(root) as store:
        store.load(write_archive(tmp_path, image))
    (root / "FORMAT").rename(tmp_path / "FORMAT")
    with pytest.raises(CorruptStore, match="FORMAT is missing"):
        open_store(root)
    (tmp_path / "FORMAT").rename(root / "FORMAT")
    with open_store(root) as store:
        assert_holds(store, image)


def test_many_that_make_one_store_at_once_all_get_it(tmp_path: Path) -> None:
    makers = [
        _children.Process(target=_make_and_load, args=(tmp_path / "store", tmp_path, number))
        for number in range(4)
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(60)
        assert maker.exitcode == 0
    with open_store(tmp_path / "store", create=False) as store:
        assert len(store.images()) == 4
        assert_clean(store)


def _make_and_load(root: Path, folder: Path, number: int) -> None:
    (image,) = sample_images(number + 1, count=1, layer_size=10_000)
    with open_store(root) as store:
        store.load(write_archive(folder, image))
