"""Content names: equal for equal extents, and only for those."""

from __future__ import annotations

from blake3 import blake3

from layerstore.merge import merge
from layerstore.mount.contents import name_contents
from layerstore.tree import EXTENT
from tests.support.trees import directory, file, hardlink, layer_of, sparse_file, symlink


def test_files_of_the_same_extents_have_one_name() -> None:
    tree = merge(
        [
            layer_of(
                directory(b""),
                file(b"a", (7, 10), (8, 5)),
                file(b"b", (7, 10), (8, 5), mode=0o600),
                file(b"c", (7, 10), (9, 5)),
                file(b"d", (7, 10)),
                hardlink(b"e", b"a"),
            )
        ]
    )
    contents = name_contents(tree)
    names = {path: contents.of_inodes[inode] for path, inode in tree.walk()}
    assert names[b"a"] == names[b"b"] == names[b"e"]
    assert len({names[b"a"], names[b"c"], names[b"d"]}) == 3
    assert contents.inodes == {
        names[b"a"]: tree.lookup(b"a"),
        names[b"c"]: tree.lookup(b"c"),
        names[b"d"]: tree.lookup(b"d"),
    }


def test_a_name_is_the_hash_of_the_extent_records() -> None:
    tree = merge([layer_of(file(b"a", (1, 2), (3, 4)))])
    records = b"\x01\0\0\0\0\0\0\0" + b"\x02\0\0\0" + b"\x03\0\0\0\0\0\0\0" + b"\x04\0\0\0"
    assert len(records) == 2 * EXTENT.itemsize
    assert name_contents(tree).of_inodes[tree.lookup(b"a")] == blake3(records).digest()


def test_gaps_of_a_sparse_file_are_part_of_its_content() -> None:
    tree = merge(
        [
            layer_of(
                file(b"dense", (5, 100)),
                sparse_file(b"early", ((5, 100),), [(0, 100)], 5000),
                sparse_file(b"late", ((5, 100),), [(4900, 100)], 5000),
            )
        ]
    )
    of = name_contents(tree).of_inodes
    assert len({of[tree.lookup(name)] for name in (b"dense", b"early", b"late")}) == 3


def test_what_needs_no_bytes_has_no_name() -> None:
    tree = merge(
        [
            layer_of(
                file(b"empty"),
                file(b"zeros", (0, 5000)),
                sparse_file(b"hole", (), [], 9000),
                symlink(b"link", b"empty"),
                directory(b"folder"),
            )
        ]
    )
    assert set(name_contents(tree).of_inodes) == {None}
    assert name_contents(tree).inodes == {}
