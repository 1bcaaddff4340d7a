"""Analyses of real archives, layouts and stores: the figures are those of the same images loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from layerstore.analysis import Analysis, AnalyzeOptions, analyze
from layerstore.analysis.layer import GzipEstimate
from layerstore.api import open_store
from layerstore.cli.output import as_json
from layerstore.digest import digest_of
from layerstore.errors import DigestMismatch, MalformedInput, NotFound
from tests.support.archive_builders import (
    Image,
    docker_archive_of,
    layer_tar,
    oci_layout_of,
    tar_of,
    write_folder,
)
from tests.support.cli_images import noise
from tests.support.stores import payload

if TYPE_CHECKING:
    from pathlib import Path

BASE = {"usr/lib/a.so": noise(1_300_000), "etc/x": b"x" * 3000, "copy": payload(1, 700_000)}
REBUILT = {**BASE, "etc/x": b"y" * 3000, "usr/lib/b.so": noise(90_000, 9)}


def images() -> list[Image]:
    """Three on two builds of a base; the third repeats a file of its base, and keeps a cache."""
    base, rebuilt = layer_tar(BASE), layer_tar(REBUILT)
    again = layer_tar({"srv/a": noise(2 << 20, 3), "var/cache/apt/p": noise(1 << 20, 4)})
    chowned = layer_tar({"srv/a": noise(2 << 20, 3)})
    return [
        Image.of([base, layer_tar({"app": noise(40_000, 5)})], "t/a:1"),
        Image.of([rebuilt, layer_tar({"app": noise(50_000, 6)})], "t/b:1"),
        Image.of([rebuilt, again, chowned], "t/c:1"),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A docker-archive, an OCI layout in a tar and one in a folder, and what is no archive."""
    first, second, third = images()
    path = tmp_path / "images"
    path.mkdir()
    (path / "a.tar").write_bytes(docker_archive_of([first]))
    note = {"io.containerd.image.name": "docker.io/t/b:1"}
    (path / "b.tar").write_bytes(tar_of(oci_layout_of([(second, note)])))
    note = {"io.containerd.image.name": "docker.io/t/c:1"}
    write_folder(path / "c", oci_layout_of([(third, note)], "zstd"))
    (path / "notes.txt").write_text("no archive")
    (path / "empty").mkdir()
    return path


def assert_consistent(found: Analysis) -> None:
    """What holds for every analysis."""
    savings = found.savings
    steps = [savings.unpacked, savings.layers, savings.files, savings.chunks]
    assert steps == sorted(steps, reverse=True)
    assert sum(image.share for image in found.images) == savings.compressed
    assert savings.store == savings.compressed + savings.overhead
    shared = sum(group.compressed for group in found.groups) + found.groups_left
    assert shared + sum(image.alone for image in found.images) == savings.compressed
    for position, image in enumerate(found.images):
        assert found.pairs[position][position] == image.compressed
        others = [size for i, size in enumerate(found.pairs[position]) if i != position]
        assert image.closest_shared == max(others, default=0)
    json.dumps(as_json(found))


def test_a_folder_of_archives_is_what_a_store_of_them_is(folder: Path, tmp_path: Path) -> None:
    found = analyze([folder])
    assert_consistent(found)
    assert [image.names[0][10:] for image in found.images] == ["t/a:1", "t/b:1", "t/c:1"]
    assert [skipped.path for skipped in found.skipped] == [str(folder / "notes.txt")]
    with open_store(tmp_path / "store") as store:
        for name in ("a.tar", "b.tar", "c"):
            store.load(folder / name)
        split = store.usage().split
        stored = analyze([], store=store.store)
        one = analyze([], store=store.store, names=["t/b:1"])
    savings = found.savings
    assert (savings.unpacked, savings.layers) == (split.unpacked, split.layers)
    assert (savings.files, savings.chunks) == (split.files, split.chunks)
    assert savings.compressed == split.contents
    assert_consistent(stored)
    by_id = {image.id: image for image in stored.images}
    for image in found.images:
        twin = by_id[image.id]
        assert (image.compressed, image.alone, image.files) == (
            twin.compressed, twin.alone, twin.files,
        )  # fmt: skip
    assert {f.path: f.wasted for f in found.duplicated_files} == {
        f.path: f.wasted for f in stored.duplicated_files
    }
    assert [image.names[0][10:] for image in one.images] == ["t/b:1"]


def test_what_stands_out_is_named(folder: Path) -> None:
    found = analyze([folder])
    base, rebuilt = digest_of(layer_tar(BASE)), digest_of(layer_tar(REBUILT))
    families = {family.is_base: family for family in found.families}
    assert set(families[True].layers) == {base, rebuilt}
    assert families[True].images == (0, 1, 2)
    [top] = [one for one in found.duplicated_files if one.path == "srv/a"]
    assert (top.layers, top.size, top.wasted) == (2, 2 << 20, 2 << 20)
    kinds = {one.kind: one for one in found.suggestions}
    assert kinds["package-cache"].saves == 1 << 20
    assert kinds["repeated-files"].images == (2,)
    assert kinds["repeated-files"].saves == 2 << 20
    assert "2 builds" in kinds["rebuilt-base"].text


def test_compressed_layers_have_their_size_and_plain_ones_an_estimate(folder: Path) -> None:
    found = analyze([folder])
    assert [image.gzip_is_estimate for image in found.images] == [True, False, False]
    index = json.loads((folder / "c" / "index.json").read_bytes())
    digest = index["manifests"][0]["digest"].replace(":", "/")
    manifest = json.loads((folder / "c" / "blobs" / digest).read_bytes())
    # Of the base that the second has as gzip too, either is right.
    assert found.images[2].gzip >= sum(layer["size"] for layer in manifest["layers"][1:])
    assert "registry" in found.savings.estimates
    exact = analyze([folder / "b.tar"])
    assert exact.savings.estimates == ("overhead", "store")
    assert exact.savings.gzip == exact.savings.registry == exact.images[0].gzip


def test_the_second_analysis_reads_no_layer(folder: Path, tmp_path: Path) -> None:
    options = AnalyzeOptions(cache=tmp_path / "cache")
    first = analyze([folder], options)
    layers = list((tmp_path / "cache").rglob("*.npz"))
    assert first.cached_layers == 0
    assert len(layers) == len(first.layers)
    second = analyze([folder], options)
    assert second.cached_layers == len(first.layers)
    assert (second.savings, second.pairs) == (first.savings, first.pairs)
    layers[0].write_bytes(layers[0].read_bytes()[:-1])  # damage is as good as nothing
    third = analyze([folder], options)
    assert third.cached_layers == len(first.layers) - 1
    assert third.savings == first.savings


def test_one_image_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(docker_archive_of(images()[:1]))
    found = analyze([path])
    assert_consistent(found)
    [image] = found.images
    assert (image.closest, image.closest_shared) == (None, 0)
    assert image.share == image.alone == image.compressed
    assert not found.families
    assert not found.groups


def test_an_image_that_comes_twice_counts_once(folder: Path) -> None:
    first = images()[0]
    (folder / "again.tar").write_bytes(docker_archive_of([Image.of(first.layers, "t/other:2")]))
    found = analyze([folder])
    assert len(found.images) == 3
    assert [name[10:] for name in found.images[0].names] == ["t/a:1", "t/other:2"]


def test_bad_input_is_an_error_by_itself_and_names_the_layer(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing")
    with pytest.raises(MalformedInput):
        analyze([tmp_path / "text"])
    with pytest.raises(NotFound):
        analyze([tmp_path / "missing"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotFound):
        analyze([tmp_path / "folder"])
    layer = layer_tar({"x": b"1"})
    wrong = Image(
        [layer + bytes(512)], Image.of([layer]).config, ["t/a:1"]
    )  # not what the config says
    (tmp_path / "wrong.tar").write_bytes(docker_archive_of([wrong]))
    with pytest.raises(DigestMismatch, match=r"layer\.tar"):
        analyze([tmp_path / "wrong.tar"])


@pytest.mark.parametrize("size", [0, 1, 300_000, 5_000_001])
def test_the_gzip_estimate_sees_an_eighth_whatever_the_reads(size: int) -> None:
    data = noise(size)
    results = set()
    for step in (1 << 14, 99_999, 1 << 22):
        at = 0

        class Source:
            def read(self, count: int, /) -> bytes:
                nonlocal at
                part = data[at : at + count]
                at += len(part)
                return part

        estimate = GzipEstimate(Source())
        while estimate.read(step):
            pass
        results.add(estimate.bytes())
    assert len(results) == 1
    assert abs(results.pop() - size / 1.04) <= 0.01 * size + 30
