from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Protocol

import pytest

from layerstore.archives.member import SharedFile
from layerstore.archives.tarindex import TarIndex
from layerstore.errors import MalformedInput, NotFound
from layerstore.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Make(Protocol):
    def __call__(self, data: bytes, limits: Limits | None = None) -> TarIndex: ...


@pytest.fixture
def index_of(tmp_path: Path) -> Iterator[Make]:
    opened: list[SharedFile] = []

    def make(data: bytes, limits: Limits | None = None) -> TarIndex:
        path = tmp_path / "t.tar"
        path.write_bytes(data)
        opened.append(SharedFile(io.FileIO(path), 0, "t.tar"))
        return TarIndex(opened[-1], limits or Limits())

    yield make
    for file in opened:
        file.close()


def member(
    name: str,
    data: bytes = b"",
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    records: dict[str, str] | None = None,
    *,
    gnu: bool = False,
) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.pax_headers = kind, link, len(data), records or {}
    head = info.tobuf(tarfile.GNU_FORMAT if gnu else tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return head + data + bytes(-len(data) % 512)


def header(name: str, kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


END = bytes(1024)


def test_the_last_member_of_a_name_wins(index_of: Make) -> None:
    index = index_of(member("a", b"1") + member("./a", b"22") + member("/a//", b"333") + END)
    assert index.open("a").read() == b"333"
    assert list(index.names()) == ["a"]


@pytest.mark.parametrize("gnu", [False, True])
def test_long_names_are_read(index_of: Make, gnu: bool) -> None:
    name, target = "n" * 300 + "/ü", "t" * 200
    data = member(name, b"x", gnu=gnu) + member("l", kind=tarfile.SYMTYPE, link=target, gnu=gnu)
    index = index_of(data + member(target, b"y") + END)
    assert index.open(name).read() == b"x"
    assert index.open("l").read() == b"y"


def test_links_are_followed_inside_the_archive(index_of: Make) -> None:
    data = (
        member("d/real", b"x")
        + member("d/sym", kind=tarfile.SYMTYPE, link="real")
        + member("e/f/up", kind=tarfile.SYMTYPE, link="../../d/./sym")
        + member("hard", kind=tarfile.LNKTYPE, link="./e/f/up")
    )
    index = index_of(data + END)
    for name in ("d/real", "d/sym", "e/f/up", "hard"):
        assert index.open(name).read() == b"x"
        assert index.size(name) == 1


@pytest.mark.parametrize(
    ("kind", "link", "says"),
    [
        (tarfile.SYMTYPE, "/etc/passwd", "not in the archive"),
        (tarfile.SYMTYPE, "/real", "not in the archive"),
        (tarfile.SYMTYPE, "../real", "not in the archive"),
        (tarfile.SYMTYPE, "gone", "not in the archive"),
        (tarfile.SYMTYPE, "x", "too many links"),
        (tarfile.LNKTYPE, "x", "too many links"),
        (tarfile.LNKTYPE, "", "not in the archive"),
        (tarfile.FIFOTYPE, "", "special file"),
        (tarfile.CHRTYPE, "", "special file"),
        (b"Q", "", "special file"),
    ],
)
def test_members_that_are_no_files_are_refused_when_used(
    index_of: Make, kind: bytes, link: str, says: str
) -> None:
    index = index_of(member("x", kind=kind, link=link) + member("real", b"y") + END)
    assert index.open("real").read() == b"y"
    for use in (index.open, index.size):
        with pytest.raises(MalformedInput, match=says):
            use("x")


def test_absent_members_and_climbing_names(index_of: Make) -> None:
    index = index_of(member("../a", b"x") + member("b/../c", b"y") + END)
    assert list(index.names()) == ["c"]
    assert index.size("a") is None
    for name in ("a", "../a", "", ".", "c/d"):
        with pytest.raises(NotFound):
            index.open(name)


def test_sparse_members_are_stepped_over_and_refused_when_used(index_of: Make) -> None:
    old = bytearray(header("old", tarfile.GNUTYPE_SPARSE, 512))
    old[482] = 1
    old[148:156] = b"%06o\0 " % (sum(old[:148]) + 8 * 32 + sum(old[156:]))
    extension = bytearray(512)
    extension[504] = 1
    data = bytes(old) + bytes(extension) + bytes(512) + b"z" * 512
    data += member("new", b"y", records={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    index = index_of(data + member("real", b"x") + END)
    assert index.open("real").read() == b"x"
    for name in ("old", "new"):
        with pytest.raises(MalformedInput, match="sparse"):
            index.open(name)


def test_global_headers_do_not_rename(index_of: Make) -> None:
    body = b"13 path=evil\n"
    data = (
        header("g", tarfile.XGLTYPE, len(body)) + body + bytes(512 - len(body)) + member("a", b"x")
    )
    assert index_of(data + END).open("a").read() == b"x"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"x" * 512, "not a tar"),
        (b"x" * 100, "not a tar"),
        (member("a", b"x") + b"x" * 512, "broken tar header"),
        (member("a", b"x") + b"x" * 100, "broken tar header"),
        (member("a", b"x" * 600)[:-512], "truncated: 88 bytes"),
        (header("a", tarfile.REGTYPE, 1 << 40), "truncated"),
        (header("a", tarfile.REGTYPE, -1), "negative"),
        (header("a", tarfile.XHDTYPE, -1), "extended header of -1"),
        (header("a", tarfile.XHDTYPE, (1 << 20) + 1), "extended header of 1048577"),
        (header("a", tarfile.GNUTYPE_LONGNAME, 1 << 62), "extended header of"),
        (header("a", tarfile.XHDTYPE, 100), "truncated extended"),
        (
            header("a", tarfile.XHDTYPE, 9) + b"9 size=x\n".ljust(512, b"\0") + member("a"),
            "no number",
        ),
        (header("a", tarfile.XHDTYPE, 9) + b"99 path=x".ljust(512, b"\0") + member("a"), "PAX"),
        (header("a", tarfile.GNUTYPE_SPARSE, 0)[:482] + b"\1", "not a tar"),
    ],
)
def test_broken_headers_are_malformed(index_of: Make, data: bytes, says: str) -> None:
    with pytest.raises(MalformedInput, match=says) as caught:
        index_of(data)
    assert caught.value.source == "t.tar"


def test_more_headers_than_the_limit_are_malformed(index_of: Make) -> None:
    limits = Limits(members=10)
    index_of(member("a", b"x") * 10 + END, limits)
    for one in (
        member("a"),
        header("x", tarfile.GNUTYPE_LONGNAME, 0),
        member("d", kind=tarfile.DIRTYPE),
    ):
        with pytest.raises(MalformedInput, match="members of 11, where 10 are allowed"):
            index_of(one * 11 + END, limits)


def test_a_chain_of_a_thousand_long_names_is_no_recursion(index_of: Make) -> None:
    longname = header("x", tarfile.GNUTYPE_LONGNAME, 2) + b"n\0".ljust(512, b"\0")
    assert index_of(longname * 5000 + member("a", b"x") + END).open("n").read() == b"x"


def test_an_absent_end_marker_and_bytes_behind_it_are_fine(index_of: Make) -> None:
    assert index_of(member("a", b"x")).size("a") == 1
    assert index_of(member("a", b"x") + bytes(512) + b"junk").size("a") == 1


def test_names_beyond_any_use_are_not_kept(index_of: Make) -> None:
    index = index_of(member("n" * 5000, b"x") + member("a", b"y") + END)
    assert list(index.names()) == ["a"]


def test_pax_size_overrides_the_column(index_of: Make) -> None:
    body = b"10 size=3\n"
    data = (
        header("p", tarfile.XHDTYPE, len(body))
        + body.ljust(512, b"\0")
        + header("a", tarfile.REGTYPE, 0)
    )
    index = index_of(data + b"abc".ljust(512, b"\0") + member("b", b"x") + END)
    assert index.open("a").read() == b"abc"
    assert index.open("b").read() == b"x"
