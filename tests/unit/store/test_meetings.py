"""Two that change one store at the same moment: whoever was acknowledged keeps what was said.

The second one acts at a fixed point inside the first, so that each meeting happens every time.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest

from layerstore.api import open_store
from layerstore.digest import digest_of
from layerstore.errors import NotFound
from layerstore.images import load, naming
from layerstore.images.load import BlobPolicy
from tests.support.archive_builders import (
    docker_archive_of,
    oci_layout_of,
    sha256,
    tar_of,
)
from tests.support.stores import assert_clean, assert_holds, sample_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from layerstore.api import LayerStore
    from tests.support.archive_builders import Image


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as store:
        yield store


@pytest.fixture
def image() -> Image:
    return sample_images(40, count=1, layer_size=20_000)[0]


class _AfterLayer:
    """Progress that does something once, when the first layer is done and nothing is committed of the image."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action

    def start(self, task: str, total: int | None) -> None:
        pass

    def advance(self, size: int) -> None:
        pass

    def finish(self, outcome: str) -> None:
        action, self._action = self._action, None
        if action is not None:
            action()


def _layout(image: Image, tag: str) -> bytes:
    return tar_of(oci_layout_of([(image, {"org.opencontainers.image.ref.name": tag})], "gzip"))


def test_image_removed_while_it_is_loaded_again_is_there_after_the_load(
    store: LayerStore, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = docker_archive_of([image])
    store.load(io.BytesIO(data))
    real = load._Loader._commit

    def commit(*arguments: Any) -> Any:
        monkeypatch.undo()
        store.remove(image.tags[0])
        return real(*arguments)

    monkeypatch.setattr(load._Loader, "_commit", commit)
    store.load(io.BytesIO(data))
    assert_holds(store, image)
    assert_clean(store)


def test_blob_kept_by_one_load_is_not_dropped_by_another_that_ends_later(
    store: LayerStore, image: Image
) -> None:
    data = _layout(image, "docker.io/test/a:1")
    report = store.load(
        io.BytesIO(data),
        progress=_AfterLayer(lambda: store.load(io.BytesIO(data), blobs=BlobPolicy.DEFER)),
    )
    blobs = [layer.blob for layer in store.inspect("test/a:1").layers]
    for blob in blobs:
        assert digest_of(b"".join(store.iter_blob(blob))) == blob
    assert report.images[0].exact, "and the later load says what is so"


def test_name_given_while_the_image_is_removed_keeps_the_image(
    store: LayerStore, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.load(io.BytesIO(docker_archive_of([image])))
    _once_inside(monkeypatch, "_only_behind", lambda: store.tag(image.tags[0], "test/new:1"))
    store.remove(image.tags[0])
    assert store.images()[0].names == ("docker.io/test/new:1",)
    assert store.inspect("test/new:1").summary.id == digest_of(image.config)


def test_index_loaded_while_its_image_is_removed_keeps_the_image(
    store: LayerStore, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.load(io.BytesIO(_layout(image, "docker.io/test/a:1")))
    files = oci_layout_of([(image, {})], "gzip")
    index = files["index.json"]
    files[f"blobs/sha256/{sha256(index)}"] = index
    outer = (
        b'{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json",'
        b'"digest":"sha256:%s","size":%d,'
        b'"annotations":{"org.opencontainers.image.ref.name":"docker.io/test/index:1"}}]}'
    ) % (sha256(index).encode(), len(index))
    data = tar_of(files | {"index.json": outer})
    _once_inside(monkeypatch, "_only_behind", lambda: store.load(io.BytesIO(data)))
    store.remove("test/a:1")
    assert store.inspect("test/index:1").summary.id == digest_of(image.config)
    assert_clean(store)


def test_name_of_an_image_that_goes_meanwhile_is_not_given(
    store: LayerStore, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.load(io.BytesIO(docker_archive_of([image])))
    _once_inside(monkeypatch, "find_target", lambda: store.remove(image.tags[0]))
    with pytest.raises(NotFound):
        store.tag(image.tags[0], "test/new:1")
    assert store.images() == []


def _once_inside(
    monkeypatch: pytest.MonkeyPatch, function: str, action: Callable[[], object]
) -> None:
    """Act once, between a look of `tag` or `remove` and what they do about it."""
    real = getattr(naming, function)

    def look(*arguments: object) -> object:
        seen = real(*arguments)
        monkeypatch.setattr(naming, function, real)
        action()
        return seen

    monkeypatch.setattr(naming, function, look)
