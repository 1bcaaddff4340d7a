"""What turns one tree into another: the changes, path by path.

    diff   Tree, Tree -> Changes

Contents are compared by their extents, so it reads metadata only.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.tree import HOLE, ROOT, Kind

if TYPE_CHECKING:
    from layerstore.tree import Tree

__all__ = ["Change", "ChangeKind", "diff"]


class ChangeKind(StrEnum):
    """How a path differs between two trees."""

    ADDED = "added"
    CHANGED = "changed"  # another content, link target or device, or something else altogether
    METADATA = "metadata"  # nothing but mode, owner, time or extended attributes
    DELETED = "deleted"


class Change(NamedTuple):
    """A path that differs.

    Attributes:
        path: relative to the root, which is empty.
        lower: its inode in the lower tree; None where it is not.
        upper: its inode in the upper tree; None where it is not.
        lower_size: bytes of the file; of a directory that is deleted or replaced, of all files below; else 0.
        upper_size: bytes of the file, else 0.
        fields: in what it differs, if it is in both: `type` alone, or some of `content`, `target`, `device`, `mode`,
            `owner`, `mtime`, `xattrs`, in this order.
    """

    kind: ChangeKind
    path: bytes
    lower: int | None
    upper: int | None
    lower_size: int = 0
    upper_size: int = 0
    fields: tuple[str, ...] = ()


class _Description(NamedTuple):
    """All that `diff` compares of an inode, by the names of `Change.fields`."""

    type: int
    content: tuple[int, bytes]
    target: bytes
    device: tuple[int, int]
    mode: int
    owner: tuple[int, int]
    mtime: tuple[int, int]
    xattrs: dict[bytes, bytes]


_METADATA = {"mode", "owner", "mtime", "xattrs"}


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
            changes.append(Change(ChangeKind.DELETED, path, old, None, _size(lower, old)))
            continue
        is_kept = old is not None and lower.kind(old) is upper.kind(new)
        if old is None:
            changes.append(Change(ChangeKind.ADDED, path, None, new, 0, _own_size(upper, new)))
        elif left[old] != right[new]:
            before = _own_size(lower, old) if is_kept else _size(lower, old)
            after = _own_size(upper, new)
            fields = _differing(left[old], right[new])
            kind = ChangeKind.METADATA if _METADATA.issuperset(fields) else ChangeKind.CHANGED
            changes.append(Change(kind, path, old, new, before, after, fields))
        below = dict(lower.iter_dir(old)) if is_kept and old is not None else {}
        above = dict(upper.iter_dir(new))
        prefix = path + b"/" if path else path
        names = below.keys() | above.keys()
        stack += [(prefix + name, below.get(name), above.get(name)) for name in names]
    return sorted(changes, key=lambda change: change.path.replace(b"/", b"\0"))


def _differing(old: _Description, new: _Description) -> tuple[str, ...]:
    if old.type != new.type:
        return ("type",)
    return tuple(
        name
        for name, before, after in zip(_Description._fields, old, new, strict=True)
        if before != after
    )


def _descriptions(tree: Tree) -> list[_Description]:
    """Of each inode; neighbouring holes are one."""
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
        _Description(
            kind,
            (length if kind == Kind.FILE else 0, contents[first * size : end * size]),
            tree.targets[target] if target >= 0 else b"",
            (major, minor),
            mode,
            (uid, gid),
            (mtime, nsec),
            tree.xattrs[xattrs] if xattrs >= 0 else {},
        )
        for (
            kind,
            mode,
            uid,
            gid,
            mtime,
            nsec,
            length,
            major,
            minor,
        ), target, xattrs, first, end in zip(
            inodes[columns].tolist(),
            inodes["target"].tolist(),
            inodes["xattrs"].tolist(),
            firsts.tolist(),
            ends.tolist(),
            strict=True,
        )
    ]


def _size(tree: Tree, top: int | None) -> int:
    """Bytes of a file, or of all files below a directory, each once whatever the number of its names."""
    found, stack = set[int](), [] if top is None else [top]
    while stack:
        inode = stack.pop()
        found.add(inode)
        stack += [child for _, child in tree.iter_dir(inode)]
    return sum(_own_size(tree, inode) for inode in found)


def _own_size(tree: Tree, inode: int) -> int:
    return int(tree.inodes["size"][inode]) if tree.kind(inode) is Kind.FILE else 0
