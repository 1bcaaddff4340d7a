"""What a stack of layers shows: LayerTrees, bottom first, become one Tree.

    paths   ->  nodes      every path that a row or a hard link of the stack names, and its parents
    rows    ->  times      the row's place in the stack; whiteouts and opaque marks come just before their layer's first row
    nodes   ->  what is there in the end

What a node is follows from the times of the last events that touch it, its ancestors and its descendants, so it is all
arithmetic on arrays, one step for each level of depth. What a layer hides never depends on where in the tar it says so.

Source: OCI image-spec `layer.md`: the result is the same "regardless of the ordering".
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from layerstore.errors import CorruptStore, MalformedInput
from layerstore.tree import EXTENT, HOLE, INODE, Kind, Tree, concat_entries, unpack_xattrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from layerstore.tree import LayerTree

__all__ = ["merge"]

_MAX_HOLE = 1 << 30  # bytes of one extent of zeros
_MAX_HOLES = 1 << 22  # extents that the gaps of sparse files may make, 4 PiB of them
_MAX_IMPLIED = 64 << 20  # bytes of the paths of directories that have no entry
_MAX_WARNINGS = 100
_IMPLIED = 0o755  # mode of a directory that has no entry

_IS_LEAF = np.zeros(256, "?")  # by kind: names an inode that is no directory
_IS_LEAF[[Kind.FILE, Kind.SYMLINK, Kind.HARDLINK, Kind.CHARACTER, Kind.BLOCK, Kind.FIFO]] = True
_ON_ROOT = np.zeros(256, "?")  # by kind: means something for the root
_ON_ROOT[[Kind.DIRECTORY, Kind.OPAQUE]] = True


def merge(layers: Sequence[LayerTree]) -> Tree:
    """The root filesystem that a stack of layers shows, bottom first.

    - A whiteout hides a path of lower layers, with all below it; an opaque mark all that lower layers have below its
      directory. Neither ever hides what its own layer has, wherever in the tar it stands.
    - An entry replaces what was there; only a directory over a directory keeps what is in it and takes the new
      metadata, extended attributes included. Within a layer, too, the later entry wins.
    - A parent without an entry is made: a directory 0755 of 0:0, mtime 0. Symbolic links are not followed: an entry
      below a symbolic link, as below any non-directory, replaces it by a directory. Their mode is 0777.
    - A hard link means what its own layer has under that path (the last entry of it), else what the layers below
      have, before this layer hides or replaces anything. One that leads to nothing, to a directory or in a circle is
      left out, with a warning.

    The work is proportional to the rows and to the depth of the paths, whatever the number of layers.

    Raises:
        CorruptStore: the extents of a layer do not fit its rows.
        MalformedInput: sparse files with petabytes of gaps; more directories without an entry than anybody can want.
    Source: OCI image-spec `layer.md`.
    """
    stack = _Stack(layers)
    history = _History(stack)
    for first, end in stack.spans:
        history.add_layer(first, end)
    return _number(stack, *history.result(), history.warnings())


class _Stack:
    """The rows of all layers, one behind another, and their paths as nodes; node 0 is the root.

    Attributes:
        spans: of each layer, its first row and the one after its last.
        stored_ends: of each row, where its bytes end in those of all layers' extents.
        nodes: of each row, its path.
        targets: of each row, the path its hard link names; -1 for none.
        heads: of each node, its parent; the root is its own.
        levels: the nodes of each depth below the root.
    """

    def __init__(self, layers: Sequence[LayerTree]) -> None:
        ends, total = [np.empty(0, "i8")], 0
        for layer in layers:
            ends.append(np.cumsum(layer.entries.rows["stored"], dtype="i8") + total)
            total += int(layer.extents["length"].sum(dtype="u8"))
            if len(layer.entries) and int(ends[-1][-1]) > total:
                raise _misfit()
        self.stored_ends = np.concatenate(ends)
        self.entries = concat_entries([layer.entries for layer in layers])
        self.extents = np.concatenate([np.empty(0, EXTENT), *(layer.extents for layer in layers)])
        self.rows = self.entries.rows
        limits = np.cumsum([0, *(len(layer.entries) for layer in layers)]).tolist()
        self.spans = list(pairwise(limits))

        row_paths = _slices(self.entries.paths, self.rows["path"])
        numbers = {path: number for number, path in enumerate(dict.fromkeys((b"", *row_paths)))}
        self.paths, heads, implied = list(numbers), list[bytes](), 0
        while len(heads) < len(self.paths):
            found = [path.rpartition(b"/")[0] for path in self.paths[len(heads) :]]
            heads += found
            for head in found:
                if head not in numbers:  # a parent that no row names
                    numbers[head] = len(self.paths)
                    self.paths.append(head)
                    implied += len(head)
            if implied > _MAX_IMPLIED:
                raise MalformedInput("many megabytes of paths of directories without an entry")
        self.nodes = np.array([numbers[path] for path in row_paths], "i8")
        self.heads = np.array([numbers[path] for path in heads], "i8")
        self.targets = np.full(len(self.rows), -1, "i8")
        links = np.flatnonzero(self.rows["kind"] == Kind.HARDLINK)
        self.targets[links] = [numbers.get(path, -1) for path in self.links_of(links)]
        self.depths = np.array([path.count(b"/") + 1 if path else 0 for path in self.paths], "i8")
        order = np.argsort(self.depths, kind="stable")
        cuts = np.cumsum(np.bincount(self.depths)).tolist()
        self.levels = [order[a:b] for a, b in pairwise(cuts)]

    def links_of(self, rows: npt.NDArray[np.int64]) -> list[bytes]:
        """The link column of these rows."""
        ends = np.cumsum(self.rows["link"], dtype="i8")[rows]
        starts = ends - self.rows["link"][rows]
        heap = self.entries.links
        return [heap[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


class _History:
    """When the last thing of each sort happened to each node.

    Row r has the time 2r + 2, and what a layer hides goes at 2·(its first row) + 1, after the layers below and
    before its own rows. 0 is never.
    """

    def __init__(self, stack: _Stack) -> None:
        self._stack = stack
        nodes = len(stack.paths)
        self._hidden, self._opaque = np.zeros(nodes, "i8"), np.zeros(nodes, "i8")
        self._directory, self._other = np.zeros(nodes, "i8"), np.zeros(nodes, "i8")
        self._sources = np.arange(len(stack.rows))  # of each row, the row of its inode
        self._has_children = np.zeros(nodes, "?")
        self._has_children[stack.heads[1:]] = True
        self._left_out: list[int] = []

    def add_layer(self, first: int, end: int) -> None:
        """Let the rows from `first` to before `end` happen, which are one layer's."""
        kinds, nodes = self._stack.rows["kind"][first:end], self._stack.nodes[first:end]
        if not nodes.all():  # the root is a directory, whatever a row says
            kinds = np.where((nodes == 0) & ~_ON_ROOT[kinds], Kind.OTHER, kinds)
        if (kinds == Kind.HARDLINK).any():
            kinds = self._follow_links(kinds, first)
        self._hidden[nodes[kinds == Kind.WHITEOUT]] = 2 * first + 1
        self._opaque[nodes[kinds == Kind.OPAQUE]] = 2 * first + 1
        times = np.arange(2 * first + 2, 2 * end + 2, 2)
        for table, mask in (
            (self._directory, kinds == Kind.DIRECTORY),
            (self._other, _IS_LEAF[kinds]),
        ):
            table[nodes[mask]] = times[mask]  # where a node occurs twice, the last one stays

    def result(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """The nodes that are there in the end, the row of each one's inode (-1: implied), and which are directories."""
        stack = self._stack
        killed = np.zeros(len(stack.paths), "i8")  # when something above hid or replaced it last
        below = np.maximum(np.maximum(self._hidden, self._opaque), self._other)
        for level in stack.levels:
            heads = stack.heads[level]
            killed[level] = np.maximum(killed[heads], below[heads])
        killed = np.maximum(killed, self._hidden)
        made = np.maximum(self._directory, self._implied())
        is_directory = made >= self._other
        is_there = np.maximum(made, self._other) > killed
        is_directory[0] = is_there[0] = True
        has_entry = self._directory > np.maximum(killed, self._other)
        rows = np.where(has_entry, self._directory // 2 - 1, -1)
        leaf = np.flatnonzero(is_there & ~is_directory)
        rows[leaf] = self._sources[self._other[leaf] // 2 - 1]
        nodes = np.flatnonzero(is_there)
        return nodes, rows[nodes], is_directory[nodes]

    def warnings(self) -> tuple[str, ...]:
        """What was left out."""
        some = np.array(self._left_out[:_MAX_WARNINGS], "i8")
        texts = [
            f"{_text(self._stack.paths[node])}: left out, a hard link to {_text(link)}, which is no file"
            for node, link in zip(
                self._stack.nodes[some].tolist(), self._stack.links_of(some), strict=True
            )
        ]
        more = len(self._left_out) - len(texts)
        return (*texts, f"and {more} more") if more else tuple(texts)

    def _implied(self) -> npt.NDArray[np.int64]:
        """When an entry below made a node a directory last."""
        stack = self._stack
        times = np.zeros(len(stack.paths), "i8")
        own = np.maximum(self._directory, self._other)
        for level in reversed(stack.levels):
            np.maximum.at(times, stack.heads[level], np.maximum(times[level], own[level]))
        return times

    def _follow_links(self, kinds: npt.NDArray[np.uint8], first: int) -> npt.NDArray[np.uint8]:
        """Find the inodes of a layer's hard links; returns the kinds, OTHER for those that have none."""
        nodes = self._stack.nodes[first : first + len(kinds)]
        entries = np.flatnonzero(_IS_LEAF[kinds] | (kinds == Kind.DIRECTORY))
        own = dict(zip(nodes[entries].tolist(), (entries + first).tolist(), strict=True))
        links = np.flatnonzero(kinds == Kind.HARDLINK) + first
        targets = self._stack.targets[links]
        outside = dict.fromkeys(node for node in targets.tolist() if node not in own)
        lower = dict(zip(outside, self._inodes_of(np.array([*outside], "i8")), strict=True))
        found: dict[
            int, int
        ] = {}  # row of a link -> row of its inode; -1 for none, and while it is sought
        leads_to = {
            row: own.get(node, -1)
            for row, node in zip(links.tolist(), targets.tolist(), strict=True)
        }
        for row, node in zip(links.tolist(), targets.tolist(), strict=True):
            if node in lower:
                found[row] = lower[node]
        for row in links.tolist():
            chain = []
            while row in leads_to and row not in found:
                chain.append(row)
                found[row] = -1
                row = leads_to[row]
            inode = found.get(row, row)
            if row not in found and kinds[row - first] == Kind.DIRECTORY:
                inode = -1
            found.update(dict.fromkeys(chain, inode))
        inodes = np.array([found[row] for row in links.tolist()], "i8")
        self._sources[links] = inodes
        self._left_out += links[inodes < 0].tolist()
        kept = kinds.copy()
        kept[links[inodes < 0] - first] = Kind.OTHER
        return kept

    def _inodes_of(self, nodes: npt.NDArray[np.int64]) -> list[int]:
        """The rows of these nodes' inodes in the layers so far; -1 for one that is not there, or a directory."""
        killed, head = self._hidden[nodes], nodes
        while head.any():
            head = self._stack.heads[head]
            above = (self._hidden[head], self._opaque[head], self._other[head])
            killed = np.maximum.reduce([killed, *above])
        made = np.maximum(killed, self._directory[nodes])
        if self._has_children[nodes].any():
            made = np.maximum(made, self._implied()[nodes])
        other = np.where(nodes < 0, 0, self._other[nodes])
        rows: list[int] = np.where(other > made, self._sources[other // 2 - 1], -1).tolist()
        return rows


def _number(
    stack: _Stack,
    nodes: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    is_directory: npt.NDArray[np.bool_],
    warnings: tuple[str, ...],
) -> Tree:
    """Number the inodes, and put all in its order."""
    # With NUL, which no name has, for the slash, paths sort by their components; of one depth that is level order.
    keys = [stack.paths[node].replace(b"/", b"\0") for node in nodes.tolist()]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), "i8")
    order = order[np.argsort(stack.depths[nodes[order]], kind="stable")]
    nodes, rows, is_directory = nodes[order], rows[order], is_directory[order]

    identity = np.where(is_directory, len(stack.rows) + nodes, rows)
    _, firsts, inverse = np.unique(identity, return_index=True, return_inverse=True)
    ranks = np.empty(len(firsts), "u4")
    ranks[np.argsort(firsts)] = np.arange(len(firsts))
    numbers = ranks[inverse]
    firsts = np.sort(firsts)
    number_of = np.zeros(len(stack.paths), "u4")
    number_of[nodes] = numbers
    parents, children = number_of[stack.heads[nodes[1:]]], numbers[1:]
    names = [stack.paths[node].rpartition(b"/")[2] for node in nodes[1:].tolist()]

    rows, is_directory = rows[firsts], is_directory[firsts]
    inodes = _inodes(stack, rows)
    subdirectories = np.bincount(parents[is_directory[children]], minlength=len(inodes))
    links = np.bincount(children, minlength=len(inodes))
    inodes["nlink"] = np.where(is_directory, subdirectories + 2, links)
    targets = _fill_targets(stack, inodes, rows)
    xattrs = _fill_xattrs(stack, inodes, rows)
    extents = _fill_extents(stack, inodes, rows)
    return Tree(inodes, parents, children, names, extents, targets, xattrs, warnings)


def _inodes(stack: _Stack, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    """Inodes with what stands in fixed columns; row -1 is an implied directory."""
    inodes = np.zeros(len(rows), INODE)
    inodes["kind"], inodes["mode"] = Kind.DIRECTORY, _IMPLIED
    at = np.flatnonzero(rows >= 0)
    source = stack.rows[rows[at]]
    for name in ("kind", "uid", "gid", "mtime", "nsec"):
        inodes[name][at] = source[name]
    is_link = source["kind"] == Kind.SYMLINK
    inodes["mode"][at] = np.where(is_link, 0o777, source["mode"])  # as on any Linux filesystem
    inodes["size"][at] = np.where(source["kind"] == Kind.FILE, source["size"], 0)
    is_device = np.isin(source["kind"], (Kind.CHARACTER, Kind.BLOCK))
    for name in ("major", "minor"):
        inodes[name][at] = np.where(is_device, source[name], 0)
    inodes["target"] = inodes["xattrs"] = -1
    return inodes


def _fill_targets(
    stack: _Stack, inodes: npt.NDArray[np.void], rows: npt.NDArray[np.int64]
) -> list[bytes]:
    at = np.flatnonzero(inodes["kind"] == Kind.SYMLINK)
    targets = stack.links_of(rows[at])
    inodes["target"][at] = np.arange(len(at))
    inodes["size"][at] = [len(target) for target in targets]
    return targets


def _fill_xattrs(
    stack: _Stack, inodes: npt.NDArray[np.void], rows: npt.NDArray[np.int64]
) -> list[dict[bytes, bytes]]:
    ends = np.cumsum(stack.rows["xattrs"].astype("i8") + stack.rows["sparse"])
    lengths = stack.rows["xattrs"]
    at = np.flatnonzero(rows >= 0)
    at = at[lengths[rows[at]] > 0]
    indexes: dict[bytes, int] = {}
    for inode, row in zip(at.tolist(), rows[at].tolist(), strict=True):
        start = int(ends[row]) - int(lengths[row]) - int(stack.rows["sparse"][row])
        packed = stack.entries.extras[start : start + int(lengths[row])]
        inodes["xattrs"][inode] = indexes.setdefault(packed, len(indexes))
    return [unpack_xattrs(packed) for packed in indexes]


def _fill_extents(
    stack: _Stack, inodes: npt.NDArray[np.void], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.void]:
    """The extents of all files, in the order of the inodes; gaps of sparse files become holes."""
    bounds = np.concatenate([[0], np.cumsum(stack.extents["length"], dtype="i8")])
    files = np.flatnonzero(inodes["kind"] == Kind.FILE)
    row_ends, stored = (
        stack.stored_ends[rows[files]],
        stack.rows["stored"][rows[files]].astype("i8"),
    )
    first = np.searchsorted(bounds, row_ends - stored)
    end = np.searchsorted(bounds, row_ends)
    if (bounds[first] != row_ends - stored).any() or (bounds[end] != row_ends).any():
        raise _misfit()
    counts = end - first
    starts = np.cumsum(counts) - counts
    extents = stack.extents[np.repeat(first - starts, counts) + np.arange(counts.sum())]

    extras = np.cumsum(stack.rows["xattrs"].astype("i8") + stack.rows["sparse"])
    sparse = np.flatnonzero(inodes["size"][files] != stored)
    pieces, done, holes = [], 0, _MAX_HOLES
    for at in sparse.tolist():
        row, a, b = int(rows[files[at]]), int(starts[at]), int(starts[at] + counts[at])
        size = int(stack.rows["sparse"][row])
        table = np.frombuffer(
            stack.entries.extras[int(extras[row]) - size : int(extras[row])], "<u8"
        )
        filled = _with_gaps(
            extents[a:b], table.reshape(-1, 2), int(inodes["size"][files[at]]), holes
        )
        holes -= len(filled) - (b - a)
        pieces += [extents[done:a], filled]
        done = b
        counts[at] = len(filled)
    inodes["extent"][files] = np.cumsum(counts) - counts
    inodes["extents"][files] = counts
    return np.concatenate([*pieces, extents[done:]]) if pieces else extents


def _with_gaps(
    extents: npt.NDArray[np.void], stretches: npt.NDArray[np.uint64], size: int, limit: int
) -> npt.NDArray[np.void]:
    """The extents of a sparse file, with at most `limit` holes between its (offset, length) stretches and behind them."""
    lengths = [int(length) for length in stretches[:, 1]]
    ends = [0, *(int(offset) + int(length) for offset, length in stretches)]
    gaps = [b - a for a, b in zip(ends, [*map(int, stretches[:, 0]), size], strict=True)]
    bounds = np.concatenate([[0], np.cumsum(extents["length"], dtype="i8")])
    starts = np.cumsum([0, *lengths])
    before = np.searchsorted(bounds, starts)
    if starts[-1] != bounds[-1] or min(gaps) < 0 or (bounds[before] != starts).any():
        raise _misfit()
    if sum(-(-gap // _MAX_HOLE) for gap in gaps) > limit:
        raise MalformedInput("sparse files with petabytes of gaps")
    places, holes = [], []
    for place, gap in zip(before.tolist(), gaps, strict=True):
        pieces = [_MAX_HOLE] * (gap // _MAX_HOLE) + [gap % _MAX_HOLE] * (gap % _MAX_HOLE > 0)
        places += [place] * len(pieces)
        holes += [(HOLE, piece) for piece in pieces]
    return np.insert(extents, places, np.array(holes, EXTENT))


def _slices(heap: bytes, lengths: npt.NDArray[np.uint16]) -> list[bytes]:
    """The pieces of a heap."""
    ends = np.cumsum(lengths, dtype="i8").tolist()
    return [heap[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def _misfit() -> CorruptStore:
    return CorruptStore("a layer's extents do not fit its entries; run `layerstore verify`")


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
