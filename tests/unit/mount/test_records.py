"""The tables of mounts and contents."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from layerstore.errors import CorruptStore
from layerstore.store.database import pack_u64
from layerstore.store.mountstate import ContentTable, MountRecord, MountTable
from layerstore.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECORD = MountRecord(
    "layerstore:1", "/mnt/\udcff", "erofs", ("sha256:a", "sha256:b"), True, "key", (1, 7),
    "/upper", True, 12345678901234567890, "boot", 4026531840,
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store:
        yield store


def test_records_come_back_as_they_were_and_in_order(store: Store) -> None:
    table = MountTable(store.database)
    other = replace(RECORD, token="layerstore:2", data=())
    with store.write() as txn:
        numbers = [table.add(txn, record) for record in (RECORD, other)]
    with store.read() as txn:
        assert list(table.items(txn)) == list(zip(numbers, (RECORD, other), strict=True))


def test_a_number_is_never_used_again(store: Store) -> None:
    table = MountTable(store.database)
    with store.write() as txn:
        first = table.add(txn, RECORD)
        table.delete(txn, first)
        assert table.add(txn, RECORD) > first


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b'{"token": 1}', b"\xff"])
def test_a_damaged_record_is_said_to_be_one(store: Store, value: bytes) -> None:
    with store.write() as txn:
        store.database.put(txn, "mounts", pack_u64(1), value)
    with store.read() as txn, pytest.raises(CorruptStore):
        list(MountTable(store.database).items(txn))


def test_contents_are_found_in_the_image_that_was_added_last(store: Store) -> None:
    table = ContentTable(store.database)
    names = [bytes([n]) * 32 for n in range(3)]
    with store.write() as txn:
        one, two = table.next_image(txn), table.next_image(txn)
        table.add_image(txn, one, b"h" * 32, names[:2])
        table.add_image(txn, two, b"g" * 32, names[1:2])
    with store.read() as txn:
        assert table.lookup(txn, names) == {names[0]: one, names[1]: two}
        assert table.images(txn) == {one: b"h" * 32, two: b"g" * 32}


def test_an_image_that_was_given_up_is_not_there(store: Store) -> None:
    table = ContentTable(store.database)
    with store.write() as txn:
        image = table.next_image(txn)
        table.add_image(txn, image, b"h" * 32, [b"n" * 32])
        table.forget_image(txn, image)
        assert table.image_hash(txn, image) is None
        assert table.images(txn) == {}
        assert table.next_image(txn) > image


def test_a_damaged_number_is_said_to_be_one(store: Store) -> None:
    table = ContentTable(store.database)
    with store.write() as txn:
        store.database.put(txn, "contents", b"n" * 32, b"123")
        with pytest.raises(CorruptStore):
            table.lookup(txn, [b"n" * 32])
