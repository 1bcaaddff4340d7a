"""Trees to EROFS images: metadata only, whose file contents are frames of the chunk file, read in place.

    write_image            the whole tree, with every file's frames: one mount, nothing else
    write_metadata_image   the tree for overlayfs: a file is a hole that redirects to a content name
    write_data_image       the contents for overlayfs ("data-only lower layer"): /ab/cdef… with its frames

The last two share the page cache between images, as a content is one inode of one mount whatever image it is in. All
give the same bytes for the same arguments.

overlayfs has its own meanings for two things that an image may hold, so a metadata image writes them otherwise:
attributes `trusted.overlay.*` get the prefix that overlayfs takes off again ("Nesting overlayfs mounts"), and a
character device 0/0, which overlayfs would hide, becomes an empty file with the attribute that an overlayfs
mounted inside understands as a whiteout. Attributes that Linux cannot show are left out (`attributes`). Device numbers
keep 12 bits of major and 20 of minor, as mknod(2) does.

Source: Linux `Documentation/filesystems/overlayfs.rst`; structures in `ondisk`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerstore.errors import CorruptStore, InvalidArgument
from layerstore.formats.erofs.filemaps import SPAN
from layerstore.formats.erofs.layout import NO_CONTENT, Plan, lay_out
from layerstore.tree import HOLE, INODE, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from layerstore.tree import Tree

__all__ = [
    "SPAN",
    "DataFiles",
    "content_path",
    "place_extents",
    "write_data_image",
    "write_image",
    "write_metadata_image",
]

_OVERLAY = b"trusted.overlay."
_ESCAPED = b"trusted.overlay.overlay."
_METACOPY = b"trusted.overlay.metacopy"
_NESTED_WHITEOUT = b"trusted.overlay.overlay.whiteout"
_NESTED_OPAQUE = b"trusted.overlay.overlay.opaque"
_FANOUT = 2  # characters of a content name that name its folder


@dataclass(frozen=True, slots=True)
class DataFiles:
    """The contents that a data image shows.

    Attributes:
        names: content names, in lower-case hex: distinct, and all of one length. Their order is that of the inodes: what
            is read together should stand together, as Linux reads them a block at a time.
        counts: how many spans each has.
        spans: array of SPAN, in the order of the names; the sum of a content's `decoded` is its size.
    """

    names: Sequence[bytes]
    counts: npt.NDArray[np.int64]
    spans: npt.NDArray[np.void]


def content_path(name: bytes) -> bytes:
    """Where a data image shows a content, from its root."""
    return b"/" + name[:_FANOUT] + b"/" + name[_FANOUT:]


def place_extents(
    extents: npt.NDArray[np.void], places: npt.NDArray[np.void]
) -> npt.NDArray[np.void]:
    """Spans for extents (tree.EXTENT), given the places of those that are no holes, in their order.

    Raises: CorruptStore: a chunk is not as long as its extent.
    """
    spans = np.zeros(len(extents), SPAN)
    spans["decoded"] = extents["length"]
    real = extents["number"] != HOLE
    if not np.array_equal(places["decoded"], extents["length"][real]):
        raise CorruptStore("a chunk has not the length of its extent; run `layerstore verify`")
    spans["address"][real], spans["encoded"][real] = places["address"], places["encoded"]
    return spans


def write_image(
    tree: Tree, spans: npt.NDArray[np.void], chunk_file_bytes: int, uuid: bytes
) -> bytes:
    """The whole tree; `spans` stand beside `tree.extents`. The device is the chunk file, of `chunk_file_bytes`.

    The chunk file may grow while the image is mounted, but nothing beyond that size can be in the image.

    Raises: CorruptStore: a span breaks the rules of docs/format.md section 2, or a file's do not add up.
    """
    sets = [_sorted(found) for found in tree.xattrs]
    plan = Plan(
        tree.inodes, tree.parents, tree.children, tree.names, tree.targets, sets, uuid,
        spans=spans, device_bytes=chunk_file_bytes,
    )  # fmt: skip
    return lay_out(plan)


def write_metadata_image(tree: Tree, content_names: Sequence[bytes | None], uuid: bytes) -> bytes:
    """The tree for overlayfs, over data images that have its contents.

    `content_names` has a name (as in `DataFiles`) for each inode that is a file with content, else None. A file of
    some size and no name is all zeros.

    Raises: InvalidArgument: names of several lengths, or not one for each inode.
    """
    inodes = tree.inodes.copy()
    if len(content_names) != len(inodes):
        raise InvalidArgument(f"{len(content_names)} content names for {len(inodes)} inodes")
    sets = [_escaped(found) for found in tree.xattrs]
    gone = (inodes["kind"] == Kind.CHARACTER) & (inodes["major"] & 0xFFF == 0)
    gone &= inodes["minor"] & 0xFFFFF == 0
    inodes["kind"][gone], inodes["size"][gone] = Kind.FILE, 0
    _add_attribute(inodes, sets, np.flatnonzero(gone), _NESTED_WHITEOUT, b"")
    parents = np.unique(tree.parents[gone[tree.children]])
    _add_attribute(inodes, sets, parents, _NESTED_OPAQUE, b"x")

    content = np.full(len(inodes), NO_CONTENT, "i8")
    named = [inode for inode, name in enumerate(content_names) if name is not None]
    content[named] = np.arange(len(named))
    content[(inodes["kind"] != Kind.FILE) | (inodes["size"] == 0)] = NO_CONTENT
    _add_attribute(inodes, sets, np.flatnonzero(content != NO_CONTENT), _METACOPY, b"")
    paths = [content_path(name) for name in content_names if name is not None]
    if len({len(path) for path in paths}) > 1:
        raise InvalidArgument("content names of several lengths")
    plan = Plan(
        inodes, tree.parents, tree.children, tree.names, tree.targets, sets, uuid,
        content=content, paths=paths,
    )  # fmt: skip
    return lay_out(plan)


def write_data_image(files: DataFiles, chunk_file_bytes: int, uuid: bytes) -> bytes:
    """The contents as /ab/cdef…, readable by root only; the device is as in `write_image`.

    Raises:
        InvalidArgument: content names that are equal, or of several lengths.
        CorruptStore: a span breaks the rules of docs/format.md section 2.
    """
    order = np.array(sorted(range(len(files.names)), key=files.names.__getitem__), "i8")
    names = [files.names[number] for number in order.tolist()]
    if len(set(names)) < len(names) or len({len(name) for name in names}) > 1:
        raise InvalidArgument("content names that are equal, or of several lengths")
    folders = sorted({name[:_FANOUT] for name in names})
    count = 1 + len(folders)
    number_of = {folder: 1 + number for number, folder in enumerate(folders)}
    folder_of = np.array([number_of[name[:_FANOUT]] for name in names], "u4")

    inodes = np.zeros(count + len(names), INODE)
    inodes["target"] = inodes["xattrs"] = -1
    inodes["kind"][:count], inodes["mode"][:count], inodes["nlink"][:count] = (
        Kind.DIRECTORY,
        0o700,
        2,
    )
    inodes["nlink"][0] += len(folders)
    ends = np.cumsum(files.counts)
    total = np.concatenate([[0], np.cumsum(files.spans["decoded"], dtype="u8")])
    contents = inodes[count:]
    contents["kind"], contents["mode"], contents["nlink"] = Kind.FILE, 0o400, 1
    contents["extent"], contents["extents"] = ends - files.counts, files.counts
    contents["size"] = total[ends] - total[ends - files.counts]

    plan = Plan(
        inodes,
        np.concatenate([np.zeros(len(folders), "u4"), folder_of]),
        np.concatenate([np.arange(1, count), count + order]).astype("u4"),
        folders + [name[_FANOUT:] for name in names],
        [],
        [],
        uuid,
        spans=files.spans,
        device_bytes=chunk_file_bytes,
    )
    return lay_out(plan)


def _sorted(found: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: found[name] for name in sorted(found)}


def _escaped(found: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {
        _ESCAPED + name[len(_OVERLAY) :] if name.startswith(_OVERLAY) else name: value
        for name, value in _sorted(found).items()
    }


def _add_attribute(
    inodes: npt.NDArray[np.void],
    sets: list[dict[bytes, bytes]],
    which: npt.NDArray[np.integer[Any]],
    name: bytes,
    value: bytes,
) -> None:
    """Give these inodes an attribute more, in front of their others; a value that one has already stays."""
    numbers, position = np.unique(inodes["xattrs"][which], return_inverse=True)
    inodes["xattrs"][which] = len(sets) + position
    sets += [{name: value} | (sets[number] if number >= 0 else {}) for number in numbers.tolist()]
