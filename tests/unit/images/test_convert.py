"""Kept gzip blobs become recipes, and come out of the store as they went in."""

from __future__ import annotations

import gzip
import io
import json
import random
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from layerstore import kernels
from layerstore.api import LayerStore, open_store, repair_store
from layerstore.digest import Digest, digest_of
from layerstore.emit import iter_blob
from layerstore.errors import CorruptStore, Unsupported
from layerstore.images.convert import convert_blob
from layerstore.images.load import BlobPolicy
from layerstore.images.wrapped import wrapped_blob
from layerstore.regenerate import iter_regenerated
from layerstore.store.catalog import BlobRecord, LayerRecord, Wrapping
from layerstore.store.layout import BLOB_RECIPES
from tests.support.archive_builders import (
    Image,
    layer_tar,
    oci_layout_of,
    tar_of,
    write_folder,
)
from tests.support.gzips import text_of
from tests.support.stores import assert_clean, indexed_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_native = pytest.mark.skipif(
    kernels.NAME != "native", reason="splitting needs the native kernels"
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as opened:
        yield opened


def tar_of_text(size: int, seed: int = 1) -> bytes:
    return layer_tar(
        {"usr/lib/a": text_of(size // 2, seed), "usr/lib/b": text_of(size // 2, seed + 1)}
    )


def keep_gzip(store: LayerStore, tar: bytes, blob: bytes) -> Digest:
    """Load an image whose one layer is this gzip of this tar, and keep the blob as it is; returns the blob's digest."""
    digest = digest_of(blob)
    name = {"org.opencontainers.image.ref.name": f"test/{digest[7:19]}:1"}
    files = oci_layout_of([(Image.of([tar]), name)], "gzip", {tar: blob})
    store.load(io.BytesIO(tar_of(files)), blobs=BlobPolicy.DEFER)
    return digest


def of_no_known_encoder(tar: bytes) -> bytes:
    """zlib with a window of 4 KiB and short hashes: nobody makes layers so, and no model knows it."""
    encoder = zlib.compressobj(6, zlib.DEFLATED, 28, 1)
    return encoder.compress(tar) + encoder.flush()


def records(store: LayerStore, digest: Digest) -> tuple[BlobRecord, LayerRecord]:
    with store.store.read() as txn:
        blob = store.store.catalog.blob(txn, digest)
        assert blob is not None
        assert blob.diff_id is not None
        layer = store.store.catalog.layer(txn, blob.diff_id)
        assert layer is not None
    return blob, layer


@needs_native
def test_converted_blob_comes_out_and_its_kept_bytes_go(store: LayerStore) -> None:
    tar = tar_of_text(2_200_000)
    blob = gzip.compress(tar, 6)
    digest = keep_gzip(store, tar, blob)
    before = indexed_bytes(store.store)
    report = store.optimize()
    assert [done.digest for done in report.conversions] == [digest]
    assert report.bytes == len(blob)
    assert report.conversions[0].model == "zlib 6"
    assert 0 < report.recipe_bytes < len(blob) // 100
    wrapped = wrapped_blob(store.store, digest)
    assert wrapped is not None
    assert (wrapped.wrapping, wrapped.model) == (Wrapping.REGENERATED, "zlib 6")
    assert wrapped.recipe == report.recipe_bytes
    assert 0 < wrapped.stored < 2 * wrapped.recipe
    assert store.verify(blobs=True).damages == ()
    assert b"".join(store.iter_blob(digest)) == blob
    store.prune()
    assert b"".join(store.iter_blob(digest)) == blob
    assert indexed_bytes(store.store) < before - 0.9 * len(blob)
    assert_clean(store)
    assert store.optimize().conversions == ()


@needs_native
def test_an_unknown_encoder_stays_kept_and_is_not_tried_again(store: LayerStore) -> None:
    tar = tar_of_text(400_000)
    blob = of_no_known_encoder(tar)
    digest = keep_gzip(store, tar, blob)
    report = store.optimize()
    assert dict(report.reasons) == {"no known encoder": 1}
    assert (report.bytes, report.recipe_bytes) == (0, 0)
    assert b"".join(store.iter_blob(digest)) == blob
    assert store.optimize().conversions == ()
    assert dict(store.optimize(again=True).reasons) == {"no known encoder": 1}
    wrapped = wrapped_blob(store.store, digest)
    assert wrapped is not None
    assert (wrapped.wrapping, wrapped.reason) == (Wrapping.KEPT, "no known encoder")
    assert wrapped.stored > 0.9 * len(blob)
    assert_clean(store)


@needs_native
def test_blobs_smaller_than_their_recipe_stay_kept(store: LayerStore) -> None:
    tar = layer_tar({})
    blob = gzip.compress(tar)
    digest = keep_gzip(store, tar, blob)
    assert dict(store.optimize().reasons) == {"smaller than 300 bytes": 1}
    assert b"".join(store.iter_blob(digest)) == blob


@needs_native
def test_what_does_not_come_out_of_the_store_is_never_dropped(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe that is wrong in one bit: the digest says so, and the blob stays."""
    tar = tar_of_text(300_000)
    blob = gzip.compress(tar, 6)
    digest = keep_gzip(store, tar, blob)

    def spoiled(*arguments: Any, **named: Any) -> Iterator[bytes]:
        for block in iter_regenerated(*arguments, **named):
            yield block[:-1] + bytes([block[-1] ^ 1])

    monkeypatch.setattr("layerstore.images.convert.iter_regenerated", spoiled)
    report = store.optimize()
    assert dict(report.reasons) == {"does not come out of the store as it came in": 1}
    assert b"".join(store.iter_blob(digest)) == blob
    assert records(store, digest)[0].wrapping is Wrapping.KEPT


@needs_native
def test_only_versions_that_know_recipes_open_a_store_that_has_them(store: LayerStore) -> None:
    tar = tar_of_text(100_000)

    def features() -> list[str]:
        found: list[str] = json.loads(store.store.layout.format.read_text())["incompatible"]
        return found

    keep_gzip(store, tar, gzip.compress(tar))
    assert BLOB_RECIPES not in features()
    store.optimize()
    assert BLOB_RECIPES in features()
    with open_store(store.store.layout.root, create=False, read_only=True) as again:
        assert_clean(again)


@needs_native
def test_readers_of_a_kept_blob_go_on_when_it_is_converted_and_pruned(store: LayerStore) -> None:
    tar = layer_tar({"noise": random.Random(5).randbytes(9_000_000)})
    blob = gzip.compress(tar, 1)
    digest = keep_gzip(store, tar, blob)
    blocks = iter_blob(store.store, digest)
    got = [next(blocks)]
    assert len(got[0]) < len(blob)
    assert store.optimize().bytes == len(blob)
    store.prune()
    assert b"".join([*got, *blocks]) == blob


@needs_native
@pytest.mark.parametrize("threads", [1, 2])
def test_a_range_is_the_same_from_any_byte(store: LayerStore, threads: int) -> None:
    tar = tar_of_text(2_600_000)
    blob = gzip.compress(tar, 6)
    digest = keep_gzip(store, tar, blob)
    store.optimize()
    record, layer = records(store, digest)
    rng = random.Random(2)
    starts = [0, 1, len(blob) - 1, len(blob), len(blob) + 1]
    starts += [rng.randrange(len(blob)) for _ in range(6)]
    for start in starts:
        out = b"".join(iter_regenerated(store.store, record, layer, start=start, threads=threads))
        assert out == blob[start:]


@needs_native
def test_recipe_of_another_layer_is_damage(store: LayerStore) -> None:
    tars = [tar_of_text(200_000), tar_of_text(300_000)]
    digests = [keep_gzip(store, tar, gzip.compress(tar)) for tar in tars]
    store.optimize()
    (first, layer), (second, _) = (records(store, digest) for digest in digests)
    wrong = BlobRecord(first.size, first.wrapping, first.diff_id, "gzip", second.stretches)
    with pytest.raises(CorruptStore):
        list(iter_regenerated(store.store, wrong, layer))
    with store.store.write() as txn:
        store.store.catalog.put_blob(txn, digests[0], wrong)
    with pytest.raises(CorruptStore):
        list(store.iter_blob(digests[0]))
    assert store.verify().damages == ()
    (damage,) = store.verify(blobs=True).damages
    assert (damage.damage.what, damage.damage.name) == ("blob", digests[0])


@needs_native
def test_damaged_recipe_is_found_by_verify_and_no_wrong_byte_comes_out(store: LayerStore) -> None:
    tar = tar_of_text(100_000)
    digest = keep_gzip(store, tar, gzip.compress(tar))
    store.optimize()
    (stretch,) = records(store, digest)[0].stretches
    with store.store.read() as txn:
        place = store.store.index.places(txn, np.array(stretch.literals, "u8"))[0]
    with store.store.layout.chunks.open("r+b") as file:
        file.seek(int(place["address"]) + int(place["encoded"]) - 1)
        last = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([last ^ 255]))
    (damage,) = store.verify().damages
    assert (damage.damage.name, damage.damage.chunks) == (digest, stretch.literals)
    with pytest.raises(CorruptStore):
        list(store.iter_blob(digest))


@needs_native
def test_two_that_convert_the_same_blob_agree(store: LayerStore) -> None:
    tar = tar_of_text(100_000)
    blob = gzip.compress(tar)
    digest = keep_gzip(store, tar, blob)
    with store.store.begin() as first, store.store.begin() as second:
        assert convert_blob(store.store, first, digest) is not None
        assert convert_blob(store.store, second, digest) is None
    assert convert_blob_of_nothing(store) is None
    assert b"".join(store.iter_blob(digest)) == blob


def convert_blob_of_nothing(store: LayerStore) -> object:
    with store.store.begin() as session:
        return convert_blob(store.store, session, digest_of(b"nothing"))


def test_without_native_kernels_nothing_is_converted(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerstore.kernels.NAME", "pure")
    with pytest.raises(Unsupported, match="native kernels"):
        store.optimize()


@needs_native
def test_kinds_of_blobs_are_counted(store: LayerStore) -> None:
    tar, other = tar_of_text(400_000), tar_of_text(300_000, 9)
    first, again, odd = (
        gzip.compress(tar, 6),
        gzip.compress(other, 6),
        of_no_known_encoder(layer_tar({"c": text_of(200_000, 5)})),
    )
    for one, blob in ((tar, first), (other, again)):
        keep_gzip(store, one, blob)
    store.optimize()
    keep_gzip(store, layer_tar({"c": text_of(200_000, 5)}), odd)
    small, large = store.usage().blobs[::-1]
    assert (large.wrapping, large.how, large.blobs) == (Wrapping.REGENERATED, "zlib 6", 2)
    assert (small.wrapping, small.how, small.blobs) == (Wrapping.KEPT, "gzip", 1)
    assert large.size == len(first) + len(again)
    assert 0 < large.recipe < large.size // 100
    assert large.stored < 2 * large.recipe
    assert (small.size, small.recipe) == (len(odd), 0)
    store.optimize()
    assert {kind.how for kind in store.usage().blobs} == {"zlib 6", "no known encoder"}


@needs_native
@pytest.mark.parametrize("part", ["recipe", "tar"])
def test_a_blob_is_whole_after_a_repair(tmp_path: Path, part: str) -> None:
    tar = tar_of_text(600_000)
    blob = gzip.compress(tar, 6)
    named = (Image.of([tar]), {"org.opencontainers.image.ref.name": "test/repaired:1"})
    layout = write_folder(tmp_path / "layout", oci_layout_of([named], "gzip", {tar: blob}))
    with open_store(tmp_path / "store") as store:
        store.load(layout)
        record, layer = records(store, digest_of(blob))
        assert record.wrapping is Wrapping.REGENERATED
        stretches = record.stretches if part == "recipe" else layer.stretches
        number = stretches[0].literals[0]
        with store.store.read() as txn:
            place = store.store.index.places(txn, np.array([number], "u8"))[0]
        with store.store.layout.chunks.open("r+b") as file:
            file.seek(int(place["address"]) + int(place["encoded"]) // 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 8]))
        assert store.verify(blobs=True).damages
    assert repair_store(tmp_path / "store", sources=[layout]).left == ()
    with open_store(tmp_path / "store") as store:
        assert b"".join(store.iter_blob(digest_of(blob))) == blob
        assert store.verify(blobs=True).damages == ()
        if store.optimize().conversions:  # a lost recipe was replaced by the blob itself
            assert records(store, digest_of(blob))[0].wrapping is Wrapping.REGENERATED
        assert b"".join(store.iter_blob(digest_of(blob))) == blob
        assert store.verify(blobs=True).damages == ()
