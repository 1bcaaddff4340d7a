"""Garbage collection: what goes, what stays, and what happens to those who act at the same moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from layerstore.api import LayerStore, open_store
from layerstore.errors import Busy, CorruptStore
from layerstore.store import gc
from layerstore.store.gc import GcStep, collect_garbage, estimate_garbage
from layerstore.store.layout import BLOCK
from layerstore.store.spacemap import unowned_extents
from tests.support.stores import (
    assert_clean,
    assert_holds,
    assert_tight,
    free_extents,
    payload,
    put_file,
    sample_images,
    write_archive,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.archive_builders import Image


@pytest.fixture
def images() -> list[Image]:
    return sample_images(50, count=3, layer_size=200_000)


@pytest.fixture
def store(tmp_path: Path, images: list[Image]) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as opened:
        for image in images:
            opened.load(write_archive(tmp_path, image))
        yield opened


def test_nothing_goes_that_an_image_needs(store: LayerStore, images: list[Image]) -> None:
    report = collect_garbage(store.store)
    assert (report.layers, report.blobs, report.chunks) == (0, 0, 0)
    for image in images:
        assert_holds(store, image)


def test_what_only_a_removed_image_had_goes_and_the_disk_shows_it(
    store: LayerStore, images: list[Image]
) -> None:
    before = store.store.chunkfile.allocated_bytes()
    store.remove(images[0].tags[0])
    estimate = estimate_garbage(store.store)
    report = collect_garbage(store.store)
    assert (report.layers, report.waiting, report.given_back) == (1, 0, 0)
    assert report.chunks > 0
    assert (estimate.layers, estimate.blobs, estimate.chunks, estimate.bytes) == (
        report.layers,
        report.blobs,
        report.chunks,
        report.bytes,
    )
    assert before - store.store.chunkfile.allocated_bytes() >= report.bytes > 100_000
    assert_tight(store)
    for image in images[1:]:
        assert_holds(store, image)


def test_an_empty_store_needs_no_space_and_its_space_is_used_again(
    store: LayerStore, images: list[Image], tmp_path: Path
) -> None:
    for image in images:
        store.remove(image.tags[0])
    collect_garbage(store.store)
    assert store.store.chunkfile.allocated_bytes() == 0
    assert_tight(store)
    size = store.store.layout.chunks.stat().st_size
    assert free_extents(store.store) == [(0, size)]
    for image in images:
        store.load(write_archive(tmp_path, image))
        assert_holds(store, image)
    assert store.store.layout.chunks.stat().st_size == size
    assert_clean(store)


def test_a_second_run_finds_nothing(store: LayerStore, images: list[Image]) -> None:
    store.remove(images[0].tags[0])
    collect_garbage(store.store)
    again = collect_garbage(store.store)
    assert (again.layers, again.blobs, again.chunks, again.bytes) == (0, 0, 0, 0)


def test_blocks_that_two_dead_chunks_share_come_back_when_the_second_goes(
    tmp_path: Path,
) -> None:
    with open_store(tmp_path / "store") as store:
        names = []
        for number in range(6):  # small layers: many frames in each block
            (image,) = sample_images(70 + number, count=1, layer_size=3000, layers=1)
            store.load(write_archive(tmp_path, image))
            names.append(image.tags[0])
        for name in names:
            store.remove(name)
            collect_garbage(store.store)
            assert_tight(store)
        assert store.store.chunkfile.allocated_bytes() == 0


def test_frames_that_lost_a_race_for_their_chunk_are_blocks_of_nobody(store: LayerStore) -> None:
    data = payload(7, 300_000)
    with store.store.begin() as winner, store.store.begin() as loser:
        put_file(winner, data)
        put_file(loser, data)
        winner.flush()
        loser.flush()
    with store.store.read() as txn:
        assert unowned_extents(store.store, txn)
    assert collect_garbage(store.store).bytes > 300_000
    assert_tight(store)


def test_no_writer_waits_for_more_than_50_ms(store: LayerStore, images: list[Image]) -> None:
    longest = []  # the machine may be busy with something else once, and not each time
    for image in images:
        store.remove(image.tags[0])
        longest.append(collect_garbage(store.store).longest_lock_s)
    assert 0 < min(longest) < 0.050


def test_two_runs_at_once_are_refused(store: LayerStore) -> None:
    def again(step: GcStep) -> None:
        del step
        with pytest.raises(Busy):
            collect_garbage(store.store)

    collect_garbage(store.store, at=again)
    collect_garbage(store.store)


def test_a_damaged_recipe_stops_the_run_before_anything_is_freed(
    store: LayerStore, images: list[Image]
) -> None:
    with store.store.read() as txn:
        _, record = next(store.store.catalog.layers(txn))
        place = store.store.index.places(txn, np.array(record.stretches[0].part[:1], "u8"))[0]
        chunks = sum(len(run) for _, run in store.store.index.runs(txn))
    with store.store.layout.chunks.open("r+b") as file:
        file.seek(int(place["address"]) + 12)
        file.write(b"damage")
    store.remove(images[0].tags[0])
    with pytest.raises(CorruptStore):
        collect_garbage(store.store)
    with store.store.read() as txn:
        assert sum(len(run) for _, run in store.store.index.runs(txn)) == chunks


def test_a_hold_keeps_an_image_and_a_hold_of_everything_keeps_all(
    store: LayerStore, images: list[Image]
) -> None:
    target = store.inspect(images[0].tags[0]).summary.digest
    with store.store.hold(target):
        store.remove(images[0].tags[0])
        assert collect_garbage(store.store).layers == 0
        hold = store.store.hold(everything=True)
    with hold:
        report = collect_garbage(store.store)
        assert (report.layers, report.chunks) == (0, 0)
    assert collect_garbage(store.store).layers == 1


def test_a_view_reads_on_after_its_image_was_removed(
    store: LayerStore, images: list[Image]
) -> None:
    view = store.view(images[0].tags[0])
    paths = [path for path in view.glob("/**") if view.is_file(path)]
    store.remove(images[0].tags[0])
    assert collect_garbage(store.store).layers == 0
    before = {path: view.read_bytes(path) for path in paths}
    assert sum(map(len, before.values())) > 400_000
    del view
    assert collect_garbage(store.store).layers == 1
    assert_tight(store)


def test_a_session_that_lives_keeps_what_it_has_flushed(store: LayerStore) -> None:
    with store.store.begin() as session:
        promises = put_file(session, payload(11, 200_000))
        session.flush()
        report = collect_garbage(store.store)
        assert (report.chunks, report.waiting) == (0, 0)
        assert b"".join(store.store.reader.read(session.numbers_of(promises)))
    assert collect_garbage(store.store).chunks > 0
    assert_tight(store)


def test_batches_of_any_size_free_the_same(
    store: LayerStore, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "_FIRST_ROWS", 1)
    monkeypatch.setattr(gc, "_MAX_ROWS", 3)
    monkeypatch.setattr(gc, "_WINDOW", 7)
    store.remove(images[1].tags[0])
    estimate = estimate_garbage(store.store)
    assert collect_garbage(store.store).chunks == estimate.chunks
    assert_tight(store)


def test_a_hole_that_a_crash_has_undone_is_made_again(
    store: LayerStore, images: list[Image]
) -> None:
    store.remove(images[0].tags[0])
    collect_garbage(store.store)
    extent = max(free_extents(store.store), key=lambda one: one.end - one.start)
    with store.store.layout.chunks.open("r+b") as file:
        file.seek(extent.start + 3 * BLOCK)
        file.write(b"what was there before" * BLOCK)
    before = free_extents(store.store)
    report = collect_garbage(store.store)
    assert report.bytes >= 21 * BLOCK
    assert free_extents(store.store) == before
    assert_tight(store)
