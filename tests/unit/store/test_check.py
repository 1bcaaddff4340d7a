"""Verify: what each depth finds, what is no damage, how a run goes on from another, how fast it may read."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from layerstore.api import open_store
from layerstore.errors import CorruptStore, InvalidArgument
from layerstore.store.check import Depth, VerifyOptions, verify_store
from layerstore.store.database import pack_u64
from tests.support.stores import sample_images, write_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layerstore.api import LayerStore

_ALL = tuple(Depth)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as store:
        for image in sample_images(3, count=2, layer_size=1 << 19):
            store.load(write_archive(tmp_path, image))
        yield store


def _flip_chunk(store: LayerStore, number: int) -> None:
    with store.store.read() as txn:
        place = store.store.index.places(txn, np.array([number], "u8"))[0]
    fd = os.open(store.store.layout.chunks, os.O_RDWR)
    at = int(place["address"]) + int(place["encoded"]) // 2
    os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 8]), at)
    os.close(fd)


def _change_silently(store: LayerStore, table: str, key: bytes, value: bytes | None) -> None:
    """Change a row as damage does: the journal hears nothing of it."""
    with store.store.write() as txn:
        cursor = store.store.database.cursor(txn, table)
        if value is not None:
            cursor.put(key, value)
        elif cursor.set_key(key):
            cursor.delete()


def _rows(store: LayerStore, table: str) -> list[tuple[bytes, bytes]]:
    with store.store.read() as txn:
        return list(store.store.database.items(txn, table))


@pytest.mark.parametrize("depth", _ALL)
def test_whole_store_is_whole_at_every_depth(store: LayerStore, depth: Depth) -> None:
    report = store.verify(depth=depth).checked
    assert (report.damages, report.notes, report.unlisted, report.depth) == ((), (), 0, depth)
    assert (report.layers, report.blobs) == (3, 4)
    assert (report.chunks > 0) == (depth is not Depth.STRUCTURE)
    assert (report.orphans is not None) == (depth is Depth.EVERYTHING)


def test_damaged_chunk_is_found_by_those_that_read_chunks(store: LayerStore) -> None:
    _flip_chunk(store, 2)
    assert store.verify(depth="structure").damages == ()
    chunks, everything = (store.verify(depth=depth).damages for depth in ("chunks", "everything"))
    assert chunks == everything
    assert {damage.damage.chunks for damage in chunks} == {(2,)}


def test_damage_that_nobody_needs_is_named_only_where_a_load_would_rely_on_it(
    store: LayerStore,
) -> None:
    for summary in store.images():
        store.remove(summary.names[0])
    with store.store.write() as txn:  # what prune does first
        for diff_id in list(store.store.catalog.layer_digests(txn)):
            store.store.catalog.delete_layer(txn, diff_id)
        for digest in list(store.store.catalog.blob_digests(txn)):
            store.store.catalog.delete_blob(txn, digest)
    _flip_chunk(store, 2)
    assert store.verify(depth="chunks").damages == ()
    (found,) = store.verify().damages
    assert (found.damage.what, found.damage.chunks) == ("chunk", (2,))
    (chunk_id,) = (key for key, value in _rows(store, "chunks") if value == pack_u64(2))
    _change_silently(store, "chunks", chunk_id, None)
    assert store.verify().damages == ()


@pytest.mark.parametrize("table", ["layers", "blobs", "images", "refs", "places", "state"])
def test_row_that_is_not_as_the_journal_has_it_is_damage(store: LayerStore, table: str) -> None:
    key, value = next((k, v) for k, v in _rows(store, table) if k != b"journal")
    if table == "state":
        key, value = b"next_number", dict(_rows(store, "state"))[b"next_number"]
    changed = bytearray(value)
    changed[len(value) // 2] ^= 1
    _change_silently(store, table, key, bytes(changed))
    names = [found.damage.name.partition(" ")[0] for found in store.verify().damages]
    assert table in names
    _change_silently(store, table, key, value)
    assert store.verify().damages == ()
    _change_silently(store, table, key, None)
    assert any(found.damage.what == "tables" for found in store.verify().damages)


def test_lost_chunk_id_is_counted_and_wrong_one_is_damage(store: LayerStore) -> None:
    (key, value), (other, _) = _rows(store, "chunks")[:2]
    _change_silently(store, "chunks", key, None)
    report = store.verify(depth="structure").checked
    assert (report.unlisted, report.damages) == (1, ())
    _change_silently(store, "chunks", bytes([key[0] ^ 1]) + key[1:], value)
    (found,) = store.verify(depth="structure").damages
    assert found.damage.what == "index"
    _change_silently(store, "chunks", bytes([key[0] ^ 1]) + key[1:], None)
    _change_silently(store, "chunks", other, pack_u64(10**6))
    assert {one.damage.what for one in store.verify(depth="structure").damages} == {"index"}


@pytest.mark.parametrize("kind", ["missing", "cut", "other", "flipped"])
def test_damaged_journal_is_damage_of_the_journal_alone(
    store: LayerStore, tmp_path: Path, kind: str
) -> None:
    path = store.store.layout.journal
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[:-1])
    else:
        at = 10 if kind == "other" else len(data) // 2
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert [found.damage.what for found in store.verify().damages] == ["journal"]


def test_store_without_a_journal_is_whole_and_says_so(store: LayerStore) -> None:
    _change_silently(store, "state", b"journal", bytes(48))
    with store.store.database._begin(write=True) as txn:
        txn.put(b"journal", bytes(48), db=store.store.database._tables["state"])
    report = store.verify().checked
    assert report.damages == ()
    assert "no journal" in report.notes[0]


def test_free_space_that_holds_chunks_is_damage(store: LayerStore) -> None:
    _change_silently(store, "free", pack_u64(0), pack_u64(4096))
    problems = [found.damage.problem for found in store.verify(depth="structure").damages]
    assert problems == ["1 chunks or free extents overlap"]
    _change_silently(store, "free", pack_u64(0), pack_u64(4095))
    assert len(store.verify(depth="structure").damages) == 2


def test_orphans_are_what_prune_then_frees(store: LayerStore) -> None:
    store.remove(store.images()[0].names[0])
    orphans = store.verify().checked.orphans
    assert orphans is not None
    assert orphans.layers == 1
    freed = store.prune().garbage
    assert (freed.layers, freed.blobs) == (orphans.layers, orphans.blobs)
    assert freed.chunks >= orphans.chunks
    after = store.verify().checked.orphans
    assert after is not None
    assert (after.layers, after.blobs, after.chunks, after.condemned, after.space) == (0,) * 5


class _StopError(Exception):
    pass


@pytest.mark.parametrize("depth", [Depth.CHUNKS, Depth.EVERYTHING])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_stopped_run_is_gone_on_with_and_forgets_nothing(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch, depth: Depth, share: float
) -> None:
    monkeypatch.setattr("layerstore.store.scan._WINDOW", 1 << 18)
    _flip_chunk(store, 1)
    whole = verify_store(store.store, VerifyOptions(depth))
    seen = 0

    def stop(size: int) -> None:
        nonlocal seen
        seen += size
        if seen >= share * whole.bytes:
            raise _StopError

    with pytest.raises(_StopError):
        verify_store(store.store, VerifyOptions(depth), done=stop)
    again = list[int]()
    report = verify_store(store.store, VerifyOptions(depth, resume=True), done=again.append)
    assert report.resumed
    assert sum(again) == whole.bytes - seen
    assert (report.damages, report.bytes, report.chunks) == (
        whole.damages,
        whole.bytes,
        whole.chunks,
    )
    assert not verify_store(store.store, VerifyOptions(depth, resume=True)).resumed


def test_other_depth_is_not_gone_on_with_nor_is_a_note_that_is_none(store: LayerStore) -> None:
    (store.store.layout.tmp / "verify-chunks.json").write_bytes(b"{]")
    for depth in ("chunks", "everything"):
        assert not store.verify(depth=depth, resume=True).checked.resumed


def test_damage_that_was_healed_before_the_run_goes_on_is_not_reported(store: LayerStore) -> None:
    _flip_chunk(store, 1)

    def stop(size: int) -> None:
        raise _StopError

    with pytest.raises(_StopError):
        verify_store(store.store, VerifyOptions(Depth.CHUNKS), done=stop)
    _flip_chunk(store, 1)
    report = verify_store(store.store, VerifyOptions(Depth.CHUNKS, resume=True))
    assert report.resumed
    assert report.damages == ()


def test_rate_limits_what_is_read(store: LayerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerstore.store.reader._MAX_READ", 1 << 16)
    with store.store.read() as txn:
        size = sum(int(run["encoded"].sum()) for _, run in store.store.index.runs(txn))
    begin = time.monotonic()
    store.verify(depth="chunks", rate=2 * size)
    assert time.monotonic() - begin > 0.4
    for wrong in ({"rate": 0}, {"jobs": 0}, {"depth": "deep"}):
        with pytest.raises(InvalidArgument):
            store.verify(**wrong)


def test_missing_tables_are_never_made_anew_nor_is_their_second_copy(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with open_store(root) as store:
        store.load(write_archive(tmp_path, sample_images(4, count=1)[0]))
    journal = (root / "journal").read_bytes()
    (root / "meta" / "data.mdb").rename(tmp_path / "kept")
    for content in (None, b""):
        if content is not None:
            (root / "meta" / "data.mdb").write_bytes(content)
        for read_only in (True, False):
            with pytest.raises(CorruptStore, match="repair"):
                open_store(root, read_only=read_only)
    assert (root / "journal").read_bytes() == journal


@pytest.mark.parametrize("page", [0, 1])
def test_root_page_that_lost_its_turn_is_not_taken_for_an_older_store(
    store: LayerStore, tmp_path: Path, page: int
) -> None:
    """LMDB takes the root page with the larger transaction, whatever the other one says."""
    root = store.store.layout.root
    store.close()
    path = root / "meta" / "data.mdb"
    data = bytearray(path.read_bytes())
    at = page * 4096 + 16 + 24 + 2 * 48 + 8
    data[at] ^= 2
    path.write_bytes(data)
    with pytest.raises(CorruptStore, match="root page"):
        open_store(root)
