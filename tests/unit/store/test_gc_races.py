"""The classic race: chunks are freed while somebody stores the same bytes again. Every order of steps is played.

The writer's steps happen at fixed steps of the collector, in one thread; what was acknowledged must be whole afterwards.
"""

from __future__ import annotations

import io
import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from layerstore.api import LayerStore, open_store
from layerstore.digest import DiffID, digest_of
from layerstore.errors import NotFound
from layerstore.formats.codecs import Compression
from layerstore.ingest import Expected, ingest_document, ingest_layer
from layerstore.store.catalog import BlobRecord, ImageRecord, LayerRecord, Stretch, Wrapping
from layerstore.store.condemned import CondemnedTable
from layerstore.store.gc import GcStep, collect_garbage
from tests.support.archive_builders import layer_tar
from tests.support.stores import assert_tight, payload, put_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerstore.store.session import WriteSession
    from layerstore.store.sessionstate import Hold

_FAST = Path("/dev/shm")  # syncs cost nothing there, and these are many small stores
_TAR = layer_tar({"usr/lib/a.so": payload(1, 60_000), "etc/b": payload(2, 500)})
_LAYER = DiffID(digest_of(_TAR))
_MOMENTS = 8  # steps of a run: RECORDS, DELETE, SWEEP, MARK, CONDEMN, MARK, SETTLE, SPACE


@pytest.fixture
def store() -> Iterator[LayerStore]:
    place = _FAST if _FAST.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder, open_store(Path(folder, "s")) as opened:
        yield opened


def _garbage(store: LayerStore) -> None:
    """A layer that nothing leads to."""
    with store.store.begin() as session:
        _ingest(session)


def _ingest(session: WriteSession) -> DiffID:
    expected = Expected("layer", diff_id=_LAYER)
    return ingest_layer(io.BytesIO(_TAR), expected, Compression.NONE, session).diff_id


def _load(store: LayerStore) -> Iterator[None]:
    """A load of an image of that layer, in steps: hold, look and ingest if need be, commit."""
    with store.store.begin() as session:
        session.hold([_LAYER])
        yield
        with store.store.read() as txn:
            known = store.store.catalog.layer(txn, _LAYER)
        if known is None:
            _ingest(session)
        yield
        config = ingest_document(b"{}", session)
        manifest = ingest_document(b"[]", session)
        with session.commit() as txn:
            catalog = session.catalog
            for data, stretches in ((b"{}", config), (b"[]", manifest)):
                kept = BlobRecord(len(data), Wrapping.KEPT, None, "none", stretches())
                catalog.put_blob(txn, digest_of(data), kept)
            catalog.put_image(txn, digest_of(b"[]"), ImageRecord(digest_of(b"{}"), (_LAYER,), 0))
            catalog.put_ref(txn, "docker.io/library/a:1", digest_of(b"[]"))


def _chunks(store: LayerStore) -> Iterator[None]:
    """A session that finds chunks by their ID and makes a layer record of them, in steps."""
    with store.store.begin() as session:
        promises = put_file(session, payload(1, 60_000))
        yield
        session.flush()
        numbers = session.numbers_of(promises)
        record = LayerRecord(60_000, 0, (Stretch(tuple(numbers.tolist()), ()),), 0)
        diff_id = DiffID(digest_of(payload(1, 60_000)))
        with session.commit() as txn:
            session.catalog.put_layer(txn, diff_id, record)
            session.hold_new(txn, diff_id)
        yield
        with session.commit() as txn:
            blob = BlobRecord(60_000, Wrapping.PLAIN, diff_id, "none", ())
            session.catalog.put_blob(txn, diff_id, blob)
            session.catalog.put_ref(txn, "docker.io/library/a:1", diff_id)


class _Meeting:
    """Takes the writer's next steps whenever the collector comes by at its chosen moments."""

    def __init__(self, writer: Iterator[None], moments: tuple[int, ...]) -> None:
        self._writer, self._moments = writer, list(moments)
        self._now = 0
        self.steps: list[GcStep] = []

    def __call__(self, step: GcStep | None = None) -> None:
        if step is not None:
            self.steps.append(step)
        while self._moments and self._moments[0] == self._now:
            self._moments.pop(0)
            next(self._writer, None)
        self._now += 1

    def finish(self) -> None:
        for _ in self._writer:
            pass


def _orders(steps: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations_with_replacement(range(_MOMENTS), steps))


@pytest.mark.parametrize("first", range(_MOMENTS))
def test_an_image_loaded_while_its_layer_is_collected_is_whole(first: int) -> None:
    for moments in (order for order in _orders(3) if order[0] == first):
        _play(_load, moments, lambda store: b"".join(store.iter_layer(_LAYER)) == _TAR)


@pytest.mark.parametrize("first", range(_MOMENTS))
def test_chunks_found_while_they_are_collected_are_whole(first: int) -> None:
    data = payload(1, 60_000)
    for moments in (order for order in _orders(3) if order[0] == first):
        _play(_chunks, moments, lambda store: b"".join(store.iter_blob(digest_of(data))) == data)


def _play(
    write: Callable[[LayerStore], Iterator[None]],
    moments: tuple[int, ...],
    is_whole: Callable[[LayerStore], bool],
) -> None:
    place = _FAST if _FAST.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder, open_store(Path(folder, "s")) as store:
        _garbage(store)
        meeting = _Meeting(write(store), moments)
        collect_garbage(store.store, at=meeting)
        meeting.finish()
        assert is_whole(store), moments
        collect_garbage(store.store)
        assert is_whole(store), moments
        assert_tight(store)


def test_a_chunk_that_was_found_before_it_was_condemned_is_given_back(store: LayerStore) -> None:
    _garbage(store)
    session = store.store.begin()
    promises = put_file(session, payload(1, 60_000))
    report = collect_garbage(store.store)
    assert report.waiting > 0
    assert report.chunks == 0, "the session may know them"
    again = collect_garbage(store.store)
    assert (again.waiting, again.chunks) == (report.waiting, 0), "it goes on"
    session.flush()
    numbers = session.numbers_of(promises)
    _record(session, numbers)
    session.close()
    last = collect_garbage(store.store)
    assert last.given_back >= len(set(numbers.tolist())) - 1
    assert (last.waiting, last.given_back + last.chunks) == (0, report.waiting)
    assert b"".join(store.store.reader.read(numbers)) == payload(1, 60_000)
    with store.store.begin() as finder:
        assert (put_file(finder, payload(1, 60_000)) == numbers).all(), "it is found again"


def test_a_chunk_stored_again_while_condemned_exists_twice_until_one_is_not_needed(
    store: LayerStore,
) -> None:
    _garbage(store)
    early = store.store.begin()
    old = put_file(early, payload(1, 60_000))
    assert collect_garbage(store.store).waiting
    with store.store.begin() as late:
        promises = put_file(late, payload(1, 60_000))
        late.flush()
        new = late.numbers_of(promises)
        assert not set(new.tolist()) & set(old.tolist()), "it got a new number"
        _record(late, new, times=2)
    early.flush()
    _record(early, early.numbers_of(old))
    early.close()
    assert collect_garbage(store.store).given_back
    for numbers in (early.numbers_of(old), new):
        assert b"".join(store.store.reader.read(numbers)) == payload(1, 60_000)
    assert store.verify().damages == ()
    with store.store.begin() as finder:
        assert (put_file(finder, payload(1, 60_000)) == new).all(), "the newer one is found"
    with store.store.write() as txn:
        store.store.catalog.delete_ref(txn, "docker.io/library/a:2")
    collect_garbage(store.store)
    assert b"".join(store.store.reader.read(old)) == payload(1, 60_000)
    assert store.verify().damages == ()
    assert_tight(store)


def _record(
    session: WriteSession, numbers: np.ndarray[tuple[int], np.dtype[np.uint64]], times: int = 1
) -> None:
    """Make a blob of these chunks, so many times one behind another, with a name."""
    data = payload(1, 60_000) * times
    stretch = Stretch(tuple(numbers.tolist()) * times, ())
    with session.commit() as txn:
        kept = BlobRecord(len(data), Wrapping.KEPT, None, "none", (stretch,))
        session.catalog.put_blob(txn, digest_of(data), kept)
        session.catalog.put_ref(txn, f"docker.io/library/a:{times}", digest_of(data))


def test_bug_a_layer_that_came_after_its_hold_was_followed_was_deleted(store: LayerStore) -> None:
    _garbage(store)
    other = DiffID(digest_of(layer_tar({"x": b"y"})))
    with store.store.begin() as session:
        session.hold([other])  # it is not there yet, when the roots are followed for the first time
        holds: list[Hold] = []

        def at(step: GcStep) -> None:
            if step is GcStep.DELETE and not holds:
                holds.append(store.store.hold(digest_of(b"a new root: look again")))
                expected = Expected("layer", diff_id=other)
                tar = io.BytesIO(layer_tar({"x": b"y"}))
                ingest_layer(tar, expected, Compression.NONE, session)

        collect_garbage(store.store, at=at)
        assert b"".join(store.iter_layer(other)) == layer_tar({"x": b"y"})


def test_a_killed_session_keeps_nothing_waiting(store: LayerStore) -> None:
    _garbage(store)
    session = store.store.begin()
    put_file(session, payload(1, 60_000))
    assert collect_garbage(store.store).waiting
    session.close()  # what the kernel does for a process that dies, and the next run then finds
    report = collect_garbage(store.store)
    assert report.chunks > 0
    assert_tight(store)


def test_a_layer_that_is_gone_cannot_be_forked(store: LayerStore) -> None:
    _garbage(store)
    fork = store.snapshots.fork

    def at(step: GcStep) -> None:
        if step is GcStep.MARK:
            with pytest.raises(NotFound):
                fork([_LAYER], ["key"])

    collect_garbage(store.store, at=at)


def test_condemned_chunks_are_remembered_by_window(store: LayerStore) -> None:
    table = CondemnedTable(store.store.database)
    numbers = np.array([1, 8191, 8192, 8193, 1 << 40, 3], "u8")
    with store.store.write() as txn:
        table.add(txn, numbers)
        assert table.numbers(txn).tolist() == sorted(numbers.tolist())
        table.remove(txn, numbers[[0, 2, 5]])
        assert table.numbers(txn).tolist() == [8191, 8193, 1 << 40]
        table.remove(txn, numbers)
        assert not list(store.store.database.items(txn, "condemned"))
