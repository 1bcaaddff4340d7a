"""What leads to what: documents, layers, chunks."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.api import LayerStore, open_store
from layerstore.digest import DiffID, digest_of
from layerstore.errors import CorruptStore, NotFound
from layerstore.images.load import BlobPolicy
from layerstore.store.reach import NumberSet, Reach, records_of, stream_numbers
from layerstore.tree import HOLE
from tests.support.archive_builders import Image, layer_tar, oci_layout_of, tar_of
from tests.support.stores import payload, sample_images, write_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as opened:
        for image in sample_images(3):
            opened.load(write_archive(tmp_path, image))
        yield opened


def _by_reading_everything(store: LayerStore, diff_id: DiffID) -> set[int]:
    """The same, by way of whole parts and one at a time."""
    with store.store.read() as txn:
        record = store.store.catalog.layer(txn, diff_id)
    assert record is not None
    numbers: set[int] = set()
    for stretch in record.stretches:
        numbers.update(stretch.literals, stretch.part)
        if stretch.part:
            numbers.update(store.store.reader.part(stretch).extents["number"].tolist())
    return numbers - {HOLE}


def test_a_layer_reaches_its_literals_its_parts_and_their_extents(store: LayerStore) -> None:
    reach = Reach(store.store)
    with store.store.read() as txn:
        diff_ids = [diff_id for diff_id, _ in store.store.catalog.layers(txn)]
    found = reach.layers(diff_ids)
    assert list(found) == diff_ids
    for diff_id, numbers in found.items():
        assert numbers.dtype == np.uint64
        assert numbers.tolist() == sorted(_by_reading_everything(store, diff_id))
        assert reach.layer(diff_id) is numbers, "it is read once"


def test_all_chunks_of_a_store_that_only_loads_are_reached(store: LayerStore) -> None:
    reach = Reach(store.store)
    with store.store.read() as txn:
        targets = [target for _, target in store.store.catalog.refs(txn)]
        count = store.store.index.count(txn)
    reached = NumberSet(count)
    for target in targets:
        reached.add(reach.image(target))
    assert reached.numbers().tolist() == list(range(1, count + 1))


def test_an_index_leads_to_its_images_and_a_kept_layer_to_its_own_bytes(tmp_path: Path) -> None:
    layers = [layer_tar({"a": payload(1, 50_000)}), layer_tar({"b": payload(2, 50_000)})]
    image = Image.of(layers)
    with open_store(tmp_path / "store") as store:
        archive = io.BytesIO(tar_of(oci_layout_of([(image, {})], "gzip")))
        report = store.load(archive, blobs=BlobPolicy.DEFER, name="app:1")
        manifest = report.images[0].digest
        records = records_of(store.store, [manifest])
        assert records.images == {manifest}
        assert records.layers == {digest_of(layer) for layer in layers}
        blobs = records.blobs - {manifest, report.images[0].id}
        assert len(blobs) == 2, "the compressed layers"
        numbers = set(Reach(store.store).image(manifest).tolist())
        for digest in blobs:
            assert set(Reach(store.store).blobs([digest])[digest].tolist()) <= numbers
        with store.store.read() as txn:
            assert len(numbers) == store.store.index.count(txn)


def test_what_is_not_there_is_said_or_left_out(store: LayerStore) -> None:
    absent = DiffID(digest_of(b"nobody"))
    with pytest.raises(NotFound):
        Reach(store.store).layer(absent)
    assert records_of(store.store, [absent]) == (set(), set(), set())


def test_many_streams_come_in_their_order(store: LayerStore) -> None:
    with store.store.read() as txn:
        streams = [record.stretches for _, record in store.store.catalog.layers(txn)] * 300
    alone = [next(stream_numbers(store.store, [stream])) for stream in streams[:4]]
    for position, numbers in enumerate(stream_numbers(store.store, streams)):
        assert numbers.tolist() == alone[position % 4].tolist()
    assert position == 1199


def test_a_damaged_part_is_an_error_and_no_smaller_set(store: LayerStore) -> None:
    with store.store.read() as txn:
        diff_id, record = next(store.store.catalog.layers(txn))
        numbers = np.array(record.stretches[0].part[:1], "u8")
        place = store.store.index.places(txn, numbers)[0]
    with store.store.layout.chunks.open("r+b") as file:
        file.seek(int(place["address"]) + 12)
        file.write(b"damage")
    with pytest.raises(CorruptStore):
        Reach(store.store).layer(diff_id)


@given(
    st.integers(0, 300),
    st.lists(st.lists(st.integers(1, 400), max_size=20), max_size=5),
    st.integers(0, 500),
    st.integers(0, 50),
)
def test_a_number_set_is_a_set(count: int, added: list[list[int]], first: int, length: int) -> None:
    numbers, model = NumberSet(count), set[int]()
    for some in added:
        numbers.add(np.array(some, "u8"))
        model.update(some)
    assert numbers.numbers().tolist() == sorted(model)
    assert len(numbers) == len(model)
    window = list(range(first, first + length))
    assert numbers.has(np.array(window, "u8")).tolist() == [n in model for n in window]
    assert numbers.window(first, length).tolist() == [n in model for n in window]
