"""Prune: which images go, what their going frees, and what is left of mounts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from layerstore.api import LayerStore, open_store
from layerstore.errors import InvalidArgument, NotFound
from layerstore.images.prune import PruneOptions
from layerstore.images.rootfs import ImportOptions
from layerstore.mount.images import ready_images
from layerstore.mount.mounter import release_lowers
from layerstore.mount.places import Places
from layerstore.store.mountstate import ContentTable
from tests.support.archive_builders import layer_tar
from tests.support.stores import assert_holds, assert_tight, payload, sample_images, write_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.archive_builders import Image

ALL = PruneOptions(everything=True)


@pytest.fixture
def images() -> list[Image]:
    return sample_images(60, count=2, layer_size=60_000)


@pytest.fixture
def store(tmp_path: Path, images: list[Image]) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as opened:
        for image in images:
            opened.load(write_archive(tmp_path, image))
        yield opened
        if opened.store.layout.root.joinpath("run").is_dir():
            release_lowers(opened.store)


def test_an_image_that_lost_its_name_goes_and_one_with_a_name_stays(
    store: LayerStore, images: list[Image]
) -> None:
    digest = store.inspect(images[0].tags[0]).summary.digest
    store.tag(images[1].tags[0], images[0].tags[0])  # takes the name away
    foreseen = store.prune(PruneOptions(dry_run=True))
    report = store.prune()
    assert foreseen.deleted == report.deleted == (digest,)
    assert foreseen.garbage.chunks == report.garbage.chunks > 0
    assert foreseen.garbage.bytes == report.garbage.bytes > 0
    assert report.untagged == ()
    assert_holds(store, images[1])
    assert_tight(store)


def test_all_takes_what_no_snapshot_uses(store: LayerStore, images: list[Image]) -> None:
    store.fork(images[0].tags[0], ["mine"])
    report = store.prune(ALL)
    assert [name[10:] for name in report.untagged] == list(images[1].tags)
    assert_holds(store, images[0])
    store.snapshots.remove("mine")
    release_lowers(store.store)  # where snapshots are shown in place, they stay mounted
    assert store.prune(ALL).deleted
    assert store.images() == []
    assert store.store.chunkfile.allocated_bytes() == 0


def test_a_snapshot_keeps_the_layers_of_an_image_that_is_removed(
    store: LayerStore, images: list[Image]
) -> None:
    store.fork(images[0].tags[0], ["mine"])
    store.remove(images[0].tags[0])
    assert store.prune().garbage.layers == 0
    stack = store.snapshots.stack("mine")
    tars = [b"".join(store.iter_layer(diff_id)) for diff_id in stack]
    assert tars == list(images[0].layers)


def test_a_lease_keeps_an_image_until_its_time_or_its_release(
    store: LayerStore, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = images[0].tags[0]
    digest = store.inspect(name).summary.digest
    lease = store.lease(name, ttl=60, label="test")
    store.remove(name)
    assert store.prune(ALL).garbage.layers == 1, "that of the other image"
    now = time.time_ns()
    lease.renew(120)
    monkeypatch.setattr(time, "time_ns", lambda: now + 100 * 10**9)
    assert store.prune(ALL).garbage.layers == 0
    monkeypatch.setattr(time, "time_ns", lambda: now + 200 * 10**9)
    assert store.prune().garbage.layers == 2
    with pytest.raises(NotFound):
        lease.renew(10)
    with pytest.raises(NotFound):
        store.lease(digest, ttl=10)
    with pytest.raises(InvalidArgument):
        store.lease(ttl=0)


def test_a_lease_of_everything_keeps_everything(store: LayerStore, images: list[Image]) -> None:
    with store.lease(ttl=60):
        store.remove(images[0].tags[0])
        assert store.prune().garbage.layers == 0
    assert store.prune().garbage.layers == 1


def test_filters_choose_by_label_and_by_the_time_of_building(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        for number, label in enumerate(["keep=yes", "keep=no"]):
            tar = tmp_path / f"{number}.tar"
            tar.write_bytes(layer_tar({"a": payload(number, 5000)}))
            options = ImportOptions(
                changes=(f"LABEL {label}",), created=f"202{number}-01-01T00:00:00Z"
            )
            store.import_rootfs(tar, f"app:{number}", options)

        def going(*filters: str) -> list[str]:
            options = PruneOptions(everything=True, filters=filters, dry_run=True)
            return [name[-1] for name in store.prune(options).untagged]

        assert going() == ["0", "1"]
        assert going("label=keep") == ["0", "1"]
        assert going("label=keep=yes") == ["0"]
        assert going("label!=keep=yes") == ["1"]
        assert going("until=2020-06-01T00:00:00Z") == ["0"]
        assert going("until=24h") == ["0", "1"]
        assert going("until=1577836799") == []
        assert going("label=keep=no", "until=2020-06-01T00:00:00Z") == []
        for wrong in ("until=soon", "name=x", "label", "until="):
            with pytest.raises(InvalidArgument):
                going(wrong)


def test_images_for_mounts_go_with_their_layers_and_never_come_back_stale(
    store: LayerStore, images: list[Image], tmp_path: Path
) -> None:
    places = Places.of(store.store.layout.root)
    places.make()

    def ready(image: Image) -> str:
        diff_ids = [layer.diff_id for layer in store.inspect(image.tags[0]).layers]
        return ready_images(store.store, places, diff_ids).key

    key, other = map(ready, images)
    store.remove(images[0].tags[0])
    assert store.prune().cache_bytes > 0
    assert not places.meta_image(key).exists()
    assert places.meta_image(other).exists()
    assert ready(images[1]) == other
    store.load(write_archive(tmp_path, images[0]))
    assert ready(images[0]) != key, "its chunks have other numbers now"
    for image in images:
        store.remove(image.tags[0])
    store.prune()
    assert [path.name for path in places.images.iterdir()] == ["lock"]
    with store.store.read() as txn:
        assert not list(store.store.database.items(txn, "contents"))
        assert not ContentTable(store.store.database).images(txn)
