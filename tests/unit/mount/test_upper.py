from __future__ import annotations

import hashlib
import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from layerstore.errors import FailedPrecondition
from layerstore.mount.upper import BlockReader, RootAttributes, iter_upper_tar
from tests.support.layers import split

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _never() -> Path:
    raise AssertionError("the merged view is not needed")


def _tar(upper: Path, below: RootAttributes | None = None) -> bytes:
    return b"".join(iter_upper_tar(upper, below or RootAttributes.read(upper), _never))


def _members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        return tar.getmembers()


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    folder = tmp_path / "fs"
    folder.mkdir()
    return folder


def test_nothing_is_the_empty_layer(upper: Path) -> None:
    data = _tar(upper)
    assert hashlib.sha256(data).hexdigest() == (
        "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
    )


def test_names_are_sorted_and_directories_come_first(upper: Path) -> None:
    for name in ("b", "a.c", "a/z", "a/B", "a/b/c", "ä"):
        (upper / name).parent.mkdir(parents=True, exist_ok=True)
        (upper / name).write_text(name)
    names = [member.name for member in _members(_tar(upper))]
    assert names == ["a", "a/B", "a/b", "a/b/c", "a/z", "a.c", "b", "ä"]


def test_the_same_directory_gives_the_same_bytes(upper: Path, tmp_path: Path) -> None:
    def fill(folder: Path, names: list[str]) -> None:
        for name in names:
            (folder / name).write_bytes(name.encode() * 1000)
            os.setxattr(folder / name, "user.b", b"2")
            os.setxattr(folder / name, "user.a", b"\xff\x00")
            os.utime(folder / name, ns=(7, 1_234_567_890_123_456_789))
        os.utime(folder, ns=(0, 5))

    other = tmp_path / "other"
    other.mkdir()
    names = [f"file{n}" for n in range(20)]
    fill(upper, names)
    fill(other, names[::-1])
    assert _tar(upper) == _tar(other)


def test_the_root_is_there_only_if_it_changed(upper: Path) -> None:
    below = RootAttributes.read(upper)
    upper.chmod(0o700)
    (root,) = _members(_tar(upper, below))
    assert (root.name.rstrip("/"), root.mode, root.isdir()) == (".", 0o700, True)


@pytest.mark.parametrize("mtime_ns", [0, 1, -1, -1_500_000_001, -(10**9), (1 << 34) * 10**9 + 5])
def test_times_keep_their_nanoseconds(upper: Path, mtime_ns: int) -> None:
    (upper / "f").touch()
    os.utime(upper / "f", ns=(0, mtime_ns))
    kept = (upper / "f").stat().st_mtime_ns
    (member,) = split([_tar(upper)]).members
    assert member.header.mtime * 10**9 + member.nsec == kept


def test_any_name_and_content(upper: Path) -> None:
    names = ["x" * 255, "new\nline", "\udcff\udcferaw", " ", "\\", "deep/" * 20 + "end"]
    for name in names:
        (upper / name).parent.mkdir(parents=True, exist_ok=True)
        (upper / name).write_bytes(os.fsencode(name) * 100)
    pieces = split([_tar(upper)])
    found = {member.name for member in pieces.members}
    assert {os.fsencode(name) for name in names} <= found
    assert sorted(data for _, data in pieces.payloads[:-1]) == sorted(
        os.fsencode(name) * 100 for name in names
    )


def test_hard_links_follow_the_first_name(upper: Path) -> None:
    (upper / "b").write_text("text")
    os.link(upper / "b", upper / "a")
    (upper / "d").mkdir()
    os.link(upper / "b", upper / "d/c")
    (upper / "s").symlink_to("nowhere")
    os.link(upper / "s", upper / "s2", follow_symlinks=False)
    shown = {m.name: (m.type, m.linkname) for m in _members(_tar(upper))}
    assert shown["a"][0] == tarfile.REGTYPE
    assert shown["b"] == shown["d/c"] == (tarfile.LNKTYPE, "a")
    assert shown["s"] == (tarfile.SYMTYPE, "nowhere")
    assert shown["s2"] == (tarfile.LNKTYPE, "s")


def test_sockets_are_left_out_and_fifos_kept(upper: Path) -> None:
    os.mkfifo(upper / "fifo")
    os.mknod(upper / "socket", 0o140600)
    (member,) = _members(_tar(upper))
    assert (member.name, member.isfifo()) == ("fifo", True)


def test_sparse_files_are_whole(upper: Path) -> None:
    with (upper / "f").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(b"middle")
    payloads = split([_tar(upper)]).payloads[:-1]  # the tar's end is zeros too
    assert b"".join(data for _, data in payloads) == (upper / "f").read_bytes()


@pytest.mark.parametrize("name", [".wh.x", ".wh.", ".wh..wh..opq"])
def test_names_that_would_be_whiteouts_are_refused(upper: Path, name: str) -> None:
    (upper / name).touch()
    with pytest.raises(FailedPrecondition, match="rename it"):
        _tar(upper)


@pytest.mark.parametrize("size", [0, 10, 5_000_000])
def test_a_file_that_changes_while_it_is_read(upper: Path, size: int) -> None:
    (upper / "f").write_bytes(bytes(2_000_000))
    blocks = iter_upper_tar(upper, RootAttributes.read(upper), _never)
    next(blocks)  # its header
    os.truncate(upper / "f", size)
    with pytest.raises(FailedPrecondition, match="changed while"):
        list(blocks)


def test_a_directory_that_becomes_a_link_is_not_followed(upper: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (upper / "a").mkdir()
    blocks = iter_upper_tar(upper, RootAttributes.read(upper), _never)
    next(blocks)
    (upper / "a").rmdir()
    (upper / "a").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        list(blocks)


@pytest.mark.root
def test_whiteouts_and_opaque_marks(upper: Path) -> None:
    (upper / "d").mkdir()
    os.setxattr(upper / "d", "trusted.overlay.opaque", b"y")
    os.setxattr(upper / "d", "trusted.overlay.impure", b"y")
    (upper / "d/kept").touch()
    (upper / "e").mkdir()
    os.setxattr(upper / "e", "trusted.overlay.opaque", b"x")  # it has whiteouts by xattr, as below
    (upper / "e/byxattr").touch()
    os.setxattr(upper / "e/byxattr", "trusted.overlay.whiteout", b"y")
    os.mknod(upper / "gone", 0o020000, 0)
    os.mknod(upper / "null", 0o020666, os.makedev(1, 3))
    members = _members(_tar(upper))
    names = [member.name for member in members]
    assert names == ["d", "d/.wh..wh..opq", "d/kept", "e", "e/.wh.byxattr", ".wh.gone", "null"]
    assert not any(
        member.pax_headers.get("SCHILY.xattr.trusted.overlay.opaque") for member in members
    )
    null = members[-1]
    assert (null.type, null.devmajor, null.devminor) == (tarfile.CHRTYPE, 1, 3)


def test_the_reader_gives_what_is_asked_for() -> None:
    def blocks() -> Iterator[bytes]:
        yield from (b"abc", b"defgh", b"i")

    reader = BlockReader(blocks())
    assert [reader.read(4), reader.read(1), reader.read(100), reader.read(5)] == [
        *(b"abcd", b"e", b"fghi", b""),
    ]  # fmt: skip
