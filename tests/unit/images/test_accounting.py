"""What `df`, `why` and `rmi --dry-run` say of small stores that are known byte by byte."""

from __future__ import annotations

import dataclasses
import io
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from layerstore.api import LayerStore, open_store
from layerstore.digest import digest_of
from layerstore.errors import FailedPrecondition, InvalidArgument, NotFound
from layerstore.images.accounting import account
from layerstore.images.load import BlobPolicy
from tests.support.archive_builders import Image, docker_archive_of, layer_tar, oci_layout, tar_of
from tests.support.cli_images import noise
from tests.support.stores import sample_images, write_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as opened:
        yield opened


def load(store: LayerStore, tag: str, *layers: dict[str, bytes]) -> str:
    """An image of these files, layer by layer; returns its full name."""
    image = Image.of([layer_tar(files) for files in layers], tag)
    return store.load(io.BytesIO(docker_archive_of([image]))).images[0].names[0]


def assert_adds_up(store: LayerStore) -> None:
    """The law of accounting: shares + overhead is what `du` says."""
    usage = account(store.store)
    shares = sum(image.share for image in usage.images)
    split, overhead = usage.split, usage.overhead
    assert shares == split.contents + split.recipes + split.kept_blobs
    assert shares + sum(dataclasses.asdict(overhead).values()) == usage.total
    assert overhead.slack >= 0
    du = subprocess.run(
        ["du", "-sx", "-B1", store.store.layout.root], capture_output=True, check=True
    )
    assert usage.total == int(du.stdout.split()[0]) == store.size_on_disk()
    steps = [split.unpacked, split.layers, split.files, split.chunks]
    assert steps == sorted(steps, reverse=True)


def test_every_step_of_the_split_is_what_it_says(store: LayerStore) -> None:
    big, other = noise(200_000, 1), noise(50_000, 2)
    load(store, "a:1", {"big": big, "copy": big}, {"zeros": bytes(1 << 20)})
    load(store, "b:1", {"big": big, "copy": big}, {"tail": big[100_000:], "other": other})
    split = account(store.store).split
    assert split.unpacked == 800_000 + (1 << 20) + 150_000
    assert split.layers == split.unpacked - 400_000
    assert split.files == split.layers - 200_000
    # The tail's chunks are those of the file from its first common cut on, and zeros need none.
    assert 250_000 <= split.chunks < 250_000 + 128 * 1024
    assert split.contents > split.chunks  # noise does not compress, frames cost some bytes
    assert_adds_up(store)


def test_shares_are_fair_and_what_is_alone_is_freed(store: LayerStore) -> None:
    load(store, "a:1", {"shared": noise(400_000, 1)}, {"own": noise(80_000, 2)})
    load(store, "b:1", {"shared": noise(400_000, 1)}, {"own": noise(160_000, 3)})
    a, b = account(store.store).images
    assert (a.unpacked, b.unpacked) == (480_000, 560_000)
    assert 80_000 <= a.alone <= 84_000
    assert abs((a.share - a.alone) - 200_000) < 4000
    assert abs((a.share - a.alone) - (b.share - b.alone)) <= 20  # a byte for each shared chunk
    assert a.stored - a.alone == b.stored - b.alone
    assert abs(a.freed - a.alone) <= 2 * 4096
    assert_adds_up(store)


@pytest.mark.parametrize("together", [False, True])
def test_what_a_dry_run_says_is_what_prune_then_frees(
    store: LayerStore, tmp_path: Path, together: bool
) -> None:
    for image in sample_images(3, count=3, layer_size=300_000):
        store.load(write_archive(tmp_path, image))
    load(store, "pair:1", {"both": noise(300_000, 7)}, {"x": noise(9000, 8)})
    load(store, "pair:2", {"both": noise(300_000, 7)}, {"x": noise(9000, 9)})
    load(store, "gone:1", {"x": noise(20_000, 10)})
    store.remove("gone:1")
    names = ["pair:1", "pair:2", "test/3:0"] if together else ["pair:1"]
    usage = {image.names: image for image in account(store.store).images}
    forecast = store.removal(*names)
    assert forecast.shared == forecast.freed - sum(one.freed for one in forecast.deleted)
    assert (forecast.shared > 300_000) == together
    for one in forecast.deleted:
        assert one.freed == usage[one.names].freed
    assert forecast.garbage > 0
    before = store.store.chunkfile.allocated_bytes()
    reports = [store.remove(name) for name in names]
    pruned = store.prune()
    assert forecast.untagged == tuple(name for report in reports for name in report.untagged)
    assert [one.digest for one in forecast.deleted] == [d for r in reports for d in r.deleted]
    assert pruned.garbage.bytes == forecast.freed + forecast.garbage
    assert before - store.store.chunkfile.allocated_bytes() == forecast.freed + forecast.garbage
    assert store.usage().reclaimable == 0
    assert_adds_up(store)


def test_a_dry_run_refuses_what_rmi_refuses(store: LayerStore) -> None:
    name = load(store, "a:1", {"x": b"1"})
    store.tag("a:1", "b:1")
    image_id = store.inspect("a:1").summary.id
    with pytest.raises(FailedPrecondition):
        store.removal(image_id)
    with pytest.raises(NotFound):
        store.removal("a:1", "a:1")
    with pytest.raises(NotFound):
        store.removal("a:1", "b:1", image_id)
    assert store.removal("a:1").deleted == ()
    forced = store.removal(image_id, force=True)
    assert forced.untagged == (name, "docker.io/library/b:1")
    assert [len(one.names) for one in forced.deleted] == [2]
    assert len(store.images()) == 1


def test_what_a_snapshot_or_a_lease_holds_is_not_freed(store: LayerStore) -> None:
    load(store, "a:1", {"x": noise(100_000, 1)})
    assert account(store.store).images[0].freed > 90_000
    with store.lease("a:1", ttl=60):
        [image] = account(store.store).images
        assert (image.alone, image.freed) == (0, 0)
        assert store.removal("a:1").freed == 0
        store.remove("a:1")
        usage = account(store.store)
        assert usage.images == ()
        assert usage.overhead.held > 100_000
        assert usage.overhead.garbage == usage.reclaimable == 0
    with store.lease(ttl=60):
        assert account(store.store).overhead.garbage == 0
    usage = account(store.store)
    assert usage.overhead.held == 0
    assert usage.overhead.garbage > 100_000
    assert usage.reclaimable == store.prune().garbage.bytes > 90_000


def test_kept_blobs_are_counted_by_themselves(store: LayerStore) -> None:
    files = oci_layout([layer_tar({"x": noise(100_000, 5)})])
    store.load(io.BytesIO(tar_of(files)), name="a:1", blobs=BlobPolicy.DEFER)
    usage = account(store.store)
    assert usage.split.kept_blobs > 100_000
    [image] = usage.images
    assert 100_000 < image.blobs < 110_000
    assert_adds_up(store)


def test_an_empty_store_adds_up(store: LayerStore) -> None:
    assert_adds_up(store)
    assert account(store.store).images == ()


def test_a_path_shows_each_content_with_its_images_and_who_hides_it(store: LayerStore) -> None:
    old, new = noise(5000, 1), noise(6000, 2)
    load(store, "a:1", {"etc/x": old}, {"other": b"1"})
    load(store, "b:1", {"etc/x": old}, {"etc/x": new})
    load(store, "c:1", {"etc/x": old}, {"etc/.wh.x": b""})
    load(store, "d:1", {"etc/x": old}, {".wh.etc": b""})
    load(store, "e:1", {"etc/x": old}, {"etc/.wh..wh..opq": b""})
    first, second = store.why("/etc/x")
    assert (first.kind, first.name, first.size) == ("file", "/etc/x", 5000)
    assert {h.name[-3:]: h.hidden for h in first.holders} == {
        "a:1": False, "b:1": True, "c:1": True, "d:1": True, "e:1": True,
    }  # fmt: skip
    assert [h.name for h in second.holders] == ["docker.io/library/b:1"]
    assert 5000 < first.stored < 5100
    with pytest.raises(NotFound):
        store.why("/etc/y")
    with pytest.raises(InvalidArgument):
        store.why("/etc/../x")


def test_digests_names_and_chunks_say_who_needs_them(store: LayerStore) -> None:
    base = {"x": noise(6000, 1)}
    name = load(store, "a:1", base)
    load(store, "b:1", base, {"y": b"1"})
    store.tag("a:1", "c:1")
    [layer] = store.why(digest_of(layer_tar(base))[:20])
    assert layer.kind == "layer"
    assert {h.name[-3:] for h in layer.holders} == {"a:1", "b:1", "c:1"}
    [image] = store.why("a:1")
    assert (image.kind, [h.name for h in image.holders]) == (
        "image", [name, "docker.io/library/c:1"],
    )  # fmt: skip
    assert store.why(store.inspect("a:1").summary.id) == [image]
    import blake3

    [chunk] = store.why(blake3.blake3(base["x"]).hexdigest())
    assert (chunk.kind, chunk.size, len(chunk.layers)) == ("chunk", 6000, 1)
    assert chunk.holders == layer.holders
    with store.lease("a:1", ttl=60, label="job"):
        store.remove("a:1")
        store.remove("c:1")
        assert [(h.kind, h.name) for h in store.why(image.name)[0].holders] == [("lease", "job")]
    assert store.why(image.name)[0].holders == ()


def test_a_store_open_for_reading_only_is_accounted_for(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as writing:
        load(writing, "a:1", {"x": noise(6000, 1)})
        expected = account(writing.store)
    with open_store(tmp_path / "store", read_only=True) as reading:
        assert account(reading.store).images == expected.images
        assert_adds_up(reading)
    shutil.rmtree(tmp_path / "store")
