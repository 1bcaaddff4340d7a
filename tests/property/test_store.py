"""A store of images against a dictionary of them: any order of load, tag, rmi, save, verify, reopen."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from layerstore.api import open_store
from layerstore.digest import digest_of
from layerstore.errors import NotFound
from layerstore.images.load import BlobPolicy
from layerstore.images.save import ArchiveKind
from tests.support.archive_builders import (
    Image,
    docker_archive_of,
    layer_tar,
    oci_layout_of,
    tar_of,
)
from tests.support.stores import payload

if TYPE_CHECKING:
    from layerstore.api import LayerStore

_contents = st.one_of(
    st.binary(max_size=200),
    st.builds(payload, st.integers(0, 3), st.integers(1, 40_000)),
    st.builds(bytes, st.integers(0, 20_000)),
)
_names = st.text("abc", min_size=1, max_size=3).map(lambda text: f"srv/{text}")
_layers = st.dictionaries(_names, _contents, max_size=4).map(layer_tar)
_tags = st.sampled_from([f"app{i}:v{j}" for i in range(3) for j in range(2)])


class StoreAndModel(RuleBasedStateMachine):
    """The model: full name -> (layers, config); image ID -> the same, while any name points to it."""

    layers = Bundle("layers")
    saved = Bundle("saved")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="layerstore-machine-"))
        self.store: LayerStore = open_store(self.root / "store")
        self.model: dict[str, Image] = {}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)

    @initialize(target=layers)
    def empty_layer(self) -> bytes:
        return layer_tar({})

    @rule(target=layers, layer=_layers)
    def make_layer(self, layer: bytes) -> bytes:
        return layer

    @rule(
        stack=st.lists(layers, min_size=1, max_size=3),
        tag=_tags,
        style=st.sampled_from(["old", "new", "combined"]),
    )
    def load_docker_archive(self, stack: list[bytes], tag: str, style: str) -> None:
        image = Image.of(stack, tag)
        report = self.store.load(io.BytesIO(docker_archive_of([image], style)))  # type: ignore[arg-type]  # a Literal
        assert report.images[0].id == digest_of(image.config)
        self._now_points(tag, image)

    @rule(
        stack=st.lists(layers, min_size=1, max_size=3),
        tag=_tags,
        codec=st.sampled_from(["none", "gzip", "zstd"]),
        blobs=st.sampled_from(list(BlobPolicy)),
    )
    def load_layout(self, stack: list[bytes], tag: str, codec: str, blobs: BlobPolicy) -> None:
        image = Image.of(stack)
        files = oci_layout_of(
            [(image, {"org.opencontainers.image.ref.name": f"docker.io/library/{tag}"})],
            codec,  # type: ignore[arg-type]  # a Literal
        )
        report = self.store.load(io.BytesIO(tar_of(files)), blobs=blobs)
        assert report.images[0].exact or (blobs is BlobPolicy.DROP and codec != "none")
        self._now_points(tag, image)

    @rule(source=_tags, tag=_tags)
    def tag(self, source: str, tag: str) -> None:
        if source in self.model:
            assert self.store.tag(source, tag) == f"docker.io/library/{tag}"
            self._now_points(tag, self.model[source])
        else:
            with pytest.raises(NotFound):
                self.store.tag(source, tag)

    @rule(tag=_tags)
    def remove(self, tag: str) -> None:
        if tag not in self.model:
            with pytest.raises(NotFound):
                self.store.remove(tag)
            return
        assert self.store.remove(tag).untagged == (f"docker.io/library/{tag}",)
        del self.model[tag]

    @rule(
        target=saved,
        tag=_tags,
        kind=st.sampled_from([ArchiveKind.DOCKER, ArchiveKind.OCI]),
        zstd=st.booleans(),
    )
    def save(self, tag: str, kind: ArchiveKind, zstd: bool) -> object:
        if tag not in self.model:
            return multiple()
        out = io.BytesIO()
        self.store.save(tag, out, kind=kind, zstd=zstd)
        return (tag, self.model[tag], out.getvalue())

    @rule(what=consumes(saved))
    def load_what_was_saved(self, what: tuple[str, Image, bytes]) -> None:
        tag, image, data = what
        report = self.store.load(io.BytesIO(data))
        assert [loaded.id for loaded in report.images] == [digest_of(image.config)]
        self._now_points(tag, image)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = open_store(self.root / "store")

    @rule()
    def verify(self) -> None:
        assert self.store.verify().damages == ()

    @invariant()
    def names_are_those_of_the_model(self) -> None:
        listed = {
            name.removeprefix("docker.io/library/"): summary.id
            for summary in self.store.images()
            for name in summary.names
        }
        assert listed == {tag: digest_of(image.config) for tag, image in self.model.items()}

    @invariant()
    def every_byte_of_every_image_comes_out(self) -> None:
        for tag, image in self.model.items():
            details = self.store.inspect(tag)
            assert [layer.diff_id for layer in details.layers] == [
                digest_of(layer) for layer in image.layers
            ]
        for layer in {layer for image in self.model.values() for layer in image.layers}:
            assert b"".join(self.store.iter_layer(digest_of(layer))) == layer

    def _now_points(self, tag: str, image: Image) -> None:
        self.model[tag] = image


TestStoreAndModel = StoreAndModel.TestCase
TestStoreAndModel.settings = settings(
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
