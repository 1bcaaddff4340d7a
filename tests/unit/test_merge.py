"""What a stack of layers shows, rule by rule; the laws as a whole are in tests/property/test_merge.py."""

from __future__ import annotations

import numpy as np
import pytest

from layerstore.errors import CorruptStore, InvalidArgument, MalformedInput, NotFound
from layerstore.merge import merge
from layerstore.tree import EXTENT, HOLE, ROOT, Kind, LayerTree, Tree
from tests.support.trees import (
    Item,
    device,
    directory,
    fifo,
    file,
    hardlink,
    item,
    layer_of,
    opaque,
    shown,
    sparse_file,
    symlink,
    whiteout,
)


def _stack(*layers: list[Item]) -> Tree:
    return merge([layer_of(*items) for items in layers])


def _paths(tree: Tree) -> list[bytes]:
    return sorted(shown(tree))


def test_no_layer_at_all_is_an_empty_root() -> None:
    tree = merge([])
    assert _paths(tree) == [b""]
    assert (tree.inodes["mode"][ROOT], tree.inodes["nlink"][ROOT]) == (0o755, 2)


def test_a_whiteout_hides_a_file_or_a_whole_directory() -> None:
    lower = [file(b"a", (1, 5)), directory(b"d"), file(b"d/e/f"), file(b"keep")]
    assert _paths(_stack(lower, [whiteout(b"a"), whiteout(b"d")])) == [b"", b"keep"]


@pytest.mark.parametrize("mark", [opaque(b"d"), whiteout(b"d")])
def test_what_hides_never_hides_its_own_layer_wherever_it_stands(mark: Item) -> None:
    lower = [directory(b"d"), file(b"d/old")]
    own = [directory(b"d", 0o700), file(b"d/new"), file(b"d/sub/deep")]
    for place in range(len(own) + 1):
        tree = _stack(lower, [*own[:place], mark, *own[place:]])
        assert _paths(tree) == [b"", b"d", b"d/new", b"d/sub", b"d/sub/deep"]
        assert shown(tree)[b"d"].mode == 0o700


def test_an_opaque_mark_keeps_the_directory_and_its_metadata() -> None:
    tree = _stack([directory(b"d", 0o1777), file(b"d/x")], [opaque(b"d")])
    assert _paths(tree) == [b"", b"d"]
    assert shown(tree)[b"d"].mode == 0o1777


def test_an_opaque_root_leaves_only_the_layer_and_what_is_above() -> None:
    assert _paths(_stack([file(b"a")], [opaque(b""), file(b"b")], [file(b"c")])) == [
        b"",
        b"b",
        b"c",
    ]


def test_what_hides_nothing_does_nothing() -> None:
    tree = _stack([file(b"f")], [whiteout(b"x/y"), opaque(b"f"), opaque(b"z")])
    assert _paths(tree) == [b"", b"f"]


def test_a_name_hidden_by_one_layer_can_come_again_in_the_next() -> None:
    tree = _stack([file(b"d/a"), file(b"d/b")], [whiteout(b"d")], [file(b"d/c")])
    assert _paths(tree) == [b"", b"d", b"d/c"]


def test_a_directory_over_a_directory_takes_all_metadata_and_keeps_what_is_in_it() -> None:
    lower = [directory(b"d", xattrs={b"user.a": b"1", b"user.b": b"2"}), file(b"d/x")]
    upper = [directory(b"d", 0o500, owner=(7, 8), mtime=(9, 10), xattrs={b"user.a": b"3"})]
    found = shown(_stack(lower, upper))
    assert found[b"d"].mode == 0o500
    assert found[b"d"].owner == (7, 8)
    assert found[b"d"].mtime == (9, 10)
    assert found[b"d"].xattrs == ((b"user.a", b"3"),)
    assert b"d/x" in found


@pytest.mark.parametrize(
    "leaf", [file(b"d", (1, 5)), symlink(b"d", b"/x"), fifo(b"d"), device(b"d", 1, 3)]
)
def test_a_non_directory_replaces_a_directory_with_all_below(leaf: Item) -> None:
    tree = _stack([file(b"d/e/f")], [leaf])
    assert _paths(tree) == [b"", b"d"]
    assert shown(tree)[b"d"].kind is leaf.entry.kind


def test_a_directory_replaces_a_file_and_what_the_file_had_replaced_stays_away() -> None:
    tree = _stack([file(b"d/old")], [file(b"d")], [directory(b"d"), file(b"d/new")])
    assert _paths(tree) == [b"", b"d", b"d/new"]


def test_a_parent_without_an_entry_is_made() -> None:
    found = shown(_stack([file(b"a/b/c", mtime=(5, 0), owner=(1, 1))]))
    for path in (b"a", b"a/b"):
        assert (found[path].mode, found[path].owner, found[path].mtime) == (0o755, (0, 0), (0, 0))


def test_a_parent_of_a_lower_layer_stays_as_it_is() -> None:
    assert shown(_stack([directory(b"a", 0o700)], [file(b"a/b")]))[b"a"].mode == 0o700


def test_an_entry_below_a_symbolic_link_replaces_it_by_a_directory() -> None:
    tree = _stack([file(b"usr/lib/a"), symlink(b"lib", b"usr/lib")], [file(b"lib/b")])
    assert _paths(tree) == [b"", b"lib", b"lib/b", b"usr", b"usr/lib", b"usr/lib/a"]
    assert shown(tree)[b"lib"].kind is Kind.DIRECTORY


def test_within_a_layer_the_later_entry_wins() -> None:
    assert shown(_stack([file(b"a", (1, 5)), file(b"a", (2, 6))]))[b"a"].extents == ((2, 6),)
    assert _paths(_stack([file(b"a/b"), file(b"a")])) == [b"", b"a"]
    assert _paths(_stack([file(b"a"), file(b"a/b")])) == [b"", b"a", b"a/b"]
    assert _paths(_stack([directory(b"a"), file(b"a/b"), file(b"a"), directory(b"a")])) == [
        b"",
        b"a",
    ]


def test_the_root_takes_the_metadata_of_its_entry_and_is_always_a_directory() -> None:
    tree = _stack(
        [directory(b"", 0o700, xattrs={b"user.x": b"y"})], [file(b""), symlink(b"", b"/")]
    )
    root = shown(tree)[b""]
    assert (root.kind, root.mode, root.xattrs) == (Kind.DIRECTORY, 0o700, ((b"user.x", b"y"),))


def test_a_hard_link_shares_the_inode_wherever_its_target_stands() -> None:
    for items in (
        [file(b"a", (1, 5)), hardlink(b"b", b"a")],
        [hardlink(b"b", b"a"), file(b"a", (1, 5))],
    ):
        tree = _stack(items)
        assert tree.lookup(b"a") == tree.lookup(b"b")
        assert tree.inodes["nlink"][tree.lookup(b"a")] == 2


def test_a_hard_link_to_a_lower_layer_sees_it_before_its_own_layer_hides_anything() -> None:
    lower = [file(b"d/a", (1, 5)), directory(b"e")]
    for own in (
        [hardlink(b"b", b"d/a"), whiteout(b"d/a")],
        [whiteout(b"d"), hardlink(b"b", b"d/a")],
        [file(b"d"), hardlink(b"b", b"d/a")],
    ):
        tree = _stack(lower, own)
        assert shown(tree)[b"b"].extents == ((1, 5),)
        assert tree.inodes["nlink"][tree.lookup(b"b")] == 1
        assert tree.warnings == ()


def test_names_of_different_layers_share_an_inode_until_one_is_replaced() -> None:
    lower, middle = [file(b"a", (1, 5))], [hardlink(b"b", b"a")]
    tree = _stack(lower, middle, [hardlink(b"c", b"b")])
    assert {tree.lookup(b"a"), tree.lookup(b"b")} == {tree.lookup(b"c")}
    tree = _stack(lower, middle, [file(b"a", (2, 6))])
    assert shown(tree)[b"b"].extents == ((1, 5),)
    assert shown(tree)[b"a"].extents == ((2, 6),)


def test_chains_of_hard_links_end_at_the_file() -> None:
    links = [hardlink(b"l%d" % n, b"l%d" % (n + 1)) for n in range(3000)]
    tree = _stack([*links, file(b"l3000", (1, 5))])
    assert len(tree) == 2
    assert tree.inodes["nlink"][1] == 3001


@pytest.mark.parametrize(
    ("own", "left_out"),
    [
        ([hardlink(b"x", b"nothing")], b"x"),
        ([hardlink(b"x", b"x")], b"x"),
        ([directory(b"d"), hardlink(b"x", b"d")], b"x"),
        ([hardlink(b"x", b"")], b"x"),
        ([hardlink(b"x", b"lower/d")], b"x"),
        ([hardlink(b"x", b"gone")], b"x"),
    ],
)
def test_a_hard_link_to_nothing_or_a_directory_is_left_out_and_said_so(
    own: list[Item], left_out: bytes
) -> None:
    lower = [[directory(b"lower/d"), file(b"gone")], [whiteout(b"gone")]]
    tree = _stack(*lower, own)
    with pytest.raises(NotFound, match=left_out.decode()):
        tree.lookup(left_out)
    assert len(tree.warnings) == 1
    assert tree.warnings[0].startswith("x: left out")


def test_a_hard_link_that_is_left_out_hides_nothing() -> None:
    lower = [file(b"a/b", (1, 5)), file(b"x", (2, 6))]
    tree = _stack(lower, [hardlink(b"a", b"no"), hardlink(b"x", b"y"), hardlink(b"y", b"x")])
    assert _paths(tree) == [b"", b"a", b"a/b", b"x"]
    assert len(tree.warnings) == 3


def test_warnings_are_bounded() -> None:
    tree = _stack([hardlink(b"l%d" % n, b"no") for n in range(250)])
    assert len(tree.warnings) == 101
    assert tree.warnings[-1] == "and 150 more"


def test_gaps_of_sparse_files_become_holes() -> None:
    extents = ((1, 10), (2, 10), (3, 5))
    tree = _stack(
        [sparse_file(b"s", extents, [(100, 20), (120, 0), (130, 5)], 200), file(b"z", (4, 7))]
    )
    assert shown(tree)[b"s"].extents == (
        (HOLE, 100),
        (1, 10),
        (2, 10),
        (HOLE, 10),
        (3, 5),
        (HOLE, 65),
    )
    assert shown(tree)[b"z"].extents == ((4, 7),)


def test_large_gaps_are_cut_so_that_lengths_fit_and_absurd_ones_refused() -> None:
    size = (5 << 32) + 7
    tree = _stack([sparse_file(b"s", ((1, 10),), [(size - 10, 10)], size)])
    lengths = tree.extents["length"].astype("i8")
    assert lengths.sum() == size
    assert len(lengths) <= 22
    with pytest.raises(MalformedInput, match="gaps"):
        _stack([item(Kind.FILE, b"s", size=1 << 62)])


@pytest.mark.parametrize(
    "entry",
    [
        sparse_file(b"s", ((1, 10),), [(5, 10), (3, 0)], 20),  # not ascending
        sparse_file(b"s", ((1, 10),), [(0, 4), (10, 6)], 20),  # cut within an extent
        sparse_file(b"s", ((1, 10),), [(0, 10), (10, 5)], 20),  # more than is stored
        sparse_file(b"s", ((1, 10),), [(15, 10)], 20),  # past the end
    ],
)
def test_a_sparse_map_that_does_not_fit_is_damage(entry: Item) -> None:
    with pytest.raises(CorruptStore):
        _stack([entry])


def test_extents_that_do_not_fit_the_rows_are_damage() -> None:
    layer = layer_of(file(b"a", (1, 5)), file(b"b", (2, 5)))
    for pairs in ([], [(1, 5)], [(1, 4), (2, 6)]):
        with pytest.raises(CorruptStore):
            merge([LayerTree(layer.entries, np.array(pairs, EXTENT))])


def test_extents_behind_the_last_row_belong_to_no_file() -> None:
    layer = layer_of(file(b"a", (1, 5)))
    more = LayerTree(layer.entries, np.array([(1, 5), (HOLE, 1024)], EXTENT))
    found = shown(merge([more, layer_of(file(b"b", (2, 6)))]))
    assert (found[b"a"].extents, found[b"b"].extents) == (((1, 5),), ((2, 6),))


def test_payloads_of_entries_that_are_not_shown_are_skipped() -> None:
    items = [
        item(Kind.OTHER, b"g", ((1, 5),)),
        file(b"a", (2, 6)),
        file(b"a", (3, 7)),
        file(b"b", (4, 8)),
    ]
    found = shown(_stack(items))
    assert (found[b"a"].extents, found[b"b"].extents) == (((3, 7),), ((4, 8),))


def test_five_hundred_layers_and_deep_paths() -> None:
    layers = [
        [file(b"f%d" % n), hardlink(b"last", b"f%d" % n), whiteout(b"f%d" % (n - 1))]
        for n in range(500)
    ]
    assert _paths(_stack(*layers)) == [b"", b"f499", b"last"]
    deep = b"/".join([b"d"] * 2000)
    tree = _stack([file(deep)], [hardlink(b"x", deep)])
    assert tree.lookup(deep) == tree.lookup(b"x")
    assert tree.path_of(tree.lookup(b"x")) == b"x"


def test_a_few_deep_paths_cannot_ask_for_gigabytes_of_directories() -> None:
    items = [file(b"/".join([b"%d" % n, *[b"d"] * 2000])) for n in range(5)]
    assert len(_stack(items)) == 5 * 2001 + 1
    bomb = [file(b"/".join([b"%d" % n, *[b"d"] * 2000])) for n in range(40)]
    with pytest.raises(MalformedInput, match="without an entry"):
        _stack(bomb)


def test_names_sort_by_their_bytes_within_each_directory() -> None:
    tree = _stack([file(b"a/x"), file(b"a-b"), file(b"a.b/y"), file(b"\xff"), file(b"A")])
    assert [name for name, _ in tree.iter_dir(ROOT)] == [b"A", b"a", b"a-b", b"a.b", b"\xff"]


def test_lookup_is_exact_and_symbolic_links_have_targets() -> None:
    tree = _stack([file(b"d/f", (1, 5)), symlink(b"l", b"d")])
    for path in (b"d/", b"/d", b"d/./f", b"d/f/", b"d/f/x", b"l/f", b"no"):
        with pytest.raises(NotFound):
            tree.lookup(path)
    assert tree.target_of(tree.lookup(b"l")) == b"d"
    assert tree.inodes["size"][tree.lookup(b"l")] == 1
    with pytest.raises(InvalidArgument):
        tree.target_of(ROOT)
    assert tree.parent_of(tree.lookup(b"d/f")) == tree.lookup(b"d")
    assert tree.parent_of(ROOT) == ROOT
