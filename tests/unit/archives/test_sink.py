from __future__ import annotations

import errno
import io
import os
import tarfile
from typing import TYPE_CHECKING, BinaryIO

import pytest

from layerstore.archives import FolderSink, TarSink, open_archive
from layerstore.errors import AlreadyExists, InvalidArgument, StoreFull
from tests.support.archive_builders import layer_tar, oci_layout, sha256, write_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layerstore.archives import ImageSink

LAYER = layer_tar({"etc/hosts": b"127.0.0.1 localhost\n"})
FILES = oci_layout([LAYER])


def put_all(sink: ImageSink, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        sink.put(name, len(data), [data[:7], b"", data[7:]])


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class OnlyWrite:
    """A stream as a pipe is: it takes little at a time, and cannot seek or tell."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: memoryview) -> int:
        self.data += bytes(data[:1000])
        return min(len(data), 1000)

    def flush(self) -> None:
        pass


@pytest.fixture(params=["tar", "folder"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "out" / f"image.{request.param}"


def open_sink(target: Path) -> TarSink | FolderSink:
    target.parent.mkdir(exist_ok=True)
    return TarSink(target) if target.suffix == ".tar" else FolderSink(target)


def test_what_was_put_is_there_after_commit_and_nothing_else(target: Path, tmp_path: Path) -> None:
    with open_sink(target) as sink:
        put_all(sink, FILES)
        assert not target.exists()
        sink.commit()
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    with open_archive(target, tmp_path) as archive:
        assert len(archive.roots()) == 1  # type: ignore[union-attr]  # it is a layout
    if target.is_dir():
        assert content(target) == FILES
    else:
        with tarfile.open(target) as tar:
            assert {m.name: tar.extractfile(m).read() for m in tar if m.isfile()} == FILES  # type: ignore[union-attr]


def test_leaving_without_commit_leaves_nothing(target: Path) -> None:
    with open_sink(target) as sink:
        put_all(sink, FILES)
    assert list(target.parent.iterdir()) == []

    def fail() -> Iterator[bytes]:
        yield b"x"
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError), open_sink(target) as sink:
        sink.put("a", 2, fail())
    assert list(target.parent.iterdir()) == []


def test_a_second_put_of_a_name_is_ignored_unread(target: Path) -> None:
    with open_sink(target) as sink:
        sink.put("a", 1, [b"1"])
        sink.put("a", 5, map(pytest.fail, ["read"]))
        put_all(sink, FILES)
        sink.commit()
    if target.is_dir():
        assert (target / "a").read_bytes() == b"1"
    else:
        with tarfile.open(target) as tar:
            assert [m.size for m in tar if m.name == "a"] == [1]


@pytest.mark.parametrize("blocks", [[], [b"ab"], [b"abcd"], [b"abc", b"d"]])
def test_too_few_or_too_many_bytes_are_refused(target: Path, blocks: list[bytes]) -> None:
    with pytest.raises(InvalidArgument, match="than 3 bytes"), open_sink(target) as sink:
        sink.put("a", 3, blocks)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "/a", "../a", "a/../b", "a//b", "a/", "./a", "a/..", ".", "a\nb", "a b", "a\0"]
)
def test_names_that_are_no_plain_paths_are_refused(target: Path, name: str) -> None:
    with (
        pytest.raises(InvalidArgument, match="not a plain relative path"),
        open_sink(target) as sink,
    ):
        sink.put(name, 0, [])
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_store_full_and_leaves_nothing(target: Path, code: int) -> None:
    def full() -> Iterator[bytes]:
        yield b"x"
        raise OSError(code, os.strerror(code))

    with pytest.raises(StoreFull), open_sink(target) as sink:
        sink.put("a", 2, full())
    assert list(target.parent.iterdir()) == []


def test_a_tar_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    stream, pipe = io.BytesIO(), OnlyWrite()
    outputs: list[Path | BinaryIO] = [tmp_path / "a.tar", stream, pipe]  # type: ignore[list-item]  # less is enough
    for output in outputs:
        with TarSink(output) as sink:
            put_all(sink, FILES)
            sink.commit()
    assert (tmp_path / "a.tar").read_bytes() == stream.getvalue() == pipe.data
    assert not stream.closed
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert [(m.name, m.mode) for m in members if m.isdir()] == [
        ("blobs", 0o755),
        ("blobs/sha256", 0o755),
    ]
    assert {m.mode for m in members if m.isfile()} == {0o644}
    assert len(stream.getvalue()) % 512 == 0


def test_a_member_above_8_gib_has_its_size_in_a_pax_header() -> None:
    class Discard(OnlyWrite):
        def write(self, data: memoryview) -> int:
            self.data = (self.data + bytes(data[:2048]))[:2048]
            return len(data)

    block = bytes(1 << 30)
    stream = Discard()
    with TarSink(stream) as sink:  # type: ignore[arg-type]  # less is enough
        sink.put("big", 9 << 30, (block for _ in range(9)))
        sink.commit()
    info = tarfile.TarInfo.frombuf(stream.data[:512], "utf-8", "strict")
    assert info.type == tarfile.XHDTYPE
    assert b"size=9663676416\n" in stream.data[512:1024]


def test_an_existing_tar_is_replaced_only_by_commit(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"old")
    link = tmp_path / "link.tar"
    link.symlink_to(path)
    with TarSink(link) as sink:
        put_all(sink, FILES)
    assert path.read_bytes() == b"old"
    with TarSink(link) as sink:
        put_all(sink, FILES)
        sink.commit()
    assert link.is_symlink()
    assert tarfile.is_tarfile(path)


def test_a_device_or_folder_is_never_replaced_by_a_tar(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, tmp_path / "absent" / "a.tar"):
        with pytest.raises(InvalidArgument):
            TarSink(path)


def test_files_have_the_mode_that_the_umask_gives(target: Path) -> None:
    old = os.umask(0o027)
    try:
        with open_sink(target) as sink:
            put_all(sink, FILES)
            sink.commit()
    finally:
        os.umask(old)
    assert target.stat().st_mode & 0o777 == (0o750 if target.is_dir() else 0o640)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(AlreadyExists):
            FolderSink(path)
    assert content(tmp_path) == {"file": b"mine"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.mkdir()
    with FolderSink(target) as sink:
        assert sink.index is None
        put_all(sink, FILES)
        sink.commit()
    assert content(target) == FILES


def test_an_existing_layout_is_extended_and_its_blobs_stay(tmp_path: Path) -> None:
    target = write_folder(tmp_path / "x", FILES)
    blob = target / "blobs/sha256" / sha256(b"new")
    kept = target / next(name for name in FILES if name.startswith("blobs"))
    before = kept.stat().st_ino
    with FolderSink(target) as sink:
        assert sink.index == FILES["index.json"]
        put_all(sink, FILES | {f"blobs/sha256/{sha256(b'new')}": b"new", "index.json": b"{}"})
        assert content(target) == FILES
        sink.commit()
    assert content(target) == FILES | {str(blob.relative_to(target)): b"new", "index.json": b"{}"}
    assert kept.stat().st_ino == before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_rotten_blob_of_an_existing_layout_is_replaced(tmp_path: Path) -> None:
    target = write_folder(tmp_path / "x", FILES)
    name = next(name for name in FILES if name.startswith("blobs"))
    (target / name).write_bytes(bytes(len(FILES[name])))
    with FolderSink(target) as sink:
        put_all(sink, FILES)
        sink.commit()
    assert content(target) == FILES


def test_an_aborted_extension_changes_nothing(tmp_path: Path) -> None:
    target = write_folder(tmp_path / "x", FILES)
    with FolderSink(target) as sink:
        put_all(sink, {"blobs/sha256/" + "0" * 64: b"x", "index.json": b"{}"})
    assert content(target) == FILES
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
