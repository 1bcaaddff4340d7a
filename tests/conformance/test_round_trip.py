"""What `save` writes loads to the same image, in every kind and however it came in."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import tarfile
from typing import TYPE_CHECKING

import pytest
import zstandard

from layerstore.api import open_store
from layerstore.digest import digest_of
from layerstore.errors import InvalidArgument, NotFound
from layerstore.images.load import BlobPolicy, LayerStatus
from layerstore.images.rootfs import ImportOptions
from layerstore.images.save import ArchiveKind
from tests.support.archive_builders import (
    Image,
    docker_archive_of,
    image_config,
    layer_tar,
    oci_layout_of,
    sha256,
    tar_of,
    write_folder,
)
from tests.support.stores import assert_holds, payload, sample_images

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layerstore.api import LayerStore

_OCI = "application/vnd.oci.image."
_REF = "org.opencontainers.image.ref.name"
_SOURCES = ["docker-old", "docker-new", "docker-combined", "oci-none", "oci-gzip", "oci-zstd"]
_NAMES = {"docker.io/test/one:1", "docker.io/test/two:latest"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as store:
        yield store


@pytest.fixture
def other(tmp_path: Path) -> Iterator[LayerStore]:
    with open_store(tmp_path / "other") as store:
        yield store


def _two_images() -> list[Image]:
    base = layer_tar({"bin/sh": payload(1, 90_000), "empty": b""})
    one = layer_tar({"app/one": payload(2, 30_000)})
    two = layer_tar({"app/two": payload(3, 30_000), ".wh.empty": b""})
    return [Image.of([base, one], "test/one:1"), Image.of([base, two], "test/two:latest")]


def _archive(images: list[Image], source: str) -> bytes:
    kind, _, flavour = source.partition("-")
    if kind == "docker":
        return docker_archive_of(images, flavour)  # type: ignore[arg-type]  # a Literal
    entries = [(image, {_REF: f"docker.io/{tag}"}) for image in images for tag in image.tags]
    return tar_of(oci_layout_of(entries, flavour))  # type: ignore[arg-type]  # a Literal


def _save(store: LayerStore, names: list[str], kind: ArchiveKind, zstd: bool, path: Path) -> Path:
    store.save(names, path, kind=kind, zstd=zstd)
    return path


def _manifests(archive: Path) -> set[str]:
    """Digests in the index.json of a saved archive or folder."""
    if archive.is_dir():
        data = (archive / "index.json").read_bytes()
    else:
        with tarfile.open(archive) as tar:
            member = tar.extractfile("index.json")
            assert member is not None
            data = member.read()
    return {entry["digest"] for entry in json.loads(data)["manifests"]}


@pytest.mark.parametrize("zstd", [False, True], ids=["plain", "zstd"])
@pytest.mark.parametrize("kind", list(ArchiveKind))
@pytest.mark.parametrize("source", _SOURCES)
def test_saved_images_load_as_the_same_images(
    store: LayerStore,
    other: LayerStore,
    tmp_path: Path,
    source: str,
    kind: ArchiveKind,
    zstd: bool,
) -> None:
    images = _two_images()
    store.load(io.BytesIO(_archive(images, source)))
    names = [tag for image in images for tag in image.tags]
    saved = _save(store, names, kind, zstd, tmp_path / "saved")
    report = other.load(saved)
    assert {image.id for image in report.images} == {digest_of(image.config) for image in images}
    assert {name for image in other.images() for name in image.names} == _NAMES
    for image in images:
        assert_holds(other, image)
    assert other.verify().damages == ()


@pytest.mark.parametrize("kind", list(ArchiveKind))
@pytest.mark.parametrize("source", ["oci-none", "oci-gzip", "oci-zstd"])
@pytest.mark.parametrize("blobs", [BlobPolicy.EXACT, BlobPolicy.DEFER])
def test_images_go_out_under_the_manifest_digest_they_came_with(
    store: LayerStore,
    other: LayerStore,
    tmp_path: Path,
    source: str,
    kind: ArchiveKind,
    blobs: BlobPolicy,
) -> None:
    images = _two_images()
    data = _archive(images, source)
    (tmp_path / "original.tar").write_bytes(data)
    loaded = store.load(io.BytesIO(data), blobs=blobs)
    assert all(image.exact for image in loaded.images)
    names = [tag for image in images for tag in image.tags]
    report = store.save(names, tmp_path / "saved", kind=kind)
    assert all(image.exact for image in report.images)
    assert _manifests(tmp_path / "saved") == _manifests(tmp_path / "original.tar")
    again = other.load(tmp_path / "saved", blobs=blobs)
    assert {image.digest for image in again.images} == {image.digest for image in loaded.images}
    assert all(image.exact for image in again.images)


def test_every_saved_blob_has_the_bytes_of_its_name(store: LayerStore, tmp_path: Path) -> None:
    images = _two_images()
    store.load(io.BytesIO(_archive(images, "oci-gzip")))
    for zstd in (False, True):
        folder = tmp_path / f"saved-{zstd}"
        store.save(["test/one:1", "test/two"], folder, kind=ArchiveKind.FOLDER, zstd=zstd)
        blobs = list((folder / "blobs" / "sha256").iterdir())
        assert len(blobs) >= 7
        for blob in blobs:
            assert sha256(blob.read_bytes()) == blob.name


def test_saving_twice_gives_the_same_bytes(store: LayerStore) -> None:
    store.load(io.BytesIO(_archive(_two_images(), "docker-new")))
    saved = []
    for _ in range(2):
        out = io.BytesIO()
        store.save(["test/one:1", "test/two"], out)
        saved.append(out.getvalue())
    assert saved[0] == saved[1]


@pytest.mark.parametrize("first", _SOURCES)
def test_second_load_writes_no_chunk(store: LayerStore, first: str) -> None:
    data = _archive(_two_images(), first)
    store.load(io.BytesIO(data))
    again = store.load(io.BytesIO(data))
    assert (again.new_chunks, again.new_bytes) == (0, 0)
    assert {layer.status for image in again.images for layer in image.layers} == {LayerStatus.KNOWN}


@pytest.mark.parametrize("second", _SOURCES)
@pytest.mark.parametrize("first", ["docker-old", "oci-gzip"])
def test_load_in_another_wrapping_writes_documents_only(
    store: LayerStore, first: str, second: str
) -> None:
    images = _two_images()
    store.load(io.BytesIO(_archive(images, first)))
    report = store.load(io.BytesIO(_archive(images, second)), blobs=BlobPolicy.DROP)
    assert all(layer.new_chunks == 0 for image in report.images for layer in image.layers)
    assert report.new_chunks <= len(images), "at most a new manifest each"
    for image in images:
        assert_holds(store, image)


@pytest.mark.parametrize("blobs", [BlobPolicy.EXACT, BlobPolicy.DEFER])
def test_blob_kept_once_stays_so_after_a_load_that_drops(
    store: LayerStore, blobs: BlobPolicy
) -> None:
    images = _two_images()
    data = _archive(images, "oci-gzip")
    dropped = store.load(io.BytesIO(data), blobs=BlobPolicy.DROP)
    assert not any(image.exact for image in dropped.images)
    for policy in (blobs, BlobPolicy.DROP):
        again = store.load(io.BytesIO(data), blobs=policy)
        assert all(image.exact for image in again.images)


class _Pipe:
    """A stream that can only be read once, a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._rest = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._rest.read(min(size, 10_007) if size >= 0 else size)


@pytest.mark.parametrize("packing", ["plain", "gzip", "gzip members", "zstd", "zstd frames"])
@pytest.mark.parametrize("source", ["docker-old", "docker-combined", "oci-zstd"])
def test_archives_load_from_a_pipe_however_compressed(
    store: LayerStore, tmp_path: Path, source: str, packing: str
) -> None:
    images = _two_images()
    data = _archive(images, source)
    half = len(data) // 2
    packed = {
        "plain": data,
        "gzip": gzip.compress(data, 1),
        "gzip members": gzip.compress(data[:half], 1) + gzip.compress(data[half:], 9),
        "zstd": zstandard.compress(data),
        "zstd frames": zstandard.compress(data[:half]) + zstandard.compress(data[half:]),
    }[packing]
    store.load(_Pipe(packed))  # type: ignore[arg-type]  # all that a source has to do
    for image in images:
        assert_holds(store, image)
    (tmp_path / "file").write_bytes(packed)
    assert store.load(tmp_path / "file").new_chunks == 0
    assert list(store.store.layout.tmp.iterdir()) == [], "the copy is gone"


def _index_layout(
    platforms: dict[str, Image | None], *, attested: bool
) -> tuple[dict[str, bytes], str]:
    """A layout whose only root is an index: platform -> image, or None where it was never fetched."""
    blobs: dict[str, bytes] = {}
    entries = []
    for name, image in platforms.items():
        platform = dict(zip(("os", "architecture", "variant"), name.split("/"), strict=False))
        if image is None:
            digest, size = "sha256:" + sha256(name.encode()), 1234
        else:
            files = oci_layout_of([(image, {})], "gzip")
            root = json.loads(files.pop("index.json"))["manifests"][0]
            files.pop("oci-layout")
            blobs |= files
            digest, size = root["digest"], root["size"]
        entry = {"mediaType": _OCI + "manifest.v1+json", "digest": digest, "size": size}
        entries.append(entry | {"platform": platform})
        if attested and image is not None:
            statement = _put(blobs, json.dumps({"subject": digest}).encode())
            config = _put(blobs, image_config([b"x"]))
            manifest = {
                "schemaVersion": 2,
                "mediaType": _OCI + "manifest.v1+json",
                "config": config | {"mediaType": _OCI + "config.v1+json"},
                "layers": [statement | {"mediaType": "application/vnd.in-toto+json"}],
            }
            entries.append(
                _put(blobs, json.dumps(manifest).encode())
                | {
                    "mediaType": _OCI + "manifest.v1+json",
                    "platform": {"os": "unknown", "architecture": "unknown"},
                    "annotations": {
                        "vnd.docker.reference.digest": digest,
                        "vnd.docker.reference.type": "attestation-manifest",
                    },
                }
            )
    index = {"schemaVersion": 2, "mediaType": _OCI + "index.v1+json", "manifests": entries}
    root = _put(blobs, json.dumps(index).encode()) | {"mediaType": index["mediaType"]}
    outer = {"schemaVersion": 2, "manifests": [root | {"annotations": {_REF: "docker.io/m/a:1"}}]}
    files = blobs | {
        "index.json": json.dumps(outer).encode(),
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
    }
    return files, str(root["digest"])


def _put(blobs: dict[str, bytes], data: bytes) -> dict[str, object]:
    blobs[f"blobs/sha256/{sha256(data)}"] = data
    return {"digest": f"sha256:{sha256(data)}", "size": len(data)}


def _platform_image(seed: int, architecture: str) -> Image:
    layers = [layer_tar({"bin/app": payload(seed, 20_000)})]
    return Image(layers, image_config(layers, architecture=architecture))


@pytest.mark.parametrize("attested", [False, True])
def test_index_with_absent_platforms_goes_out_as_it_came(
    store: LayerStore, other: LayerStore, tmp_path: Path, attested: bool
) -> None:
    amd, arm = _platform_image(1, "amd64"), _platform_image(2, "arm64")
    files, digest = _index_layout(
        {"linux/amd64": amd, "linux/s390x": None, "linux/arm64/v8": arm}, attested=attested
    )
    store.load(write_folder(tmp_path / "in", files), blobs=BlobPolicy.DEFER)
    assert {image.platform.split("/")[1] for image in store.images()} == {"amd64", "arm64"}
    for platform, image in (("linux/amd64", amd), ("linux/arm64", arm)):
        assert store.inspect("m/a:1", platform=platform).summary.id == digest_of(image.config)
    with pytest.raises(NotFound):
        store.inspect("m/a:1", platform="linux/s390x")
    report = store.save("m/a:1", tmp_path / "out", kind=ArchiveKind.FOLDER)
    assert report.images[0].exact
    assert _manifests(tmp_path / "out") == {digest}
    other.load(tmp_path / "out", blobs=BlobPolicy.DEFER)
    assert {image.digest for image in other.images()} == {image.digest for image in store.images()}
    if attested:
        statements = [name for name, data in files.items() if data.startswith(b'{"subject"')]
        for name in statements:
            assert (tmp_path / "out" / name).read_bytes() == files[name]


def test_index_without_kept_blobs_goes_out_with_new_manifests(
    store: LayerStore, other: LayerStore, tmp_path: Path
) -> None:
    amd, arm = _platform_image(1, "amd64"), _platform_image(2, "arm64")
    files, _ = _index_layout(
        {"linux/amd64": amd, "linux/s390x": None, "linux/arm64/v8": arm}, attested=True
    )
    store.load(write_folder(tmp_path / "in", files), blobs=BlobPolicy.DROP)
    for zstd in (False, True):
        folder = tmp_path / f"out-{zstd}"
        report = store.save("m/a:1", folder, kind=ArchiveKind.FOLDER, zstd=zstd)
        assert not report.images[0].exact
        other.load(folder)
        for platform, image in (("linux/amd64", amd), ("linux/arm64", arm)):
            details = other.inspect("m/a:1", platform=platform)
            assert details.summary.id == digest_of(image.config)


def test_one_platform_of_an_index_loads_and_saves_alone(
    store: LayerStore, other: LayerStore, tmp_path: Path
) -> None:
    amd, arm = _platform_image(1, "amd64"), _platform_image(2, "arm64")
    files, _ = _index_layout({"linux/amd64": amd, "linux/arm64": arm}, attested=False)
    folder = write_folder(tmp_path / "in", files)
    other.load(folder, platform="linux/arm64")
    assert [image.id for image in other.images()] == [digest_of(arm.config)]
    store.load(folder)
    for kind in (ArchiveKind.DOCKER, ArchiveKind.OCI):
        out = tmp_path / f"out-{kind}"
        store.save("m/a:1", out, kind=kind, platform="linux/arm64")
        with open_store(tmp_path / f"alone-{kind}") as alone:
            alone.load(out)
            assert [image.id for image in alone.images()] == [digest_of(arm.config)]


def test_folder_saved_into_twice_holds_both_images(
    store: LayerStore, other: LayerStore, tmp_path: Path
) -> None:
    images = _two_images()
    store.load(io.BytesIO(_archive(images, "docker-old")))
    for image in images:
        store.save(image.tags[0], tmp_path / "layout", kind=ArchiveKind.FOLDER)
    other.load(tmp_path / "layout")
    for image in images:
        assert_holds(other, image)


def test_image_without_a_name_is_saved_by_its_id(
    store: LayerStore, other: LayerStore, tmp_path: Path
) -> None:
    image = Image.of([layer_tar({"a": b"b"})])
    store.load(io.BytesIO(docker_archive_of([image])))
    image_id = digest_of(image.config)
    for name in (image_id, image_id[7:19]):
        store.save(name, tmp_path / "out.tar")
        assert [loaded.id for loaded in other.load(tmp_path / "out.tar").images] == [image_id]
    assert other.images()[0].names == ()


def test_failed_save_leaves_what_was_there(store: LayerStore, tmp_path: Path) -> None:
    store.load(io.BytesIO(docker_archive_of(sample_images(1, count=1, layer_size=1000))))
    target = tmp_path / "out.tar"
    target.write_text("precious")
    for names in ([], ["absent:1"], ["test/1:0", "absent:1"]):
        with pytest.raises((InvalidArgument, NotFound)):
            store.save(names, target)
    assert target.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out.tar"]


def _root_filesystem(folder: Path) -> Path:
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
    (folder / "bin").symlink_to("usr/bin")
    (folder / "usr" / "bin").mkdir(parents=True)
    program = folder / "usr" / "bin" / "tool"
    program.write_bytes(payload(5, 50_000))
    program.chmod(0o4755)
    os.link(program, folder / "usr" / "bin" / "tool2")
    os.mkfifo(folder / "pipe")
    os.utime(program, ns=(0, 1_700_000_000_123_456_789))
    (folder / "é\udc80").write_text("a name that is not UTF-8")
    return folder


def test_imported_folder_comes_out_as_a_tar_of_it(store: LayerStore, tmp_path: Path) -> None:
    folder = _root_filesystem(tmp_path / "root")
    options = ImportOptions(
        changes=('CMD ["/usr/bin/tool"]', "ENV A=b"), created="2024-01-01T00:00:00Z"
    )
    report = store.import_rootfs(folder, "imported:1", options)
    assert store.import_rootfs(folder, "imported:1", options).id == report.id, "deterministic"
    details = store.inspect("imported:1")
    assert details.runtime["Cmd"] == ["/usr/bin/tool"]
    data = b"".join(store.iter_layer(report.layer.diff_id))
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        members = {member.name.removeprefix("./"): member for member in tar}
        found = {
            str(path.relative_to(folder)).encode("utf-8", "surrogateescape")
            for path in folder.rglob("*")
        }
        assert {name.encode("utf-8", "surrogateescape") for name in members} - {b"."} == found
        tool = members["usr/bin/tool"]
        assert stat.S_IMODE(tool.mode) == 0o4755
        assert tool.mtime == 1_700_000_000.123456789
        assert members["usr/bin/tool2"].islnk()
        assert members["bin"].linkname == "usr/bin"
        assert members["pipe"].isfifo()
        content = tar.extractfile("./usr/bin/tool")
        assert content is not None
        assert content.read() == payload(5, 50_000)


@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd"])
def test_imported_tar_comes_out_byte_for_byte(
    store: LayerStore, other: LayerStore, tmp_path: Path, packing: str
) -> None:
    layer = layer_tar({"etc/os-release": b"ID=test\n", "big": payload(6, 200_000)})
    packed = {"plain": layer, "gzip": gzip.compress(layer), "zstd": zstandard.compress(layer)}
    (tmp_path / "root.tar").write_bytes(packed[packing])
    report = store.import_rootfs(tmp_path / "root.tar", "imported:1")
    stream = other.import_rootfs(_Pipe(packed[packing]), "imported:1")  # type: ignore[arg-type]
    assert report.layer.diff_id == stream.layer.diff_id == digest_of(layer)
    assert b"".join(store.iter_layer(report.layer.diff_id)) == layer
    store.save("imported:1", tmp_path / "saved.tar")
    assert [image.id for image in other.load(tmp_path / "saved.tar").images] == [report.id]


def test_folder_that_cannot_be_read_is_no_image(store: LayerStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        store.import_rootfs(tmp_path / "absent", "imported:1")
    assert store.images() == []
