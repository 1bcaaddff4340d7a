"""What differs between two trees, path by path, and in how many bytes."""

from __future__ import annotations

from layerstore.merge import merge
from layerstore.tree import HOLE, Tree
from layerstore.treediff import Change, ChangeKind, diff
from tests.support.trees import (
    Item,
    directory,
    file,
    hardlink,
    layer_of,
    sparse_file,
    symlink,
    whiteout,
)


def _stack(*layers: list[Item]) -> Tree:
    return merge([layer_of(*items) for items in layers])


def test_a_diff_names_what_was_added_changed_and_deleted() -> None:
    lower = [
        directory(b"d"), file(b"d/same", (1, 5)), file(b"d/content", (1, 5)), file(b"d/mode"), file(b"gone/x"),
        file(b"dir-to-file/x"), file(b"file-to-dir"), symlink(b"l", b"1"), file(b"x", xattrs={b"user.a": b"1"}),
    ]  # fmt: skip
    upper = [
        file(b"d/content", (2, 5)), file(b"d/mode", mode=0o600), whiteout(b"gone"), file(b"dir-to-file"),
        file(b"file-to-dir/y/z"), symlink(b"l", b"2"), file(b"x", xattrs={b"user.a": b"2"}), file(b"new/f"),
    ]  # fmt: skip
    below, above = _stack(lower), _stack(lower, upper)
    changes = diff(below, above)
    assert [(change.kind, change.path) for change in changes] == [
        (ChangeKind.CHANGED, b"d/content"),
        (ChangeKind.METADATA, b"d/mode"),
        (ChangeKind.CHANGED, b"dir-to-file"),
        (ChangeKind.CHANGED, b"file-to-dir"),
        (ChangeKind.ADDED, b"file-to-dir/y"),
        (ChangeKind.ADDED, b"file-to-dir/y/z"),
        (ChangeKind.DELETED, b"gone"),
        (ChangeKind.CHANGED, b"l"),
        (ChangeKind.ADDED, b"new"),
        (ChangeKind.ADDED, b"new/f"),
        (ChangeKind.METADATA, b"x"),
    ]
    inodes = below.lookup(b"d/content"), above.lookup(b"d/content")
    assert changes[0] == Change(ChangeKind.CHANGED, b"d/content", *inodes, 5, 5, ("content",))
    assert changes[6].upper is None
    assert changes[-2].lower is None


def test_a_change_says_in_what_fields() -> None:
    lower = [
        file(b"touched", (1, 5), mtime=(5, 6)), file(b"edited", (1, 5)), file(b"both", (1, 5), mode=0o640),
        file(b"became", (1, 5)), symlink(b"link", b"there"), file(b"note", (1, 5), xattrs={b"user.a": b"1"}),
        directory(b"folder", 0o755),
    ]  # fmt: skip
    upper = [
        file(b"touched", (1, 5), mtime=(5, 7)), file(b"edited", (2, 5)), file(b"both", (1, 6), mode=0o600),
        symlink(b"became", b"x"), symlink(b"link", b"here"), file(b"note", (1, 5), xattrs={b"user.a": b"2"}),
        directory(b"folder", 0o700),
    ]  # fmt: skip
    found = {
        change.path: (change.kind, change.fields) for change in diff(_stack(lower), _stack(upper))
    }
    assert found == {
        b"touched": (ChangeKind.METADATA, ("mtime",)),
        b"edited": (ChangeKind.CHANGED, ("content",)),
        b"both": (ChangeKind.CHANGED, ("content", "mode")),
        b"became": (ChangeKind.CHANGED, ("type",)),
        b"link": (ChangeKind.CHANGED, ("target",)),
        b"note": (ChangeKind.METADATA, ("xattrs",)),
        b"folder": (ChangeKind.METADATA, ("mode",)),
    }


def test_a_diff_does_not_care_how_holes_are_cut() -> None:
    one = _stack([sparse_file(b"s", ((1, 10),), [(90, 10)], 100), file(b"e")])
    two = _stack([file(b"s", (HOLE, 40), (HOLE, 50), (1, 10)), file(b"e")])
    assert diff(one, two) == []
    other = _stack([file(b"s", (HOLE, 40), (HOLE, 51), (1, 9)), file(b"e")])
    assert [change.path for change in diff(one, other)] == [b"s"]


def test_sizes_are_of_files_and_of_all_files_below_a_directory_that_goes() -> None:
    lower = [
        file(b"gone/a", (1, 5)), file(b"gone/deep/b", (2, 7)), hardlink(b"gone/c", b"gone/a"), file(b"grown", (1, 5)),
        file(b"replaced/x", (3, 11)), file(b"file", (4, 2)), symlink(b"gone/l", b"long target"),
    ]  # fmt: skip
    upper = [
        whiteout(b"gone"), file(b"grown", (1, 5), (5, 100)), file(b"replaced", (6, 1)), file(b"file/y", (7, 3)),
    ]  # fmt: skip
    sizes = {
        change.path: (change.lower_size, change.upper_size)
        for change in diff(_stack(lower), _stack(lower, upper))
    }
    assert sizes == {
        b"file": (2, 0),
        b"file/y": (0, 3),
        b"gone": (12, 0),
        b"grown": (5, 105),
        b"replaced": (11, 1),
    }
