from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from layerstore.digest import DiffID, digest_of
from layerstore.emit import iter_blob, iter_layer, read_document
from layerstore.errors import CorruptStore, NotFound
from layerstore.ingest import Expected, ingest_blob, ingest_document
from layerstore.store.catalog import BlobRecord, LayerRecord, Wrapping
from layerstore.store.store import Store
from tests.support.layers import put
from tests.support.tars import DIALECTS, END, entry, noise

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layerstore.digest import Digest
    from layerstore.store.catalog import Stretch

NOTHING = digest_of(b"nothing")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as opened:
        yield opened


def keep(
    store: Store,
    digest: Digest,
    wrapping: Wrapping,
    stretches: tuple[Stretch, ...] = (),
    diff_id: DiffID | None = None,
    *,
    size: int,
) -> None:
    with store.write() as txn:
        store.catalog.put_blob(txn, digest, BlobRecord(size, wrapping, diff_id, "none", stretches))


def test_a_layer_comes_in_blocks_of_bounded_size(store: Store) -> None:
    tar = entry(b"a", noise(20 << 20)) + entry(b"zeros", bytes(20 << 20)) + END
    blocks = list(iter_layer(store, put(store, tar).diff_id))
    assert b"".join(blocks) == tar
    assert max(map(len, blocks)) < 8 << 20


def test_layers_that_share_chunks_do_not_mix(store: Store) -> None:
    tars = list(DIALECTS.values())
    ids = [put(store, tar).diff_id for tar in tars]
    for diff_id, tar in zip(ids, tars, strict=True):
        assert b"".join(iter_layer(store, diff_id)) == tar


def test_what_is_unknown_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        list(iter_layer(store, DiffID(NOTHING)))
    with pytest.raises(NotFound):
        list(iter_blob(store, NOTHING))
    with pytest.raises(NotFound):
        read_document(store, NOTHING)


def test_a_kept_blob_comes_out(store: Store) -> None:
    data = noise(5 << 20)
    with store.begin() as session:
        stretches = ingest_blob(io.BytesIO(data), Expected("blob"), session)
    keep(store, digest_of(data), Wrapping.KEPT, stretches, size=len(data))
    assert b"".join(iter_blob(store, digest_of(data))) == data


def test_a_document_comes_out(store: Store) -> None:
    for data in (b"{}", b"", noise(3 << 20)):
        with store.begin() as session:
            stretches = ingest_document(data, session)
            session.flush()
            found = stretches()
        keep(store, digest_of(data), Wrapping.KEPT, found, size=len(data))
        assert read_document(store, digest_of(data)) == data


def test_a_plain_blob_is_its_layer(store: Store) -> None:
    tar = DIALECTS["ustar"]
    report = put(store, tar)
    keep(store, report.digest, Wrapping.PLAIN, diff_id=report.diff_id, size=report.size)
    assert b"".join(iter_blob(store, report.digest)) == tar


def test_a_blob_of_which_only_the_tar_was_kept_is_not_found(store: Store) -> None:
    report = put(store, DIALECTS["ustar"])
    keep(store, NOTHING, Wrapping.DROPPED, diff_id=report.diff_id, size=5)
    with pytest.raises(NotFound, match="--drop-blobs"):
        list(iter_blob(store, NOTHING))


def test_bytes_that_are_not_what_was_asked_for_are_an_error_at_the_end(store: Store) -> None:
    report = put(store, DIALECTS["ustar"])
    with store.read() as txn:
        record = store.catalog.layer(txn, report.diff_id)
    assert record is not None
    with store.write() as txn:
        wrong = LayerRecord(record.size, record.entries, record.stretches, 0)
        store.catalog.put_layer(txn, DiffID(NOTHING), wrong)
    keep(store, NOTHING, Wrapping.KEPT, record.stretches, size=record.size)
    for stream in (iter_layer(store, DiffID(NOTHING)), iter_blob(store, NOTHING)):
        blocks: list[bytes] = []
        with pytest.raises(CorruptStore, match="verify"):
            blocks.extend(stream)
        assert b"".join(blocks) == DIALECTS["ustar"]


def test_damaged_chunks_are_an_error_and_never_wrong_bytes(store: Store) -> None:
    tar = entry(b"a", noise(200_000)) + END
    report = put(store, tar)
    with store.layout.chunks.open("r+b") as file:
        file.seek(50_000)
        file.write(b"damaged!")
    with pytest.raises(CorruptStore):
        list(iter_layer(store, report.diff_id))
