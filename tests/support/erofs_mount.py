"""A real store with an image in it, its EROFS images mounted, and what a mount shows as `trees.Shown` shows a tree.

Everything is mounted below one folder and unmounted when the block ends, however it ends.
"""

from __future__ import annotations

# ruff: noqa: PTH115, PTH118, PTH123, PTH208
# Names are bytes, which a Path cannot hold.
import hashlib
import os
import stat
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.digest import DiffID, parse_digest
from layerstore.formats.erofs import (
    DataFiles,
    place_extents,
    write_data_image,
    write_image,
    write_metadata_image,
)
from layerstore.merge import merge
from layerstore.mount.linux import MountFlag, create_mount, unmount
from layerstore.tree import HOLE, Kind, LayerTree, Tree, concat_entries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from layerstore.api import LayerStore
    from layerstore.mount.linux import Option

__all__ = [
    "Seen",
    "Written",
    "mounted",
    "mounted_direct",
    "mounted_overlay",
    "seen_by",
    "tree_in",
    "written",
]

_KINDS = {
    stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER, stat.S_IFBLK: Kind.BLOCK, stat.S_IFIFO: Kind.FIFO,
}  # fmt: skip
_WHOLE = 64 << 20  # bytes: larger files are read at their ends and in the middle only
_SAMPLE = 1 << 20
_UUID = bytes(16)


class Seen(NamedTuple):
    """What a path of a mounted filesystem is; `content` a digest, `group` all names of its inode."""

    kind: Kind
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    nlink: int
    size: int
    device: tuple[int, int]
    target: bytes
    xattrs: dict[bytes, bytes]
    content: str
    group: tuple[bytes, ...]


class Written(NamedTuple):
    """The three images of a tree, as files, and the chunk file."""

    chunks: Path
    direct: Path
    metadata: Path
    data: Path


def tree_in(store: LayerStore, name: str) -> Tree:
    """The merged tree of an image in a store."""
    layers = []
    for layer in store.inspect(name).layers:
        with store.store.read() as txn:
            record = store.store.catalog.layer(txn, DiffID(parse_digest(layer.diff_id)))
        assert record is not None
        parts = [store.store.reader.part(stretch) for stretch in record.stretches]
        extents = np.concatenate([part.extents for part in parts])
        layers.append(LayerTree(concat_entries([part.entries for part in parts]), extents))
    return merge(layers)


def written(store: LayerStore, tree: Tree, folder: Path) -> Written:
    """Write the images of a tree; contents are named by the hash of their extents."""
    real = tree.extents["number"] != HOLE
    with store.store.read() as txn:
        places = store.store.index.places(txn, tree.extents["number"][real])
    spans = place_extents(tree.extents, places)
    chunks = store.store.layout.chunks
    size = chunks.stat().st_size

    names: list[bytes | None] = [None] * len(tree)
    first: dict[bytes, int] = {}
    for inode in np.flatnonzero(tree.inodes["extents"]).tolist():
        extents = tree.extents_of(inode)
        if (extents["number"] != HOLE).any():
            names[inode] = hashlib.sha256(extents.tobytes()).hexdigest().encode()
            first.setdefault(names[inode] or b"", inode)
    data = DataFiles(
        list(first),
        tree.inodes["extents"][list(first.values())].astype("i8"),
        np.concatenate([_spans_of(tree, spans, inode) for inode in first.values()]),
    )
    found = Written(chunks, folder / "direct", folder / "metadata", folder / "data")
    found.direct.write_bytes(write_image(tree, spans, size, _UUID))
    found.metadata.write_bytes(write_metadata_image(tree, names, _UUID))
    found.data.write_bytes(write_data_image(data, size, _UUID))
    return found


def _spans_of(tree: Tree, spans: npt.NDArray[np.void], inode: int) -> npt.NDArray[np.void]:
    begin = int(tree.inodes["extent"][inode])
    return spans[begin : begin + int(tree.inodes["extents"][inode])]


@contextmanager
def mounted(kind: str, options: Sequence[Option], folder: Path) -> Iterator[Path]:
    """Mount at `folder`, made for it."""
    folder.mkdir()
    with create_mount(kind, options, MountFlag.READ_ONLY) as mount:
        mount.attach(folder)
    try:
        yield folder
    finally:
        unmount(folder)


@contextmanager
def mounted_direct(images: Written, folder: Path) -> Iterator[Path]:
    options = [("source", images.direct), ("device", images.chunks)]
    with mounted("erofs", [*options, "ro"], folder / "mounted-direct") as root:
        yield root


@contextmanager
def mounted_overlay(images: Written, folder: Path) -> Iterator[Path]:
    """The metadata image over the data image; the chunk file is read past the page cache, as in the product."""
    with ExitStack() as stack:
        data = stack.enter_context(
            mounted(
                "erofs",
                [("source", images.data), ("device", images.chunks), "ro", "directio"],
                folder / "mounted-data",
            )
        )
        metadata = stack.enter_context(
            mounted("erofs", [("source", images.metadata), "ro"], folder / "mounted-metadata")
        )
        layers = [("lowerdir+", metadata), ("datadir+", data)]
        settings = [("metacopy", "on"), ("redirect_dir", "follow")]
        yield stack.enter_context(
            mounted("overlay", [*layers, *settings], folder / "mounted-overlay")
        )


def seen_by(root: Path) -> dict[bytes, Seen]:
    """Every path of a mount, with its content read."""
    top = os.fsencode(root)
    paths = [b""]
    for path in paths:
        full = os.path.join(top, path)
        if stat.S_ISDIR(os.lstat(full).st_mode):
            paths += [os.path.join(path, name) for name in sorted(os.listdir(full))]
    groups: dict[int, list[bytes]] = {}
    for path in paths:
        groups.setdefault(os.lstat(os.path.join(top, path)).st_ino, []).append(path)
    return {path: _seen(os.path.join(top, path), groups) for path in paths}


def _seen(path: bytes, groups: dict[int, list[bytes]]) -> Seen:
    status = os.lstat(path)
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    special = kind in (Kind.CHARACTER, Kind.BLOCK)
    names = os.listxattr(path, follow_symlinks=False)
    return Seen(
        kind,
        stat.S_IMODE(status.st_mode),
        (status.st_uid, status.st_gid),
        status.st_mtime_ns,
        status.st_nlink,
        status.st_size if kind in (Kind.FILE, Kind.SYMLINK) else 0,
        (os.major(status.st_rdev), os.minor(status.st_rdev)) if special else (0, 0),
        os.readlink(path) if kind is Kind.SYMLINK else b"",
        {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names},
        _digest(path, status.st_size) if kind is Kind.FILE else "",
        tuple(sorted(groups[status.st_ino])) if kind is not Kind.DIRECTORY else (),
    )


def _digest(path: bytes, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        places = range(0, size, _SAMPLE)
        if size > _WHOLE:
            places = range(0, size, size // 7)
        for at in places:
            file.seek(at)
            digest.update(file.read(_SAMPLE))
        file.seek(max(size - _SAMPLE, 0))
        digest.update(file.read())
    return digest.hexdigest()
