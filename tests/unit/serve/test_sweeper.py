"""Directories are deleted by somebody else than who puts them, and never without a bound."""

from __future__ import annotations

import threading
from pathlib import Path

from layerstore.serve.sweeper import Sweeper

PATHS = [Path(f"gone-{number:02}") for number in range(80)]


def test_who_puts_does_not_wait_for_the_deletion() -> None:
    may_delete, deleted = threading.Event(), list[Path]()

    def delete(path: Path) -> None:
        assert may_delete.wait(10)
        deleted.append(path)
        if len(deleted) == 10:
            all_done.set()

    all_done = threading.Event()
    with Sweeper(delete) as sweeper:
        for path in PATHS[:10]:
            sweeper.put(path)
        assert not deleted
        may_delete.set()
        assert all_done.wait(10)
    assert sorted(deleted) == sorted(PATHS[:10])


def test_who_makes_garbage_faster_than_it_goes_waits() -> None:
    may_delete = threading.Semaphore(0)
    put = 0

    def delete(path: Path) -> None:
        del path
        assert may_delete.acquire(timeout=10)

    def put_all() -> None:
        nonlocal put
        for path in PATHS:
            sweeper.put(path)
            put += 1

    with Sweeper(delete) as sweeper:
        putting = threading.Thread(target=put_all)
        putting.start()
        putting.join(0.2)
        assert putting.is_alive(), "the queue is full"
        assert put < len(PATHS)
        for _ in PATHS:
            may_delete.release()
        putting.join(10)
        assert put == len(PATHS)


def test_the_end_waits_for_what_is_being_deleted_and_leaves_the_rest() -> None:
    begun, may_end = threading.Semaphore(0), threading.Event()
    started, deleted = list[Path](), list[Path]()

    def delete(path: Path) -> None:
        started.append(path)
        begun.release()
        assert may_end.wait(10)
        deleted.append(path)

    sweeper = Sweeper(delete)
    with sweeper:
        for path in PATHS[:20]:
            sweeper.put(path)
        assert begun.acquire(timeout=10)
        threading.Timer(0.2, may_end.set).start()
    assert sorted(deleted) == sorted(started)
    assert 0 < len(deleted) < 20
