"""The view: an image as a filesystem object, with its symbolic links kept inside."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pytest

from layerstore.digest import DiffID, digest_of
from layerstore.errors import CorruptStore, InvalidArgument, LayerstoreError, NotFound
from layerstore.merge import merge
from layerstore.store.store import Store
from layerstore.tree import HOLE, Kind
from layerstore.view import (
    IsADirectory,
    LinkLoop,
    NoSuchPath,
    NotADirectory,
    View,
    open_view,
)
from tests.support.trees import (
    directory,
    file,
    item,
    layer_of,
    symlink,
)
from tests.support.views import (
    BASE,
    LARGE,
    SPARSE_SIZE,
    TOP,
    sparse_bytes,
    tree_view,
    view_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("view") / "store", create=True) as store:
        yield store


@pytest.fixture(scope="module")
def view(store: Store) -> View:
    return view_of(store, BASE, TOP)


def test_files_have_their_contents(view: View) -> None:
    assert view.read_bytes("/large") == LARGE
    assert view.read_bytes("hard") == LARGE
    assert view.read_bytes("sparse") == sparse_bytes()
    assert view.read_bytes("empty") == b""
    assert view.read_bytes(b"caf\xe9") == view.read_bytes("caf\udce9") == b"latin"
    assert view.read_bytes(PurePosixPath("etc") / "hosts") == b"127.0.0.1 localhost\n"


@pytest.mark.parametrize("path", ["large", "sparse"])
def test_any_range_of_a_file_can_be_read(view: View, path: str) -> None:
    whole = view.read_bytes(path)
    for offset in (
        0,
        1,
        4999,
        5000,
        8999,
        9000,
        600_001,
        700_000,
        999_999,
        len(whole) - 1,
        len(whole),
        1 << 40,
    ):
        for size in (0, 1, 4097, 200_000, 1 << 40):
            assert view.read_at(path, offset, size) == whole[offset : offset + size]
    for offset, size in ((-1, 5), (0, -1)):
        with pytest.raises(InvalidArgument):
            view.read_at(path, offset, size)


def test_an_open_file_reads_and_seeks_as_any_other(view: View) -> None:
    with view.open("large") as file_:
        assert file_.read(10) == LARGE[:10]
        assert file_.seek(-10, os.SEEK_END) == len(LARGE) - 10
        assert file_.read() == LARGE[-10:]
        assert file_.seek(500_000) == 500_000
        assert file_.seek(7, os.SEEK_CUR) == 500_007
        assert file_.read(100_000) == LARGE[500_007:600_007]
        assert file_.seek(1 << 40) == 1 << 40
        assert file_.read() == b""
        with pytest.raises(ValueError, match="seek"):
            file_.seek(-1)
        with pytest.raises(io.UnsupportedOperation):
            file_.write(b"x")
    with pytest.raises(ValueError, match="closed"):
        file_.read()
    with io.TextIOWrapper(view.open("etc/hosts")) as text:
        assert list(text) == ["127.0.0.1 localhost\n"]


def test_a_large_hole_costs_only_what_is_read_of_it() -> None:
    size = 1 << 45
    view = tree_view(item(Kind.FILE, b"s", size=size))
    assert view.read_at("s", size - 10, 100) == bytes(10)
    assert view.read_at("s", 12345, 5) == bytes(5)
    with view.open("s") as file_:
        file_.seek(-3, os.SEEK_END)
        assert file_.read() == bytes(3)


def test_stat_says_what_the_tar_said(view: View) -> None:
    hosts = view.stat("etc/hosts")
    assert stat.S_ISREG(hosts.st_mode)
    assert stat.S_IMODE(hosts.st_mode) == 0o640
    assert (hosts.st_uid, hosts.st_gid, hosts.st_size) == (7, 8, 20)
    assert view.stat("/etc").st_mtime == 77
    assert view.stat("note").st_mtime_ns == -1_250_000_000
    assert view.stat("large").st_nlink == 2
    assert view.stat("large").st_ino == view.stat("hard").st_ino != 0
    null = view.stat("dev/null")
    assert stat.S_ISCHR(null.st_mode)
    assert null.st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO(view.stat("run/pipe").st_mode)
    assert stat.S_ISLNK(view.lstat("bin").st_mode)
    assert view.lstat("bin").st_size == len("usr/bin")
    assert stat.S_ISDIR(view.stat("bin").st_mode)
    assert view.xattrs("note") == {"user.note": b"a=b\n"}
    assert view.xattrs("/") == {}


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("", "/"),
        (".", "/"),
        ("..", "/"),
        ("/../../etc", "etc"),
        ("etc//./hosts", "etc/hosts"),
        ("etc/", "etc"),
        ("etc/../etc/hosts", "etc/hosts"),
        ("bin/sh", "usr/bin/sh"),
        ("bin/..", "usr"),
        ("etc/escape", "etc/hosts"),
        ("etc/absolute", "etc/hosts"),
        ("etc/up/etc/up/etc/hosts", "etc/hosts"),
    ],
)
def test_paths_resolve_as_in_a_container_and_never_leave_it(
    view: View, path: str, same: str
) -> None:
    assert view.resolve(path) == view.resolve(same)
    assert view.resolve(os.fsencode(path)) == view.resolve(same)


@pytest.mark.parametrize(
    ("path", "error", "number"),
    [
        ("no", NoSuchPath, errno.ENOENT),
        ("etc/gone", NoSuchPath, errno.ENOENT),
        ("etc/.wh.gone", NoSuchPath, errno.ENOENT),
        ("etc/dangling", NoSuchPath, errno.ENOENT),
        ("no/../etc", NoSuchPath, errno.ENOENT),
        ("x" * 10_000, NoSuchPath, errno.ENOENT),
        ("etc\0hosts", NoSuchPath, errno.ENOENT),
        ("etc/hosts/", NotADirectory, errno.ENOTDIR),
        ("etc/hosts/x", NotADirectory, errno.ENOTDIR),
        ("etc/hosts/..", NotADirectory, errno.ENOTDIR),
        ("etc/loop", LinkLoop, errno.ELOOP),
        ("etc/loop/x", LinkLoop, errno.ELOOP),
    ],
)
def test_a_path_that_leads_nowhere_is_a_typed_error(
    view: View, path: str, error: type[LayerstoreError], number: int
) -> None:
    with pytest.raises(error) as caught:
        view.stat(path)
    assert isinstance(caught.value, OSError)
    assert (caught.value.errno, caught.value.filename) == (number, path)
    assert not view.exists(path)
    assert not view.is_file(path)


def test_errors_are_those_of_os_and_of_layerstore(view: View) -> None:
    with pytest.raises(FileNotFoundError):
        view.open("no")
    with pytest.raises(NotFound):
        view.open("no")
    with pytest.raises(IsADirectory):
        view.open("etc")
    with pytest.raises(IsADirectoryError):
        view.read_bytes("bin")
    with pytest.raises(NotADirectory):
        view.listdir("large")
    with pytest.raises(NotADirectoryError):
        next(view.walk("large"))
    with pytest.raises(InvalidArgument, match="character"):
        view.open("dev/null")
    with pytest.raises(InvalidArgument, match="link"):
        view.readlink("large")


def test_forty_links_are_followed_and_no_more() -> None:
    items = [symlink(b"l%d" % n, b"l%d" % (n + 1)) for n in range(41)]
    view = tree_view(*items, file(b"l41"))
    assert view.exists("l1")
    with pytest.raises(LinkLoop):
        view.stat("l0")


def test_a_symbolic_link_is_itself_where_it_is_not_followed(view: View) -> None:
    assert view.readlink("bin") == "usr/bin"
    assert view.is_symlink("bin")
    assert view.is_dir("bin")
    assert view.exists("etc/dangling", follow_symlinks=False)
    assert view.is_symlink("etc/loop")
    assert not view.is_symlink("bin/")


def test_directories_list_their_names(view: View) -> None:
    assert view.listdir() == [
        "bin",
        "caf\udce9",
        "dev",
        "empty",
        "etc",
        "hard",
        "large",
        "note",
        "run",
        "sparse",
        "usr",
    ]
    assert view.listdir("bin") == ["sh"]
    found = {each.name: each for each in view.scandir("/etc")}
    assert found["hosts"].path == "/etc/hosts"
    assert found["hosts"].is_file()
    assert found["escape"].is_symlink()
    assert found["escape"].is_file()
    assert not found["escape"].is_file(follow_symlinks=False)
    assert found["up"].is_dir()
    assert not found["dangling"].is_file()
    assert found["absolute"].stat().st_size == 20
    assert found["absolute"].stat(follow_symlinks=False).st_size == len("/etc/hosts")
    assert [each.path for each in view.scandir("usr")] == ["usr/bin"]


def test_walk_goes_top_down_and_can_be_pruned(view: View) -> None:
    walked = list(view.walk())
    assert [path for path, _, _ in walked] == ["/", "/dev", "/etc", "/run", "/usr", "/usr/bin"]
    assert "bin" in walked[0][2], "a symbolic link is not walked into"
    pruned = []
    for path, folders, _ in view.walk("usr"):
        pruned.append(path)
        folders.clear()
    assert pruned == ["usr"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("etc/h*", ["etc/hosts"]),
        ("/etc/h?sts", ["/etc/hosts"]),
        ("[el]*", ["empty", "etc", "large"]),
        ("*/sh", ["bin/sh"]),
        ("**/sh", ["usr/bin/sh"]),
        ("/**/bin", ["/bin", "/usr/bin"]),
        ("**/**/hosts", ["etc/hosts"]),
        ("usr/**", ["usr", "usr/bin", "usr/bin/sh"]),
        ("etc/loop/*", []),
        ("etc/up/etc/hosts", ["etc/up/etc/hosts"]),
        ("/", ["/"]),
        ("nothing*", []),
    ],
)
def test_glob_finds_each_match_once(view: View, pattern: str, found: list[str]) -> None:
    assert sorted(view.glob(pattern)) == found


def test_deep_trees_are_no_recursion() -> None:
    deep = b"/".join([b"d"] * 2000)
    view = tree_view(directory(deep))
    assert len(list(view.walk())) == 2001
    assert len(list(view.glob("**"))) == 2000
    assert view.is_dir(deep)


def test_a_layer_that_is_not_there_is_not_found(store: Store) -> None:
    missing = DiffID(digest_of(b"nothing"))
    with pytest.raises(NotFound, match=missing):
        open_view(store, [missing])


def test_a_chunk_of_the_wrong_length_is_never_given_out() -> None:
    class Short:
        def read(self, numbers: npt.NDArray[np.uint64], /) -> Sequence[bytes]:
            return [b"abc" for _ in numbers]

    view = View(merge([layer_of(file(b"a", (1, 5)))]), Short())
    with pytest.raises(CorruptStore):
        view.read_bytes("a")


def test_holes_of_the_image_are_holes_in_the_tree(view: View) -> None:
    extents = view.tree.extents_of(view.resolve("sparse"))
    assert int(extents["length"][extents["number"] == HOLE].sum()) == SPARSE_SIZE - 13_000
