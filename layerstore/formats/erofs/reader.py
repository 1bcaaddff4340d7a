"""EROFS images back to what is in them, for tests and for looking into a store.

`read_image` understands what `writer` writes, not all of EROFS: a structure that this package does not write is an
error. It believes nothing: every offset is checked, no directory is walked twice, and what an image of n bytes makes in
memory is proportional to n.

Source: structures in `ondisk`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from layerstore.errors import CorruptStore
from layerstore.formats.erofs import ondisk
from layerstore.formats.erofs.ondisk import BLOCK, SLOT, Feature, Layout
from layerstore.tree import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from struct import Struct

__all__ = ["Extent", "Image", "Node", "dump", "read_image"]

_KNOWN = Feature(0x8F)
_KINDS = {
    int(ondisk.TYPE_BITS[kind]): kind
    for kind in Kind
    if kind <= Kind.FIFO and ondisk.TYPE_BITS[kind]
}
_LAYOUTS = frozenset(Layout)
_DIRECTORY = int(ondisk.FILE_TYPES[Kind.DIRECTORY])
_PREFIX_NAMES = {number: name for name, number in (ondisk.PREFIXES | ondisk.ACL_PREFIXES).items()}


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes of a file from `start` on; `address` in the device is None where they are zeros."""

    start: int
    length: int
    address: int | None
    encoded: int
    partial: bool


@dataclass(frozen=True, slots=True)
class Node:
    """An inode. `entries` are those of a directory, without `.` and `..`; `extents` is empty for an all-hole file."""

    nid: int
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: int
    nsec: int
    nlink: int
    size: int
    layout: Layout
    device: tuple[int, int]
    target: bytes
    xattrs: dict[bytes, bytes]
    extents: list[Extent]
    entries: list[tuple[bytes, int]]


@dataclass(frozen=True, slots=True)
class Image:
    """A parsed image; nodes by nid, in the order of a walk from the root."""

    uuid: bytes
    features: Feature
    device_bytes: int
    root: int
    nodes: dict[int, Node]

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every name with its node, the root first as the empty path; hard links come once for each name."""
        pending = [(b"", self.root)]
        while pending:
            path, nid = pending.pop()
            node = self.nodes[nid]
            yield path, node
            prefix = path + b"/" if path else b""
            pending += [(prefix + name, child) for name, child in reversed(node.entries)]


def read_image(data: bytes) -> Image:
    """Parse an image.

    Raises: CorruptStore: it is damaged, or nothing that this package writes.
    """
    return _Reader(data).image()


def dump(image: Image) -> str:
    """An image as text, one line for each name, extent and attribute."""
    lines = [
        f"uuid {image.uuid.hex()}  features {image.features!r}  device {image.device_bytes} bytes"
        f"  root {image.root}  inodes {len(image.nodes)}"
    ]
    for path, node in image.walk():
        shown = "/" + path.decode("utf-8", "backslashreplace")
        lines.append(
            f"{shown}  {node.kind.name.lower()} {node.mode:04o} {node.uid}:{node.gid} size {node.size}"
            f" links {node.nlink} mtime {node.mtime}.{node.nsec:09} nid {node.nid} {node.layout.name.lower()}"
        )
        if node.target:
            lines.append(f"    -> {node.target!r}")
        if node.kind in (Kind.CHARACTER, Kind.BLOCK):
            lines.append(f"    device {node.device[0]}:{node.device[1]}")
        lines += [
            f"    {name.decode('utf-8', 'backslashreplace')} = {value!r}"
            for name, value in node.xattrs.items()
        ]
        for extent in node.extents:
            where = (
                "zeros" if extent.address is None else f"{extent.encoded} bytes at {extent.address}"
            )
            lines.append(
                f"    +{extent.start} {extent.length}: {where}{' partial' if extent.partial else ''}"
            )
    return "\n".join(lines) + "\n"


class _Reader:
    """One pass over one image."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._budget = 4 * len(data)  # bytes to look at in all; an honest image needs about 2
        self._shared: dict[int, tuple[bytes, bytes]] = {}
        if len(data) < BLOCK or len(data) % BLOCK:
            self._fail("no whole number of blocks", len(data))
        head = self._unpack(ondisk.SUPERBLOCK, ondisk.SUPERBLOCK_OFFSET)
        checksum = ondisk.crc32c(data[ondisk.SUPERBLOCK_OFFSET + 8 : BLOCK], ondisk.CHECKSUM_SEED)
        if head[:2] != (ondisk.MAGIC, checksum):
            self._fail("the superblock is not that of an EROFS image", ondisk.SUPERBLOCK_OFFSET)
        (self._shared_block, self._uuid, features, devices) = (
            head[11],
            head[12],
            head[14],
            head[16],
        )
        if head[3] != BLOCK.bit_length() - 1 or head[10] or features & ~_KNOWN or devices > 1:
            self._fail(
                "an image with other features than layerstore writes", ondisk.SUPERBLOCK_OFFSET
            )
        is_big = bool(features & Feature.BIG_ADDRESSES)
        if (head[9] | (head[5] << 32 if is_big else 0)) * BLOCK != len(data):
            self._fail("the image is cut off, or longer than it says", len(data))
        self._features, self._count = Feature(features), head[6]
        self._root = head[24] if is_big else head[5]
        self._device_bytes = self._device() if devices else 0

    def image(self) -> Image:
        nodes: dict[int, Node] = {}
        pending = [(self._root, _DIRECTORY, self._root)]
        seen = {self._root}
        for nid, file_type, parent in pending:
            node, entries = self._node(nid, file_type, parent)
            nodes[nid] = node
            for _, child, child_type in entries:
                if child not in seen:
                    seen.add(child)
                    pending.append((child, child_type, nid))
                elif child_type == _DIRECTORY:
                    self._fail("a directory has two names", SLOT * child)
                elif child in nodes and ondisk.FILE_TYPES[nodes[child].kind] != child_type:
                    self._fail("a name says another type than its inode", SLOT * child)
        if len(nodes) != self._count:
            self._fail(f"{len(nodes)} inodes where the superblock says {self._count}", 0)
        return Image(self._uuid, self._features, self._device_bytes, self._root, nodes)

    def _device(self) -> int:
        _, blocks, base, blocks_high, base_high = self._unpack(ondisk.DEVICE, ondisk.DEVICE_OFFSET)
        if (base | base_high << 32) * BLOCK != ondisk.UNIFIED_BASE:
            self._fail("the device stands elsewhere than layerstore puts it", ondisk.DEVICE_OFFSET)
        size: int = (blocks | blocks_high << 32) * BLOCK
        return size

    def _node(
        self, nid: int, file_type: int, parent: int
    ) -> tuple[Node, list[tuple[bytes, int, int]]]:
        at = nid * SLOT
        row: tuple[Any, ...] = self._array(ondisk.INODE, at, 1)[0].item()
        form, icount, mode, high, size, u, _, uid, gid, mtime, nsec, nlink, _ = row
        kind = _KINDS.get(mode & 0o170000)
        if form & ~0xF or not form & 1 or form >> 1 not in _LAYOUTS or kind is None:
            self._fail("an inode of a form that layerstore does not write", at)
        if ondisk.FILE_TYPES[kind] != file_type:
            self._fail("a name says another type than its inode", at)
        layout, first = Layout(form >> 1), u | high << 32
        xattrs, body = self._attributes(at + ondisk.INODE.itemsize, icount)
        entries: list[tuple[bytes, int, int]] = []
        extents: list[Extent] = []
        target, device = b"", (0, 0)
        if kind is Kind.DIRECTORY:
            entries = self._entries(nid, parent, layout, first, body, size)
        elif kind is Kind.SYMLINK:
            target = b"".join(self._content(layout, first, body, size))
        elif kind is Kind.FILE and layout is Layout.RECORDS:
            extents = self._extents(body, size)
        elif kind is Kind.FILE and layout is Layout.CHUNKS:
            count = -(-size // ondisk.CHUNK_SPAN)
            if u != 31 or self._bytes(body, 4 * count).strip(b"\xff"):
                self._fail("a file by chunks that is no hole", at)
        elif layout is not Layout.PLAIN or size:
            self._fail("an inode whose content has no place", at)
        if kind in (Kind.CHARACTER, Kind.BLOCK):
            device = (u >> 8 & 0xFFF, u & 0xFF | u >> 12 & 0xFFF00)
        node = Node(
            nid, kind, mode & 0o7777, uid, gid, mtime, nsec, nlink, size, layout, device, target, xattrs,
            extents, [entry[:2] for entry in entries],
        )  # fmt: skip
        return node, entries

    def _attributes(self, at: int, icount: int) -> tuple[dict[bytes, bytes], int]:
        """The attributes of an inode, and where they end."""
        if not icount:
            return {}, at
        end = at + ondisk.ATTRIBUTES_HEADER.size + 4 * (icount - 1)
        self._bytes(at, end - at)
        _, shared = self._unpack(ondisk.ATTRIBUTES_HEADER, at)
        at += ondisk.ATTRIBUTES_HEADER.size
        found = []
        for number in self._array(np.dtype("<u4"), at, shared).tolist():
            if number not in self._shared:
                self._shared[number] = self._attribute(self._shared_block * BLOCK + 4 * number)[:2]
            found.append(self._shared[number])
        at += 4 * shared
        while at < end:
            name, value, at = self._attribute(at)
            found.append((name, value))
        if at != end or len(dict(found)) != len(found):
            self._fail("attributes that overlap or stand twice", at)
        return dict(found), end

    def _attribute(self, at: int) -> tuple[bytes, bytes, int]:
        name_length, prefix, value_length = self._unpack(ondisk.ATTRIBUTE, at)
        raw = self._bytes(at + ondisk.ATTRIBUTE.size, name_length + value_length)
        if prefix not in _PREFIX_NAMES:
            self._fail(f"an attribute of kind {prefix}", at)
        end = at + ondisk.ATTRIBUTE.size + len(raw)
        return _PREFIX_NAMES[prefix] + raw[:name_length], raw[name_length:], end + -end % 4

    def _content(self, layout: Layout, first: int, body: int, size: int) -> Iterator[bytes]:
        """The blocks of a directory or link."""
        if layout not in (Layout.PLAIN, Layout.INLINE):
            self._fail("a directory or link that is not stored flat", body)
        outside = size // BLOCK * BLOCK if layout is Layout.INLINE else size
        for at in range(0, outside, BLOCK):
            yield self._bytes(first * BLOCK + at, min(BLOCK, outside - at))
        if outside < size:
            if body % BLOCK + size - outside > BLOCK:
                self._fail("content behind an inode crosses a block", body)
            yield self._bytes(body, size - outside)

    def _entries(
        self, nid: int, parent: int, layout: Layout, first: int, body: int, size: int
    ) -> list[tuple[bytes, int, int]]:
        found: list[tuple[bytes, int, int]] = []
        for block in self._content(layout, first, body, size):
            if len(block) < ondisk.DIRENT.itemsize:
                self._fail("a directory block without an entry", SLOT * nid)
            count, rest = divmod(int.from_bytes(block[8:10], "little"), ondisk.DIRENT.itemsize)
            if rest or not 0 < count <= len(block) // ondisk.DIRENT.itemsize:
                self._fail("a directory block whose names begin nowhere", SLOT * nid)
            rows = np.frombuffer(block, ondisk.DIRENT, count).tolist()
            bounds = [name for _, name, _, _ in rows] + [len(block)]
            for (child, _, file_type, _), (begin, end) in zip(rows, pairwise(bounds), strict=True):
                name = block[begin:end]
                if end == len(block):
                    name = name.rstrip(b"\0")
                if not name or b"\0" in name or b"/" in name or (found and name <= found[-1][0]):
                    self._fail("names in a directory that are bad or not in order", SLOT * nid)
                found.append((name, child, file_type))
        dots = [entry for entry in found if entry[0] in (b".", b"..")]
        if dots != [(b".", nid, _DIRECTORY), (b"..", parent, _DIRECTORY)]:
            self._fail("a directory whose . or .. lead elsewhere", SLOT * nid)
        return [entry for entry in found if entry not in dots]

    def _extents(self, body: int, size: int) -> list[Extent]:
        header = body + -body % 8
        low, advise, high = self._unpack(ondisk.MAP_HEADER, header)
        width = {1 | 2 << 1: 16, 1 | 3 << 1: 32}.get(advise, 0)
        if not width:
            self._fail("a file map of a form that layerstore does not write", header)
        at = header + ondisk.MAP_HEADER.size
        raw = self._bytes(at + -at % width, width * (low | high << 32))
        table = np.zeros((len(raw) // width, ondisk.RECORD.itemsize), "u1")
        table[:, :width] = np.frombuffer(raw, "u1").reshape(-1, width)
        rows = table.view(ondisk.RECORD).reshape(-1).tolist()
        starts = [row[3] | row[4] << 32 for row in rows] + [size]
        if starts[0] or any(start >= end for start, end in pairwise(starts)):
            self._fail("a file map that does not cover the file", header)
        found = []
        for row, (start, end) in zip(rows, pairwise(starts), strict=True):
            encoded, partial = row[0] & ondisk.PLEN_MASK, bool(row[0] & ondisk.PARTIAL)
            address = (row[1] | row[2] << 32) - ondisk.UNIFIED_BASE if encoded else None
            if address is not None and (
                row[0] >> 28 != ondisk.ZSTD
                or encoded > ondisk.MAX_ENCODED
                or not 0 <= address <= self._device_bytes - encoded
            ):
                self._fail("a file map that leads out of the device", header)
            found.append(Extent(start, end - start, address, encoded, partial))
        return found

    def _unpack(self, record: Struct, at: int) -> tuple[Any, ...]:
        return record.unpack(self._bytes(at, record.size))

    def _array(self, dtype: np.dtype[Any], at: int, count: int) -> Any:
        return np.frombuffer(self._bytes(at, dtype.itemsize * count), dtype)

    def _bytes(self, at: int, count: int) -> bytes:
        """These bytes of the image; each call spends of the budget."""
        self._budget -= count
        if at < 0 or at + count > len(self._data):
            self._fail("something leads out of the image", at)
        if self._budget < 0:
            self._fail("structures overlap", at)
        return self._data[at : at + count]

    def _fail(self, problem: str, at: int) -> NoReturn:
        raise CorruptStore(f"EROFS image, byte {at}: {problem}; images are a cache, remove it")
