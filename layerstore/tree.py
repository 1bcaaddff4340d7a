"""What a layer changes, as values; and what a stack of layers shows.

    Entries     one row for each entry of a layer, in the order of its tar
    LayerTree   the entries of one layer, and the extents of its files
    merge       layers, bottom first -> Tree
    Tree        a root filesystem: inodes, directory entries, extents; no whiteouts, nothing twice
    diff        Tree, Tree -> Changes

A row is metadata only; the bytes of files are extents, (chunk number, length) pairs that stand in the same order.
Whiteouts and opaque marks are rows like any other, so what a layer hides never depends on where in the tar it says
so (image-spec `layer.md`: the result is the same "regardless of the ordering").

How a merge works: every path of the stack is a node, and every row has a time: its place in the stack. Whiteouts and
opaque marks have the time just before their layer's first row. What a node is in the end follows from the times of the
last events that touch it, its ancestors and its descendants, so it is all arithmetic on arrays, one step for each level of depth.

Paths are bytes, relative to the root, without `.`, `..`, or slashes at either end; the root itself is empty.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.errors import CorruptStore, InvalidArgument, MalformedInput, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

__all__ = [
    "EXTENT",
    "HOLE",
    "INODE",
    "ROOT",
    "ROW",
    "Change",
    "ChangeKind",
    "Dirent",
    "Entries",
    "Entry",
    "Kind",
    "LayerTree",
    "Tree",
    "concat_entries",
    "diff",
    "merge",
    "pack_xattrs",
    "unpack_xattrs",
]

HOLE = 0  # the chunk number of zeros


class Kind(IntEnum):
    """What an entry is; the values are part of the format."""

    OTHER = 0  # not part of the image's tree; its payload stands among the extents all the same
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    HARDLINK = 4
    CHARACTER = 5
    BLOCK = 6
    FIFO = 7
    WHITEOUT = 8
    OPAQUE = 9


# One entry. The last four columns are lengths in the heaps. Changing this is a change of format.
ROW = np.dtype(
    [
        ("kind", "u1"),
        ("mode", "<u2"),  # permission, setuid, setgid and sticky bits
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("mtime", "<i8"),  # seconds
        ("nsec", "<u4"),
        ("size", "<u8"),  # as stat() says
        ("stored", "<u8"),  # bytes of extents: less than size for sparse files only
        ("major", "<u4"),
        ("minor", "<u4"),
        ("path", "<u2"),
        ("link", "<u2"),
        ("xattrs", "<u4"),
        ("sparse", "<u4"),
    ]
)
EXTENT = np.dtype([("number", "<u8"), ("length", "<u4")])

# One inode of a Tree. Whiteouts, opaque marks, hard links and kind OTHER do not occur.
INODE = np.dtype(
    [
        ("kind", "u1"),
        ("mode", "<u2"),
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("mtime", "<i8"),
        ("nsec", "<u4"),
        ("size", "<u8"),  # of files, and of the targets of symbolic links
        ("nlink", "<u4"),  # names; of directories, 2 and the directories in them
        ("major", "<u4"),
        ("minor", "<u4"),
        ("extent", "<u8"),  # the first of its extents
        ("extents", "<u4"),  # how many
        ("target", "<i4"),  # index in Tree.targets, or -1
        ("xattrs", "<i4"),  # index in Tree.xattrs, or -1
    ]
)
ROOT = 0  # the inode of the root directory

_MAX_HOLE = 1 << 30  # bytes of one extent of zeros
_MAX_HOLES = 1 << 22  # extents that the gaps of sparse files may make, 4 PiB of them
_MAX_IMPLIED = 64 << 20  # bytes of the paths of directories that have no entry
_MAX_WARNINGS = 100
_IMPLIED = 0o755  # mode of a directory that has no entry

_XATTR = struct.Struct("<HI")

_IS_LEAF = np.zeros(256, "?")  # by kind: names an inode that is no directory
_IS_LEAF[[Kind.FILE, Kind.SYMLINK, Kind.HARDLINK, Kind.CHARACTER, Kind.BLOCK, Kind.FIFO]] = True
_ON_ROOT = np.zeros(256, "?")  # by kind: means something for the root
_ON_ROOT[[Kind.DIRECTORY, Kind.OPAQUE]] = True


@dataclass(frozen=True, slots=True)
class Entries:
    """The rows of a layer, or of a part of one. The heaps hold each row's bytes one after another.

    Attributes:
        rows: array of ROW.
        paths: heap of the paths.
        links: heap of symbolic link targets, and of hard link targets as paths.
        extras: heap of each row's packed extended attributes, then its sparse map.
    """

    rows: npt.NDArray[np.void]
    paths: bytes
    links: bytes
    extras: bytes

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Entry]:
        path = link = extra = 0
        for row in self.rows.tolist():
            kind, mode, uid, gid, mtime, nsec, size, stored, major, minor = row[:10]
            path_end, link_end = path + row[10], link + row[11]
            xattrs_end = extra + row[12]
            extra_end = xattrs_end + row[13]
            yield Entry(
                Kind(kind),
                self.paths[path:path_end],
                mode,
                uid,
                gid,
                mtime,
                nsec,
                size,
                stored,
                major,
                minor,
                self.links[link:link_end],
                unpack_xattrs(self.extras[extra:xattrs_end]),
                np.frombuffer(self.extras[xattrs_end:extra_end], "<u8").reshape(-1, 2).tolist(),
            )
            path, link, extra = path_end, link_end, extra_end


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, unpacked. `sparse` lists [offset, length] of the stored stretches of a sparse file."""

    kind: Kind
    path: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    nsec: int
    size: int
    stored: int
    major: int
    minor: int
    link: bytes
    xattrs: dict[bytes, bytes]
    sparse: list[list[int]]


def concat_entries(parts: Sequence[Entries]) -> Entries:
    """Join the parts of a layer, in order."""
    return Entries(
        np.concatenate([part.rows for part in parts]) if parts else np.empty(0, ROW),
        b"".join(part.paths for part in parts),
        b"".join(part.links for part in parts),
        b"".join(part.extras for part in parts),
    )


def pack_xattrs(xattrs: dict[bytes, bytes]) -> bytes:
    """Extended attributes as bytes, sorted by name: u16 name length, u32 value length, name, value."""
    return b"".join(
        _XATTR.pack(len(name), len(xattrs[name])) + name + xattrs[name] for name in sorted(xattrs)
    )


def unpack_xattrs(data: bytes) -> dict[bytes, bytes]:
    """The inverse of `pack_xattrs`."""
    xattrs, at = {}, 0
    while at < len(data):
        name_length, value_length = _XATTR.unpack_from(data, at)
        value_at = at + _XATTR.size + name_length
        xattrs[data[at + _XATTR.size : value_at]] = data[value_at : value_at + value_length]
        at = value_at + value_length
    return xattrs


@dataclass(frozen=True, slots=True)
class LayerTree:
    """One layer's own tree, all parts joined.

    Attributes:
        entries: in the order of the layer's tar; of a path that occurs twice, the later one counts.
        extents: array of EXTENT; the bytes of all rows' `stored`, in order, and perhaps what stands behind the last.
    """

    entries: Entries
    extents: npt.NDArray[np.void]


class Dirent(NamedTuple):
    """A name in a directory."""

    name: bytes
    inode: int


class ChangeKind(StrEnum):
    """How a path differs between two trees."""

    ADDED = "added"
    CHANGED = "changed"
    DELETED = "deleted"


class Change(NamedTuple):
    """A path that differs; `lower` and `upper` are its inodes in the two trees, None where it is not."""

    kind: ChangeKind
    path: bytes
    lower: int | None
    upper: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A root filesystem, metadata only. Never changed once made.

    Directory entries are sorted by (parent, name bytes). Inodes are numbered as they are met by a walk level by level
    in that order, so that a directory has a lower number than what is in it, and siblings are neighbours.

    Thread safety: a value; all methods from any thread.

    Attributes:
        inodes: array of INODE; number 0 is the root directory.
        parents: of each directory entry, the directory's inode (u4, ascending).
        children: of each directory entry, the inode it names (u4). Every directory but the root is named once.
        names: of each directory entry, the name.
        extents: array of EXTENT in the order of the inodes, holes included: the lengths of a file's sum to its size.
        targets: of symbolic links.
        xattrs: distinct sets of extended attributes.
        warnings: entries that were left out of the layers, and why; at most 100, then how many more.
    """

    inodes: npt.NDArray[np.void]
    parents: npt.NDArray[np.uint32]
    children: npt.NDArray[np.uint32]
    names: list[bytes]
    extents: npt.NDArray[np.void]
    targets: list[bytes]
    xattrs: list[dict[bytes, bytes]]
    warnings: tuple[str, ...] = ()
    _starts: npt.NDArray[np.int64] = field(init=False, repr=False)  # of each inode, in `names`
    _entries: npt.NDArray[np.int64] = field(init=False, repr=False)  # of each inode, its first name

    def __post_init__(self) -> None:
        numbers = np.arange(len(self.inodes) + 1, dtype="u4")
        entries = np.full(len(self.inodes), -1, "i8")
        entries[self.children[::-1]] = np.arange(len(self.children) - 1, -1, -1)
        object.__setattr__(self, "_starts", np.searchsorted(self.parents, numbers))
        object.__setattr__(self, "_entries", entries)

    def __len__(self) -> int:
        return len(self.inodes)

    def kind(self, inode: int) -> Kind:
        """What an inode is."""
        return Kind(int(self.inodes["kind"][inode]))

    def lookup(self, path: bytes) -> int:
        """The inode of a path. Symbolic links are not followed; names must be exact (no `.`, `..`, empty ones).

        Raises: NotFound: no such path.
        """
        inode = ROOT
        for name in path.split(b"/") if path else ():
            child = self.child(inode, name)
            if child is None:
                raise NotFound(f"no {_text(path)!r} in the image")
            inode = child
        return inode

    def child(self, inode: int, name: bytes) -> int | None:
        """What a directory has under a name; None for no such name, and for what is no directory."""
        first, end = int(self._starts[inode]), int(self._starts[inode + 1])
        at = bisect_left(self.names, name, first, end)
        return int(self.children[at]) if at < end and self.names[at] == name else None

    def iter_dir(self, inode: int) -> Iterator[Dirent]:
        """The entries of a directory, by name; none for what is no directory."""
        first, end = int(self._starts[inode]), int(self._starts[inode + 1])
        return map(Dirent, self.names[first:end], self.children[first:end].tolist())

    def parent_of(self, inode: int) -> int:
        """The directory that has the inode's first name; the root's is the root."""
        return int(self.parents[self._entries[inode]]) if inode else ROOT

    def path_of(self, inode: int) -> bytes:
        """The path of an inode; of several names, the first in the order of `names`."""
        parts: list[bytes] = []
        while inode != ROOT:
            at = int(self._entries[inode])
            parts.append(self.names[at])
            inode = int(self.parents[at])
        return b"/".join(reversed(parts))

    def extents_of(self, inode: int) -> npt.NDArray[np.void]:
        """The extents of a file, in order; none for what is no file."""
        row = self.inodes[inode]
        first = int(row["extent"])
        return self.extents[first : first + int(row["extents"])]

    def target_of(self, inode: int) -> bytes:
        """The target of a symbolic link.

        Raises: InvalidArgument: it is none.
        """
        index = int(self.inodes["target"][inode])
        if index < 0:
            raise InvalidArgument(f"inode {inode} is not a symbolic link")
        return self.targets[index]

    def xattrs_of(self, inode: int) -> dict[bytes, bytes]:
        """Extended attributes; not to be changed."""
        index = int(self.inodes["xattrs"][inode])
        return self.xattrs[index] if index >= 0 else {}

    def walk(self) -> Iterator[tuple[bytes, int]]:
        """(path, inode) of every name, the root first, directories before what is in them, siblings by name."""
        yield b"", ROOT
        stack = [(b"", self.iter_dir(ROOT))]
        while stack:
            prefix, entries = stack[-1]
            for name, inode in entries:
                path = prefix + name
                yield path, inode
                if self._starts[inode] != self._starts[inode + 1]:
                    stack.append((path + b"/", self.iter_dir(inode)))
                    break
            else:
                stack.pop()


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


def diff(lower: Tree, upper: Tree) -> list[Change]:
    """What turns one tree into another, sorted by the components of the paths.

    All paths of an added directory are named, of a deleted one only itself; so, too, of a directory that something
    else replaces. A path is changed when its kind, metadata, extended attributes, link target or content differ.
    Contents are compared by their extents, so both trees must be of one store; which names share an inode is not
    compared.
    """
    left, right = _descriptions(lower), _descriptions(upper)
    changes = []
    stack: list[tuple[bytes, int | None, int | None]] = [(b"", ROOT, ROOT)]
    while stack:
        path, old, new = stack.pop()
        if new is None:
            changes.append(Change(ChangeKind.DELETED, path, old, None))
            continue
        if old is None:
            changes.append(Change(ChangeKind.ADDED, path, None, new))
        elif left[old] != right[new]:
            changes.append(Change(ChangeKind.CHANGED, path, old, new))
        is_kept = old is not None and lower.kind(old) is upper.kind(new)
        below = dict(lower.iter_dir(old)) if is_kept and old is not None else {}
        above = dict(upper.iter_dir(new))
        prefix = path + b"/" if path else path
        names = below.keys() | above.keys()
        stack += [(prefix + name, below.get(name), above.get(name)) for name in names]
    return sorted(changes, key=lambda change: change.path.replace(b"/", b"\0"))


def _descriptions(tree: Tree) -> list[tuple[object, ...]]:
    """Of each inode, all that `diff` compares; neighbouring holes are one."""
    inodes, extents = tree.inodes, tree.extents
    is_start = extents["number"] != HOLE
    is_start[1:] |= is_start[:-1].copy()
    is_start[inodes["extent"][inodes["extents"] > 0].astype("i8")] = True
    starts = np.flatnonzero(is_start)
    joined = np.empty(len(starts), [("number", "<u8"), ("length", "<u8")])
    joined["number"] = extents["number"][starts]
    if len(starts):
        joined["length"] = np.add.reduceat(extents["length"].astype("u8"), starts)
    contents, size = joined.tobytes(), joined.dtype.itemsize
    firsts = np.searchsorted(starts, inodes["extent"].astype("i8"))
    ends = np.searchsorted(starts, inodes["extent"].astype("i8") + inodes["extents"])
    columns = ["kind", "mode", "uid", "gid", "mtime", "nsec", "size", "major", "minor"]
    return [
        (
            fixed,
            tree.targets[target] if target >= 0 else b"",
            tree.xattrs[xattrs] if xattrs >= 0 else {},
            contents[first * size : end * size],
        )
        for fixed, target, xattrs, first, end in zip(
            inodes[columns].tolist(),
            inodes["target"].tolist(),
            inodes["xattrs"].tolist(),
            firsts.tolist(),
            ends.tolist(),
            strict=True,
        )
    ]


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
