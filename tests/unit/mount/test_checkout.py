"""Checkouts cannot be led out of their folder, and need no privileges."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from layerstore.errors import CorruptStore, MalformedInput
from layerstore.merge import merge
from layerstore.mount.checkout import check_out, read_ahead, remove_contents
from layerstore.view import View
from tests.support.trees import (
    Item,
    directory,
    fifo,
    file,
    hardlink,
    layer_of,
    sparse_file,
    symlink,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from layerstore.tree import Tree

LENGTH = 100


class _Invented:
    """The chunk of number n is n, 100 times."""

    def __init__(self) -> None:
        self.reads: list[int] = []

    def read(self, numbers: npt.NDArray[np.uint64], /) -> Sequence[bytes]:
        self.reads.append(len(numbers))
        if 99 in numbers:
            raise CorruptStore("damaged")
        return [bytes([number]) * LENGTH for number in numbers.tolist()]


def _view(*items: Item) -> View:
    return View(merge([layer_of(directory(b""), *items)]), _Invented())


def test_files_links_fifos_and_attributes_come_out(tmp_path: Path) -> None:
    own = (os.getuid(), os.getgid())
    view = _view(
        directory(b"d", 0o500, owner=own, mtime=(77, 5)),
        file(b"d/a", (3, LENGTH), (4, LENGTH), mode=0o4751, owner=own, mtime=(-5, 9)),
        hardlink(b"b", b"d/a"),
        symlink(b"l", b"d/a"),
        fifo(b"p"),
    )
    check_out(view, tmp_path)
    assert (tmp_path / "b").read_bytes() == bytes([3]) * LENGTH + bytes([4]) * LENGTH
    status = (tmp_path / "b").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_nlink) == (0o4751, 2)
    assert status.st_mtime_ns == -5 * 10**9 + 9
    assert (tmp_path / "d").stat().st_mtime_ns == 77 * 10**9 + 5
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o500
    assert (tmp_path / "l").readlink().as_posix() == "d/a"
    assert stat.S_ISFIFO((tmp_path / "p").stat().st_mode)


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"a\0b"])
def test_a_name_that_no_folder_has_is_refused(tmp_path: Path, name: bytes) -> None:
    tree = merge([layer_of(directory(b""), file(b"x", (3, LENGTH)))])
    evil = replace(tree, names=[name])
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(MalformedInput):
        check_out(View(evil, _Invented()), folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_symbolic_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    tree = merge([layer_of(directory(b""), directory(b"d"), file(b"d/x", (3, LENGTH)))])

    view = View(tree, _Invented())
    real_mkdir = os.mkdir

    def mkdir_then_swap(name: bytes, mode: int, *, dir_fd: int) -> None:
        real_mkdir(name, mode, dir_fd=dir_fd)
        (folder / "d").rmdir()
        (folder / "d").symlink_to(outside)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("layerstore.mount.checkout.os.mkdir", mkdir_then_swap)
        with pytest.raises(OSError, match=r"directory|symbolic"):
            check_out(view, folder)
    assert list(outside.iterdir()) == []


def test_a_folder_deeper_than_any_limit_on_descriptors(tmp_path: Path) -> None:
    path = b"/".join([b"d"] * 1500)
    check_out(_view(file(path + b"/x", (3, LENGTH))), tmp_path)
    fd, depth = os.open(tmp_path, os.O_RDONLY), 0
    while os.listdir(fd) == ["d"]:  # noqa: PTH208 - of a descriptor
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd, depth = below, depth + 1
    assert (os.listdir(fd), depth) == (["x"], 1500)  # noqa: PTH208
    os.close(fd)
    remove_contents(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_removing_does_not_follow_links_and_minds_no_modes(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    (outside / "kept").mkdir(parents=True)
    (folder / "d" / "e" / "f").mkdir(parents=True)
    (folder / "d" / "link").symlink_to(outside)
    (folder / "top").symlink_to(outside)
    (folder / "d" / "e").chmod(0)
    remove_contents(folder)
    assert list(folder.iterdir()) == []
    assert (outside / "kept").is_dir()


def test_holes_take_no_blocks(tmp_path: Path) -> None:
    size = 8 << 20
    check_out(_view(sparse_file(b"s", ((3, LENGTH),), [(4096, LENGTH)], size)), tmp_path)
    data = (tmp_path / "s").read_bytes()
    assert data == bytes(4096) + bytes([3]) * LENGTH + bytes(size - 4096 - LENGTH)
    assert (tmp_path / "s").stat().st_blocks * 512 <= 64 << 10


def test_small_files_are_read_together_and_damage_is_found_by_its_file() -> None:
    contents = _Invented()
    tree: Tree = merge(
        [layer_of(directory(b""), *(file(b"%d" % n, (n, LENGTH)) for n in range(1, 50)))]
    )
    assert list(read_ahead(View(tree, contents), range(1, len(tree)))) == [*range(1, len(tree))]
    assert contents.reads == [49]
    bad = merge([layer_of(directory(b""), file(b"a", (99, LENGTH)), file(b"b", (1, LENGTH)))])
    assert list(read_ahead(View(bad, contents), [1, 2])) == [1, 2]
