from __future__ import annotations

import pytest

from layerstore.errors import MalformedInput
from layerstore.formats.layertar import entries_of
from layerstore.tree import Entry, Kind
from tests.support.layers import expected, shown, split
from tests.support.tars import (
    DIALECTS,
    as_tarfile_says,
    entry,
    header,
    old_sparse,
    pax,
    pax_sparse,
)


def entries(tar: bytes) -> list[Entry]:
    return list(entries_of(split([tar]).members))


def only(tar: bytes) -> Entry:
    (found,) = entries(tar)
    return found


def named(path: bytes, typeflag: bytes = b"0", link: bytes = b"") -> Entry:
    return only(pax([(b"path", path), (b"linkpath", link)]) + entry(b"x", b"", typeflag))


# Python's reader wants the padding of the last file.
@pytest.mark.parametrize("name", [name for name in DIALECTS if name != "last padding missing"])
def test_rows_are_what_tarfile_says(name: str) -> None:
    tar = DIALECTS[name]
    assert [shown(row) for row in entries(tar)] == [
        expected(seen) for seen, _ in as_tarfile_says(tar)
    ]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"a", b"a"),
        (b"./a", b"a"),
        (b"././a", b"a"),
        (b"/a", b"a"),
        (b"//a//b/", b"a/b"),
        (b"a/./b", b"a/b"),
        (b"a/../b", b"b"),
        (b"../../etc/passwd", b"etc/passwd"),
        (b"/../etc", b"etc"),
        (b"a/b/../../../c", b"c"),
        (b"a/..b/.c", b"a/..b/.c"),
        (b"...", b"..."),
        (b".a", b".a"),
        (b"a/.", b"a"),
        (b"\xff\xfe", b"\xff\xfe"),
        (b"a\\b\nc d", b"a\\b\nc d"),
    ],
)
def test_every_name_is_a_path_below_the_root(name: bytes, path: bytes) -> None:
    assert named(name, b"5").path == path
    assert named(b"link", b"1", name).link == path


@pytest.mark.parametrize("name", [b".", b"./", b"/", b"..", b"a/..", b"/../.."])
def test_the_root_is_the_empty_path(name: bytes) -> None:
    found = named(name, b"5")
    assert (found.kind, found.path) == (Kind.DIRECTORY, b"")


@pytest.mark.parametrize("typeflag", b"012346")
@pytest.mark.parametrize("name", [b".", b"..", b"a/.."])
def test_bug_the_root_could_be_something_else_than_a_directory(name: bytes, typeflag: int) -> None:
    assert named(name, bytes([typeflag]), b"x").kind is Kind.OTHER


def test_a_file_whose_name_ends_in_a_slash_is_a_directory() -> None:
    assert named(b"a/").kind is Kind.DIRECTORY
    assert only(entry(b"d/", b"", b"\0", form="v7")).kind is Kind.DIRECTORY


def test_names_up_to_255_and_paths_up_to_4096_bytes_are_legal() -> None:
    deep = b"/".join([b"d" * 255] * 16)
    assert len(deep) == 4095
    for path in (b"n" * 255, deep, deep[:-1], b"/" + deep + b"/", deep[1:] + b"/x"[:2]):
        assert named(path).path == path.strip(b"/")


@pytest.mark.parametrize(
    "path",
    [
        b"n" * 256,
        b"a/" + b"n" * 256 + b"/b",
        b"/".join([b"d" * 255] * 16) + b"/x",
        b"/".join([b"d" * 99] * 41),
        b".wh." + b"n" * 252,
        b"a\0b",
    ],
)
def test_names_that_linux_cannot_show_are_refused(path: bytes) -> None:
    with pytest.raises(MalformedInput) as caught:
        named(path)
    assert caught.value.offset is not None
    assert caught.value.entry == path[:200].decode("utf-8", "backslashreplace")
    with pytest.raises(MalformedInput):
        named(b"link", b"1", path)


@pytest.mark.parametrize("link", [b"", b"t" * 4097, b"a\0b"])
def test_symbolic_links_that_linux_cannot_make_are_refused(link: bytes) -> None:
    with pytest.raises(MalformedInput, match="symbolic link"):
        named(b"l", b"2", link)


@pytest.mark.parametrize("link", [b"t" * 4096, b"../../..", b"/abs", b"a//b/", b"\xff", b"."])
def test_targets_of_symbolic_links_are_kept_as_written(link: bytes) -> None:
    assert named(b"l", b"2", link).link == link


@pytest.mark.parametrize(
    ("name", "kind", "path"),
    [
        (b".wh.a", Kind.WHITEOUT, b"a"),
        (b"d/.wh.a", Kind.WHITEOUT, b"d/a"),
        (b"./d/.wh.a/", Kind.WHITEOUT, b"d/a"),
        (b".wh..a", Kind.WHITEOUT, b".a"),
        (b".wh....", Kind.WHITEOUT, b"..."),
        (b".wh.a.wh.b", Kind.WHITEOUT, b"a.wh.b"),
        (b".wh. ", Kind.WHITEOUT, b" "),
        (b".wh..wh..opq", Kind.OPAQUE, b""),
        (b"d/.wh..wh..opq", Kind.OPAQUE, b"d"),
        (b"d/e/.wh..wh..opq/", Kind.OPAQUE, b"d/e"),
        (b".wh..wh.aufs", Kind.OTHER, b".wh..wh.aufs"),
        (b".wh..wh.plnk/1.2", Kind.OTHER, b".wh..wh.plnk/1.2"),
        (b"d/.wh..wh.orph", Kind.OTHER, b"d/.wh..wh.orph"),
        (b"d/.wh..wh..opqx", Kind.OTHER, b"d/.wh..wh..opqx"),
        (b"a.wh.b", Kind.FILE, b"a.wh.b"),
        (b".wh", Kind.FILE, b".wh"),
        (b".whiteout", Kind.FILE, b".whiteout"),
    ],
)
def test_names_of_whiteouts_are_values(name: bytes, kind: Kind, path: bytes) -> None:
    for typeflag in (b"0", b"3") if kind is not Kind.FILE else (b"0",):
        found = named(name, typeflag)
        assert (found.kind, found.path) == (kind, path)


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"a/.wh.", b"a/.wh../"])
def test_a_whiteout_of_nothing_is_refused(name: bytes) -> None:
    with pytest.raises(MalformedInput, match="names nothing"):
        named(name)


@pytest.mark.parametrize("typeflag", b"DMNVXZ\x01\xff")
def test_a_type_that_images_do_not_have_keeps_its_place_among_the_extents(typeflag: int) -> None:
    found = only(entry(b"x", b"data", bytes([typeflag])))
    assert (found.kind, found.stored) == (Kind.OTHER, 4)


def test_owners_that_linux_cannot_have_are_nobody() -> None:
    ids = [0, 65_534, 2**32 - 2, 2**32 - 1, 2**32, 2**62 - 1]
    tar = b"".join(pax([(b"uid", b"%d" % n), (b"gid", b"%d" % n)]) + entry(b"a") for n in ids)
    nobody = [65_534] * 3
    assert [row.uid for row in entries(tar)] == [0, 65_534, 2**32 - 2, *nobody]
    assert [row.gid for row in entries(tar)] == [0, 65_534, 2**32 - 2, *nobody]


def test_bits_of_the_mode_that_say_the_type_are_left_out() -> None:
    assert only(entry(b"a", mode=0o104755)).mode == 0o4755


def test_sparse_files_have_a_map_and_both_sizes() -> None:
    parts = [(10, b"abc"), (5000, b"defgh")]
    for tar in (old_sparse(b"s", parts, 9000), pax_sparse("1.0", b"s", parts, 9000)):
        found = only(tar)
        assert (found.kind, found.size, found.stored) == (Kind.FILE, 9000, 8)
        assert found.sparse == [[10, 3], [5000, 5]]


@pytest.mark.parametrize(
    ("name", "value"),
    [(b"", b"v"), (b"user." + b"n" * 251, b"v"), (b"n" * 70_000, b"v"), (b"user.a", b"v" * 65_537)],
)
def test_bug_attributes_that_linux_cannot_have_ended_in_a_struct_error(
    name: bytes, value: bytes
) -> None:
    with pytest.raises(MalformedInput, match="extended attribute") as caught:
        only(pax([(b"SCHILY.xattr." + name, value)]) + entry(b"a"))
    assert caught.value.entry == "a"


def test_attributes_as_long_as_linux_has_them_are_legal() -> None:
    name, value = b"user." + b"n" * 250, b"v" * 65_536
    found = only(
        pax([(b"SCHILY.xattr." + name, value), (b"SCHILY.xattr.user.e", b"")]) + entry(b"a")
    )
    assert found.xattrs == {name: value, b"user.e": b""}


def test_numbers_that_are_none_are_shown_as_zero() -> None:
    found = only(
        header(b"a", patch=[(100, b"rw-r--r-"), (108, b"root\0\0\0\0"), (136, b"yesterday!!\0")])
    )
    assert (found.mode, found.uid, found.mtime) == (0, 0, 0)


def test_no_members_are_no_rows() -> None:
    assert entries(b"") == []
