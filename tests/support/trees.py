"""Layers and trees in few words: rows from Python values, and a tree as a dict of what each path shows.

    layer = layer_of(directory(b"etc"), file(b"etc/motd", (7, 18)), whiteout(b"tmp"))
    shown(merge([layer]))[b"etc/motd"].extents == ((7, 18),)

`as_layer` is the layer that makes a tree on nothing.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.tree import (
    EXTENT,
    ROW,
    Entries,
    Entry,
    Kind,
    LayerTree,
    Tree,
    pack_xattrs,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Extents",
    "Item",
    "Shown",
    "as_layer",
    "device",
    "directory",
    "fifo",
    "file",
    "hardlink",
    "item",
    "layer_of",
    "opaque",
    "shown",
    "sparse_file",
    "symlink",
    "whiteout",
]

Extents = tuple[tuple[int, int], ...]  # (chunk number, length)


class Item(NamedTuple):
    """A row, and the extents of its `stored` bytes."""

    entry: Entry
    extents: Extents = ()


class Shown(NamedTuple):
    """What a path of a tree is; `group` is all names of its inode, sorted, none for a directory."""

    kind: Kind
    mode: int
    owner: tuple[int, int]
    mtime: tuple[int, int]
    size: int
    device: tuple[int, int]
    target: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    extents: Extents
    group: tuple[bytes, ...]


def item(
    kind: Kind,
    path: bytes,
    extents: Extents = (),
    *,
    mode: int = 0o644,
    owner: tuple[int, int] = (0, 0),
    mtime: tuple[int, int] = (0, 0),
    size: int | None = None,
    device: tuple[int, int] = (0, 0),
    link: bytes = b"",
    xattrs: dict[bytes, bytes] | None = None,
    sparse: list[list[int]] | None = None,
) -> Item:
    stored = sum(length for _, length in extents)
    size = stored if size is None else size
    entry = Entry(
        kind, path, mode, *owner, *mtime, size, stored, *device, link, xattrs or {}, sparse or []
    )
    return Item(entry, extents)


def file(path: bytes, *extents: tuple[int, int], mode: int = 0o644, **columns: object) -> Item:
    return item(Kind.FILE, path, extents, mode=mode, **columns)  # type: ignore[arg-type]  # passed through


def sparse_file(
    path: bytes, extents: Extents, stretches: Iterable[tuple[int, int]], size: int
) -> Item:
    """A file whose extents are its (offset, length) stretches."""
    return item(Kind.FILE, path, extents, size=size, sparse=[list(pair) for pair in stretches])


def directory(path: bytes, mode: int = 0o755, **columns: object) -> Item:
    return item(Kind.DIRECTORY, path, mode=mode, **columns)  # type: ignore[arg-type]  # passed through


def symlink(path: bytes, target: bytes) -> Item:
    return item(Kind.SYMLINK, path, mode=0o777, link=target)


def hardlink(path: bytes, target: bytes) -> Item:
    return item(Kind.HARDLINK, path, link=target)


def device(path: bytes, major: int, minor: int, kind: Kind = Kind.CHARACTER) -> Item:
    return item(kind, path, device=(major, minor))


def fifo(path: bytes, mode: int = 0o644) -> Item:
    return item(Kind.FIFO, path, mode=mode)


def whiteout(path: bytes) -> Item:
    return item(Kind.WHITEOUT, path)


def opaque(path: bytes) -> Item:
    return item(Kind.OPAQUE, path)


def layer_of(*items: Item) -> LayerTree:
    """A layer with these rows, in this order."""
    rows, extras = [], []
    for entry, _ in items:
        xattrs = pack_xattrs(entry.xattrs)
        sparse = b"".join(struct.pack("<QQ", *pair) for pair in entry.sparse)
        extras.append(xattrs + sparse)
        rows.append(
            (
                entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime, entry.nsec, entry.size, entry.stored,
                entry.major, entry.minor, len(entry.path), len(entry.link), len(xattrs), len(sparse),
            )
        )  # fmt: skip
    entries = Entries(
        np.array(rows, ROW),
        b"".join(entry.path for entry, _ in items),
        b"".join(entry.link for entry, _ in items),
        b"".join(extras),
    )
    return LayerTree(entries, np.array([pair for _, pairs in items for pair in pairs], EXTENT))


def shown(tree: Tree) -> dict[bytes, Shown]:
    """Every path of a tree."""
    names: dict[int, list[bytes]] = {}
    paths = list(tree.walk())
    for path, inode in paths:
        names.setdefault(inode, []).append(path)
    found = {}
    for path, inode in paths:
        row = tree.inodes[inode]
        kind = Kind(int(row["kind"]))
        found[path] = Shown(
            kind,
            int(row["mode"]),
            (int(row["uid"]), int(row["gid"])),
            (int(row["mtime"]), int(row["nsec"])),
            int(row["size"]),
            (int(row["major"]), int(row["minor"])),
            tree.target_of(inode) if kind is Kind.SYMLINK else b"",
            tuple(sorted(tree.xattrs_of(inode).items())),
            tuple(map(tuple, tree.extents_of(inode).tolist())),
            tuple(sorted(names[inode])) if kind is not Kind.DIRECTORY else (),
        )
    return found


def as_layer(tree: Tree) -> LayerTree:
    """A layer that makes the whole tree where nothing was; holes are extents as any other."""
    items, first = [], dict[int, bytes]()
    for path, is_ in shown(tree).items():
        inode = tree.lookup(path)
        if first.setdefault(inode, path) != path:
            items.append(hardlink(path, first[inode]))
            continue
        items.append(
            item(
                is_.kind,
                path,
                is_.extents,
                mode=is_.mode,
                owner=is_.owner,
                mtime=is_.mtime,
                device=is_.device,
                link=is_.target,
                xattrs=dict(is_.xattrs),
            )
        )
    return layer_of(*items)
