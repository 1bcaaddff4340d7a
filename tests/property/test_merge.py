"""The laws of `tree.merge`: it agrees with an unpacker that goes entry by entry, and with itself.

The model unpacks layer after layer as a runtime does, on a tree of Python objects: first everything that the layer
hides, then its entries in order. It knows nothing of times, nodes or arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from layerstore.merge import merge
from layerstore.tree import HOLE, ROOT, Entry, Kind, Tree
from layerstore.treediff import ChangeKind, diff
from tests.support.trees import Extents, Item, Shown, as_layer, item, layer_of, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAMES = (b"a", b"b", b"c", b"a.")  # "a." sorts between "a" and "a/": by bytes, not by components
_HIDING = (Kind.WHITEOUT, Kind.OPAQUE)
_LEAVES = (Kind.FILE, Kind.SYMLINK, Kind.CHARACTER, Kind.BLOCK, Kind.FIFO)


@dataclass(eq=False)
class Node:
    """An inode of the model; a directory has children, another has None."""

    entry: Entry | None
    extents: Extents = ()
    children: dict[bytes, Node] | None = None


@dataclass
class Model:
    """A root filesystem that layers are unpacked on."""

    root: Node = field(default_factory=lambda: Node(None, children={}))
    left_out: int = 0

    def unpack(self, items: Sequence[Item]) -> None:
        inodes = self._inodes(items)
        for entry, _ in items:
            self._hide(entry)
        for number, (entry, _) in enumerate(items):
            if entry.kind is Kind.DIRECTORY:
                self._directory(entry.path, entry)
            elif entry.path and entry.kind in (*_LEAVES, Kind.HARDLINK):
                inode = inodes[number]
                if inode is None:
                    self.left_out += 1
                    continue
                parent, _, name = entry.path.rpartition(b"/")
                self._directory(parent, None)[name] = inode

    def shown(self) -> dict[bytes, Shown]:
        paths: dict[bytes, Node] = {}
        stack = [(b"", self.root)]
        while stack:
            path, node = stack.pop()
            paths[path] = node
            for name, child in (node.children or {}).items():
                stack.append((path + b"/" + name if path else name, child))
        groups: dict[int, list[bytes]] = {}
        for path, node in paths.items():
            groups.setdefault(id(node), []).append(path)
        return {path: _shown(node, groups[id(node)]) for path, node in paths.items()}

    def _inodes(self, items: Sequence[Item]) -> list[Node | None]:
        """The inode of each non-directory, found on the tree as the layers below left it."""
        last = {
            entry.path: number
            for number, (entry, _) in enumerate(items)
            if entry.kind not in (*_HIDING, Kind.OTHER)
            and (entry.path or entry.kind is Kind.DIRECTORY)
        }
        own = [Node(*each) if each.entry.kind in _LEAVES else None for each in items]

        def follow(number: int, seen: frozenset[int]) -> Node | None:
            entry = items[number].entry
            if entry.kind is not Kind.HARDLINK:
                return own[number]
            if number in seen:
                return None
            if entry.link in last:
                return follow(last[entry.link], seen | {number})
            node = self._find(entry.link)
            return node if node is not None and node.children is None else None

        return [follow(number, frozenset()) for number in range(len(items))]

    def _find(self, path: bytes) -> Node | None:
        node: Node | None = self.root
        for name in path.split(b"/") if path else ():
            node = (node.children or {}).get(name) if node else None
        return node

    def _hide(self, entry: Entry) -> None:
        if entry.kind is Kind.OPAQUE:
            node = self._find(entry.path)
            if node is not None and node.children is not None:
                node.children.clear()
        elif entry.kind is Kind.WHITEOUT:
            parent, _, name = entry.path.rpartition(b"/")
            node = self._find(parent)
            if node is not None and node.children is not None:
                node.children.pop(name, None)

    def _directory(self, path: bytes, entry: Entry | None) -> dict[bytes, Node]:
        """Make a directory and its parents; returns its children."""
        node = self.root
        for name in path.split(b"/") if path else ():
            assert node.children is not None
            child = node.children.get(name)
            if child is None or child.children is None:
                child = node.children[name] = Node(None, children={})
            node = child
        node.entry = entry or node.entry
        assert node.children is not None
        return node.children


def _shown(node: Node, group: list[bytes]) -> Shown:
    entry = node.entry
    if entry is None:
        return Shown(Kind.DIRECTORY, 0o755, (0, 0), (0, 0), 0, (0, 0), b"", (), (), ())
    is_device = entry.kind in (Kind.CHARACTER, Kind.BLOCK)
    size = {Kind.FILE: entry.size, Kind.SYMLINK: len(entry.link)}.get(entry.kind, 0)
    return Shown(
        entry.kind,
        0o777 if entry.kind is Kind.SYMLINK else entry.mode,
        (entry.uid, entry.gid),
        (entry.mtime, entry.nsec),
        size,
        (entry.major, entry.minor) if is_device else (0, 0),
        entry.link if entry.kind is Kind.SYMLINK else b"",
        tuple(sorted(entry.xattrs.items())),
        _with_gaps(entry, node.extents) if entry.kind is Kind.FILE else (),
        tuple(sorted(group)) if node.children is None else (),
    )


def _with_gaps(entry: Entry, extents: Extents) -> Extents:
    """The extents of a file, one for each stretch here, and holes between."""
    if entry.size == entry.stored:
        return extents
    found, end = [], 0
    for (offset, length), extent in zip(entry.sparse, extents, strict=True):
        found += [(HOLE, offset - end)] * (offset > end) + [extent]
        end = offset + length
    return (*found, *([(HOLE, entry.size - end)] * (entry.size > end)))


_paths = st.lists(st.sampled_from(_NAMES), max_size=3).map(b"/".join)
_kinds = st.sampled_from([*Kind, Kind.FILE, Kind.DIRECTORY, Kind.HARDLINK])
_metadata: list[dict[str, object]] = [
    {},
    {"mode": 0o4755, "owner": (1000, 2**32 - 2), "mtime": (-5, 999_999_999), "device": (1, 3)},
    {"xattrs": {b"user.a": b"", b"security.b": b"\0"}, "device": (259, 70_000)},
]
# The extents of a file, and its sparse map and size where it has one.
_contents: list[tuple[Extents, dict[str, object]]] = [
    ((), {}),
    (((1, 5),), {}),
    (((2, 3), (HOLE, 1), (2, 3)), {}),
    ((), {"size": 4}),
    (((3, 2), (4, 1)), {"sparse": [[0, 2], [2, 1]], "size": 5}),
    (((5, 1), (6, 2)), {"sparse": [[3, 1], [6, 2]], "size": 8}),
]


def _item(kind: Kind, path: bytes, link: bytes, metadata: dict[str, object], content: int) -> Item:
    extents, size = _contents[content if kind is Kind.FILE else content % 3 * (kind is Kind.OTHER)]
    if kind is Kind.WHITEOUT:
        path = path or b"a"
    if kind is Kind.SYMLINK:
        link = link or b"/"
    return item(kind, path, extents, link=link, **metadata, **size)  # type: ignore[arg-type]  # passed through


_items = st.builds(
    _item, _kinds, _paths, _paths, st.sampled_from(_metadata), st.integers(0, len(_contents) - 1)
)
_layer = st.lists(_items, max_size=8)
_stack = st.lists(_layer, max_size=4)


def _merge(stack: Sequence[Sequence[Item]]) -> Tree:
    return merge([layer_of(*items) for items in stack])


@given(_stack)
def test_a_merge_is_what_unpacking_layer_after_layer_gives(stack: list[list[Item]]) -> None:
    model = Model()
    for items in stack:
        model.unpack(items)
    tree = _merge(stack)
    assert shown(tree) == model.shown()
    assert len(tree.warnings) == model.left_out


@given(_stack, st.randoms(use_true_random=False))
def test_the_place_of_whiteouts_and_opaque_marks_in_a_tar_means_nothing(
    stack: list[list[Item]], random: object
) -> None:
    moved = []
    for items in stack:
        hiding = [each for each in items if each.entry.kind in _HIDING]
        others = [each for each in items if each.entry.kind not in _HIDING]
        for each in hiding:
            others.insert(random.randint(0, len(others)), each)  # type: ignore[attr-defined]  # a Random
        moved.append(others)
    assert shown(_merge(moved)) == shown(_merge(stack))


@given(_stack, _stack)
def test_lower_layers_can_be_merged_first(lower: list[list[Item]], upper: list[list[Item]]) -> None:
    below = as_layer(_merge(lower))
    together = merge([below, *(layer_of(*items) for items in upper)])
    assert shown(together) == shown(_merge([*lower, *upper]))


@given(_stack)
def test_layers_of_nothing_change_nothing(stack: list[list[Item]]) -> None:
    empty: list[Item] = []
    spread = list(chain.from_iterable((empty, items, empty) for items in stack))
    assert shown(_merge(spread)) == shown(_merge(stack))


@given(_stack)
def test_inodes_and_names_stand_in_the_promised_order(stack: list[list[Item]]) -> None:
    tree = _merge(stack)
    kinds = tree.inodes["kind"]
    parents, children = tree.parents.tolist(), tree.children.tolist()
    keys = list(zip(parents, tree.names, strict=True))
    assert all(a < b for a, b in pairwise(keys))
    assert set(kinds.tolist()) <= {Kind.DIRECTORY, *_LEAVES}
    assert set(children) == set(range(1, len(tree)))
    assert [ROOT, *dict.fromkeys(children)] == list(range(len(tree))), "numbered as they are met"
    directories = [number for number in children if kinds[number] == Kind.DIRECTORY]
    assert len(directories) == len(set(directories))
    assert all(kinds[number] == Kind.DIRECTORY for number in parents)
    for number in range(len(tree)):
        below = [child for parent, child in zip(parents, children, strict=True) if parent == number]
        subdirectories = sum(kinds[child] == Kind.DIRECTORY for child in below)
        is_directory = kinds[number] == Kind.DIRECTORY
        names = 2 + subdirectories if is_directory else children.count(number)
        assert tree.inodes["nlink"][number] == names


@given(_stack)
def test_extents_of_files_follow_one_another_and_fill_them(stack: list[list[Item]]) -> None:
    tree = _merge(stack)
    at = 0
    for number, row in enumerate(tree.inodes):
        if row["kind"] != Kind.FILE:
            assert row["extents"] == 0
            continue
        assert row["extent"] == at
        at += int(row["extents"])
        assert tree.extents_of(number)["length"].sum() == row["size"]
    assert at == len(tree.extents)
    assert np.all(tree.extents["length"] > 0)


@given(_stack)
def test_paths_lead_to_inodes_and_back(stack: list[list[Item]]) -> None:
    tree = _merge(stack)
    for path, number in tree.walk():
        assert tree.lookup(path) == number
        assert tree.lookup(tree.path_of(number)) == number


@given(_stack, _stack)
def test_a_diff_is_empty_for_equal_trees_and_names_all_that_differs(
    lower: list[list[Item]], upper: list[list[Item]]
) -> None:
    below, above = _merge(lower), _merge(upper)
    assert diff(below, _merge(lower)) == []
    old, new = ({path: _alone(is_) for path, is_ in shown(tree).items()} for tree in (below, above))
    changes = {change.path: change.kind for change in diff(below, above)}
    remain = {path for path in new if new[path].kind is Kind.DIRECTORY}
    for path in old.keys() | new.keys():
        if path not in new and path.rpartition(b"/")[0] in remain:
            assert changes[path] is ChangeKind.DELETED
        elif path in new and path not in old:
            assert changes[path] is ChangeKind.ADDED
        elif path in new and old[path] != new[path]:
            is_content = _content(old[path]) != _content(new[path])
            assert changes[path] is (ChangeKind.CHANGED if is_content else ChangeKind.METADATA)
        else:
            assert path not in changes


def _content(is_: Shown) -> Shown:
    """Without metadata."""
    return is_._replace(mode=0, owner=(0, 0), mtime=(0, 0), xattrs=())


def _alone(is_: Shown) -> Shown:
    """Without what a diff does not compare: the names of the inode, and how holes are cut."""
    joined: list[tuple[int, int]] = []
    for number, length in is_.extents:
        if number == HOLE and joined and joined[-1][0] == HOLE:
            length += joined.pop()[1]
        joined.append((number, length))
    return is_._replace(group=(), extents=tuple(joined))
