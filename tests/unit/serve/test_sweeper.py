"""Directories are deleted in the order in which they are put, by somebody else than who puts them."""

from __future__ import annotations

import threading
from pathlib import Path

from layerstore.serve.sweeper import Sweeper

PATHS = [Path(f"gone-{number}") for number in range(40)]


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
    assert deleted == PATHS[:10]


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


def test_the_end_waits_for_one_deletion_and_leaves_the_rest() -> None:
    begun, may_end, deleted = threading.Event(), threading.Event(), list[Path]()

    def delete(path: Path) -> None:
        begun.set()
        assert may_end.wait(10)
        deleted.append(path)

    sweeper = Sweeper(delete)
    with sweeper:
        for path in PATHS[:5]:
            sweeper.put(path)
        assert begun.wait(10)
        threading.Timer(0.2, may_end.set).start()
    assert deleted == PATHS[:1]
