from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import tarfile
import threading
from typing import TYPE_CHECKING

import pytest
import zstandard

from layerstore.archives import DockerArchive, OciLayout, open_archive
from layerstore.digest import Digest, digest_of
from layerstore.errors import InvalidArgument, MalformedInput, NotFound, StoreFull, Unsupported
from layerstore.limits import Limits
from tests.support.archive_builders import (
    Image,
    docker_archive,
    docker_archive_of,
    layer_tar,
    oci_layout,
    oci_layout_of,
    sha256,
    tar_of,
    write_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.archive_builders import Style

BASE = layer_tar({"etc/os-release": b"ID=example\n", "bin/sh": b"#!" * 4000})
TOP = layer_tar({"app/main.py": b"print(1)\n"})
NAME = "docker.io/example/app:1"

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": bz2.compress,
}


def layers_of(archive: DockerArchive | OciLayout) -> list[bytes]:
    """The layers of the first image, uncompressed ones only."""
    if isinstance(archive, DockerArchive):
        readers = [archive.open_member(name)[0] for name in archive.images()[0].layers]
    else:
        root = archive.read_blob(archive.roots()[0].descriptor, 1 << 20)
        readers = [
            archive.open_blob(Digest(layer["digest"])) for layer in json.loads(root)["layers"]
        ]
    result = []
    for reader in readers:
        with reader:
            result.append(reader.read())
    return result


def names_of(archive: DockerArchive | OciLayout) -> list[tuple[str, ...]]:
    if isinstance(archive, DockerArchive):
        return [image.names for image in archive.images()]
    return [root.names for root in archive.roots()]


def write_all(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as pipe:
        pipe.write(data)


def saved(tmp_path: Path, data: bytes, name: str = "image.tar") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("prefix", ["", "./", "/"])
@pytest.mark.parametrize("style", ["old", "new", "combined"])
def test_every_style_of_docker_archive_gives_the_same_image(
    tmp_path: Path, style: Style, prefix: str
) -> None:
    data = docker_archive_of([Image.of([BASE, TOP, BASE], "example/app:1")], style, prefix)
    with open_archive(saved(tmp_path, data), tmp_path) as archive:
        assert isinstance(archive, OciLayout if style == "combined" else DockerArchive)
        assert layers_of(archive) == [BASE, TOP, BASE]
        assert names_of(archive) == [(NAME,)]
        assert archive.warnings == []


@pytest.mark.parametrize("codec", COMPRESS)
def test_compression_is_told_by_content_and_not_by_name(tmp_path: Path, codec: str) -> None:
    path = saved(tmp_path, COMPRESS[codec](docker_archive([BASE, TOP])), "image.tar.lying")
    with open_archive(path, tmp_path) as archive:
        assert layers_of(archive) == [BASE, TOP]


@pytest.mark.parametrize("codec", COMPRESS)
@pytest.mark.parametrize("kind", ["pipe", "file", "file at an offset", "memory"])
def test_a_stream_is_read_from_where_it_stands(tmp_path: Path, codec: str, kind: str) -> None:
    data = COMPRESS[codec](docker_archive([BASE, TOP]))
    thread = None
    if kind == "memory":
        stream: io.BytesIO | io.BufferedReader = io.BytesIO(data)
    elif kind == "pipe":
        read_end, write_end = os.pipe()
        stream = os.fdopen(read_end, "rb")
        thread = threading.Thread(target=write_all, args=(write_end, data))
        thread.start()
    else:
        stream = saved(tmp_path, (b"junk" if "offset" in kind else b"") + data).open("rb")
        stream.seek(4 if "offset" in kind else 0)
    with stream:
        spool_dir = tmp_path / "spool"
        spool_dir.mkdir()
        with open_archive(stream, spool_dir) as archive:
            assert list(spool_dir.iterdir()) == []
            assert layers_of(archive) == [BASE, TOP]
        assert not stream.closed
    if thread is not None:
        thread.join()


def test_an_uncompressed_file_is_not_copied(tmp_path: Path) -> None:
    with open_archive(saved(tmp_path, docker_archive([BASE])), tmp_path / "absent") as archive:
        assert layers_of(archive) == [BASE]


@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz"])
def test_a_layout_is_the_same_in_a_folder_and_in_a_tar(tmp_path: Path, form: str) -> None:
    files = oci_layout([BASE, TOP], codec="none")
    if form == "folder":
        path = write_folder(tmp_path / "My App", files)
    else:
        data = tar_of(files, "./")
        path = saved(tmp_path, gzip.compress(data) if form == "tar.gz" else data, f"My App.{form}")
    with open_archive(path, tmp_path) as archive:
        assert isinstance(archive, OciLayout)
        assert layers_of(archive) == [BASE, TOP]
        assert names_of(archive) == [("docker.io/library/my-app:latest",)]
        digest = digest_of(BASE)
        assert archive.has_blob(digest)
        assert archive.blob_size(digest) == len(BASE)
        absent = Digest("sha256:" + "0" * 64)
        assert not archive.has_blob(absent)
        for call in (archive.blob_size, archive.open_blob):
            with pytest.raises(NotFound):
                call(absent)


def test_several_images_in_one_archive(tmp_path: Path) -> None:
    images = [Image.of([BASE], "a:1", "b:2"), Image.of([BASE, TOP], "c/d:3"), Image.of([TOP])]
    for style in ("old", "new", "combined"):
        with open_archive(saved(tmp_path, docker_archive_of(images, style)), tmp_path) as archive:
            assert names_of(archive) == [
                ("docker.io/library/a:1", "docker.io/library/b:2"),
                ("docker.io/c/d:3",),
                (),
            ]


def test_names_of_layout_entries(tmp_path: Path) -> None:
    ref, full = "org.opencontainers.image.ref.name", "io.containerd.image.name"
    cases: list[tuple[dict[str, str], tuple[str, ...]]] = [
        ({full: "ghcr.io/x/y:1", ref: "1"}, ("ghcr.io/x/y:1",)),
        ({ref: "redis:7"}, ("docker.io/library/redis:7",)),
        ({ref: "v1.2"}, ("docker.io/library/node:v1.2",)),
        ({}, ()),
        ({ref: "Not A Name"}, ()),
    ]
    images = [
        (Image.of([layer_tar({"n": b"%d" % i})]), notes) for i, (notes, _) in enumerate(cases)
    ]
    path = saved(tmp_path, tar_of(oci_layout_of(images)), "node.tar.gz")
    with open_archive(path, tmp_path) as archive:
        assert names_of(archive) == [names for _, names in cases]
        assert len(archive.warnings) == 1
        assert "Not A Name" in archive.warnings[0]
    with path.open("rb") as stream, open_archive(io.BytesIO(stream.read()), tmp_path) as archive:
        assert names_of(archive)[2] == ()
        assert any("only a tag" in warning for warning in archive.warnings)


def test_repo_tags_of_a_combined_archive_join_the_root_with_their_config(tmp_path: Path) -> None:
    image = Image.of([BASE], "a:1")
    files = oci_layout_of([(image, {"io.containerd.image.name": "docker.io/library/a:0"})], "none")
    entries = [
        {
            "Config": f"blobs/sha256/{sha256(image.config)}",
            "RepoTags": ["a:1", "bad tag"],
            "Layers": [],
        },
        {"Config": "0" * 64 + ".json", "RepoTags": ["gone:1"], "Layers": []},
    ]
    data = tar_of(files | {"manifest.json": json.dumps(entries).encode()})
    with open_archive(saved(tmp_path, data), tmp_path) as archive:
        assert names_of(archive) == [("docker.io/library/a:0", "docker.io/library/a:1")]
        assert any("bad tag" in warning for warning in archive.warnings)
        assert any("gone:1" in warning for warning in archive.warnings)


def test_repo_tags_reach_an_image_below_an_index(tmp_path: Path) -> None:
    image = Image.of([BASE])
    files = oci_layout_of([(image, {})], "none")
    inner = files["index.json"]
    files[f"blobs/sha256/{sha256(inner)}"] = inner
    absent = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": "sha256:" + "0" * 64,
        "size": 5,
    }
    root = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": digest_of(inner),
        "size": len(inner),
    }
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [root, absent]}).encode()
    entries = [
        {"Config": f"blobs/sha256/{sha256(image.config)}", "RepoTags": ["a:1"], "Layers": []}
    ]
    files["manifest.json"] = json.dumps(entries).encode()
    with open_archive(saved(tmp_path, tar_of(files)), tmp_path) as archive:
        assert names_of(archive) == [("docker.io/library/a:1",), ()]


def test_tags_may_be_in_repositories_only(tmp_path: Path) -> None:
    files = {
        "c.json": b"{}",
        "top/layer.tar": TOP,
        "manifest.json": json.dumps(
            [{"Config": "c.json", "RepoTags": None, "Layers": ["top/layer.tar"]}]
        ).encode(),
        "repositories": b'{"example/app": {"1": "top", "2": "other"}}',
    }
    with open_archive(saved(tmp_path, tar_of(files)), tmp_path) as archive:
        assert names_of(archive) == [(NAME,)]


def test_readers_in_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    layers = [layer_tar({"f": bytes([i]) * 300_000}) for i in range(4)]
    results: dict[int, bytes] = {}
    with open_archive(saved(tmp_path, docker_archive(layers)), tmp_path) as archive:
        assert isinstance(archive, DockerArchive)
        readers = [archive.open_member(name)[0] for name in archive.images()[0].layers]

        def drain(i: int) -> None:
            parts = []
            while part := readers[i].read(1000):
                parts.append(part)
            results[i] = b"".join(parts)

        threads = [threading.Thread(target=drain, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [results[i] for i in range(4)] == layers


def test_a_reader_fails_after_close_and_never_reads_another_file(tmp_path: Path) -> None:
    with open_archive(saved(tmp_path, docker_archive([BASE])), tmp_path) as archive:
        assert isinstance(archive, DockerArchive)
        name = archive.images()[0].layers[0]
        closed, orphan = archive.open_member(name)[0], archive.open_member(name)[0]
        closed.close()
    with (tmp_path / "image.tar").open("rb"):
        for reader in (closed, orphan):
            with pytest.raises(ValueError, match="close"):
                reader.read(1)


# hostile and broken input


def test_a_plain_root_filesystem_is_told_to_use_import(tmp_path: Path) -> None:
    for files in ({"etc/passwd": b""}, {"index.json": b"{}", "etc/passwd": b""}):
        with pytest.raises(MalformedInput, match="layerstore import"):
            open_archive(saved(tmp_path, tar_of(files)), tmp_path)


def test_an_archive_of_docker_before_1_10_is_unsupported(tmp_path: Path) -> None:
    files = {"repositories": b"{}", "x/layer.tar": BASE, "x/json": b"{}"}
    with pytest.raises(Unsupported, match=r"before 1\.10"):
        open_archive(saved(tmp_path, tar_of(files)), tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"", b"no tar at all", bytes(range(256)) * 10, gzip.compress(gzip.compress(b"x"))],
    ids=["nothing", "text", "bytes", "gzip in gzip"],
)
def test_what_is_no_tar_is_malformed(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(MalformedInput, match=r"image\.tar"):
        open_archive(saved(tmp_path, data), tmp_path)


def test_a_truncated_archive_is_malformed_or_lacks_nothing_that_is_used(tmp_path: Path) -> None:
    data = docker_archive([TOP])
    whole = []
    for cut in range(0, len(data), 251):
        try:
            with open_archive(saved(tmp_path, data[:cut]), tmp_path) as archive:
                assert layers_of(archive) == [TOP]
                assert names_of(archive) == [(NAME,)]
                whole.append(cut)
        except MalformedInput:
            continue
    # What may be missing stands behind manifest.json.
    assert min(whole) > data.index(b'[{"Config"')


def test_a_truncated_compressed_archive_is_malformed(tmp_path: Path) -> None:
    data = gzip.compress(docker_archive([TOP]))
    with pytest.raises(MalformedInput, match="truncated gzip"):
        open_archive(saved(tmp_path, data[:-1]), tmp_path)


def test_missing_paths_and_unreadable_kinds(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_archive(tmp_path / "absent", tmp_path)
    with pytest.raises(InvalidArgument):
        open_archive(saved(tmp_path, b"x") / "below", tmp_path)
    with pytest.raises(MalformedInput, match="not an OCI layout"):
        open_archive(write_folder(tmp_path / "folder", {"manifest.json": b"[]"}), tmp_path)


@pytest.mark.parametrize(
    "manifest",
    [
        b"{}",
        b"[1]",
        b'[{"Layers": []}]',
        b'[{"Config": 1}]',
        b'[{"Config": "c.json", "Layers": "x"}]',
        b'[{"Config": "gone.json", "Layers": []}]',
        b'[{"Config": "c.json", "Layers": ["gone.tar"]}]',
        b'[{"Config": "../c.json", "Layers": []}]',
        b'[{"Config": "c.json", "RepoTags": {"a": 1}, "Layers": []}]',
    ],
)
def test_a_bad_manifest_json_is_malformed(tmp_path: Path, manifest: bytes) -> None:
    with pytest.raises(MalformedInput, match=r"image\.tar"):
        open_archive(
            saved(tmp_path, tar_of({"c.json": b"{}", "manifest.json": manifest})), tmp_path
        )


def test_documents_above_the_limit_are_malformed(tmp_path: Path) -> None:
    limits = Limits(document_bytes=1000)
    entry = '{"Config": "c%d.json", "Layers": []}'
    for files in (
        {"manifest.json": b" " * 1001},
        {"c0.json": b" " * 1001, "manifest.json": f"[{entry % 0}]".encode()},
        {f"c{i}.json": b" " * 1000 for i in range(17)}
        | {"manifest.json": f"[{','.join(entry % i for i in range(17))}]".encode()},
    ):
        with pytest.raises(MalformedInput, match=r"allowed|too large"):
            open_archive(saved(tmp_path, tar_of(files)), tmp_path, limits)


def test_many_images_with_one_config_hold_it_once(tmp_path: Path) -> None:
    entries = b",".join([b'{"Config": "c.json", "Layers": []}'] * 1000)
    files = {"c.json": b" " * 100_000, "manifest.json": b"[" + entries + b"]"}
    with open_archive(saved(tmp_path, tar_of(files)), tmp_path) as archive:
        assert isinstance(archive, DockerArchive)
        assert len({id(image.config) for image in archive.images()}) == 1


def test_a_bomb_stops_at_the_spool_limit_and_leaves_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path, gzip.compress(bytes(10 << 20)))
    spool_dir = tmp_path / "spool"
    spool_dir.mkdir()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(MalformedInput, match=r"spool_bytes of .* 1,048,576 are allowed"):
        open_archive(path, spool_dir, Limits(spool_bytes=1 << 20))
    assert list(spool_dir.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_full_disk_while_spooling_is_store_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(io.FileIO):
        def write(self, data: object, /) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    path = saved(tmp_path, gzip.compress(docker_archive([TOP])))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: FullDisk(tmp_path / "t", "w+b"))
    with pytest.raises(StoreFull, match="No space left"):
        open_archive(path, tmp_path)


def test_a_layout_of_another_version_is_malformed(tmp_path: Path) -> None:
    files = oci_layout([TOP]) | {"oci-layout": b'{"imageLayoutVersion": "2.0.0"}'}
    with pytest.raises(MalformedInput, match=r"2\.0\.0"):
        open_archive(write_folder(tmp_path / "x", files), tmp_path)


def test_a_damaged_blob_is_refused_by_read_blob(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", oci_layout([TOP]))
    with open_archive(folder, tmp_path) as archive:
        assert isinstance(archive, OciLayout)
        descriptor = archive.roots()[0].descriptor
        path = folder / "blobs/sha256" / descriptor.digest[7:]
        good = path.read_bytes()
        assert archive.read_blob(descriptor, 1 << 20) == good
        with pytest.raises(MalformedInput, match="allowed"):
            archive.read_blob(descriptor, len(good) - 1)
        for bad in (good[:-1], good + b" ", b"x" + good[1:]):
            path.write_bytes(bad)
            with pytest.raises(MalformedInput, match="expected"):
                archive.read_blob(descriptor, 1 << 20)


@pytest.mark.parametrize("kind", ["blob", "folder", "fifo", "index"])
def test_links_and_special_files_in_a_layout_folder_are_refused(tmp_path: Path, kind: str) -> None:
    folder = write_folder(tmp_path / "x", oci_layout([TOP], codec="none"))
    path = folder / "blobs/sha256" / sha256(TOP)
    outside = tmp_path / "outside"
    if kind == "folder":
        (folder / "blobs").rename(outside)
        (folder / "blobs").symlink_to(outside)
    elif kind == "index":
        (folder / "index.json").rename(outside)
        (folder / "index.json").symlink_to(outside)
    else:
        path.rename(outside)
        os.mkfifo(path) if kind == "fifo" else path.symlink_to(outside)
    with pytest.raises(MalformedInput, match="links are not followed"):
        open_and_read(folder, tmp_path)


def open_and_read(folder: Path, tmp_path: Path) -> None:
    with open_archive(folder, tmp_path) as archive:
        layers_of(archive)


def test_opening_and_closing_leaks_no_descriptor(tmp_path: Path) -> None:
    paths = [
        saved(tmp_path, docker_archive([TOP]), "a"),
        saved(tmp_path, gzip.compress(docker_archive([TOP])), "b"),
        write_folder(tmp_path / "c", oci_layout([TOP])),
        saved(tmp_path, tar_of({"x": b""}), "d"),
        write_folder(tmp_path / "e", {"index.json": b"{"}),
    ]
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for path in paths:
        try:
            with open_archive(path, tmp_path) as archive:
                if isinstance(archive, OciLayout):
                    archive.open_blob(archive.roots()[0].descriptor.digest).close()
        except MalformedInput:
            pass
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_an_archive_that_shrinks_is_malformed(tmp_path: Path) -> None:
    path = saved(tmp_path, docker_archive([BASE]))
    with open_archive(path, tmp_path) as archive:
        assert isinstance(archive, DockerArchive)
        reader, size = archive.open_member(archive.images()[0].layers[0])
        assert size == len(BASE)
        os.truncate(path, 512)
        with pytest.raises(MalformedInput, match="ends early"):
            reader.read()


def test_gzip_file_objects_give_their_plain_bytes(tmp_path: Path) -> None:
    # Their fileno() is the compressed file's: reading that instead would be wrong, here even silently.
    path = saved(tmp_path, gzip.compress(docker_archive([BASE])))
    with gzip.open(path) as stream, open_archive(stream, tmp_path) as archive:  # type: ignore[arg-type]
        assert layers_of(archive) == [BASE]
    with tarfile.open(fileobj=io.BytesIO(tar_of({"a": docker_archive([TOP])}))) as tar:
        inner = tar.extractfile("a")
        assert inner is not None
        with open_archive(inner, tmp_path) as archive:  # type: ignore[arg-type]
            assert layers_of(archive) == [TOP]
