"""Where everything of an EROFS image goes, for all inodes at once; `writer` says what is in it.

    block 0        superblock, zstd settings, device
    block 1 …      shared attributes   inodes with all that stands behind them, in the order of the tree
    then           directory blocks and link texts that do not stand behind an inode

Only placing inodes one after another is a loop, since what is in an INLINE inode may not cross a block; the rest is
numpy over all inodes, entries or spans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.errors import InvalidArgument
from layerstore.formats.erofs import ondisk
from layerstore.formats.erofs.attributes import encode_attribute, pack_attributes
from layerstore.formats.erofs.dirents import Directories, arrange_directories, scatter
from layerstore.formats.erofs.filemaps import NO_MAPS, FileMaps, map_files
from layerstore.formats.erofs.ondisk import BLOCK, SLOT, Feature, Layout
from layerstore.tree import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Bools = npt.NDArray[np.bool_]
    Ints = npt.NDArray[np.int64]
    Octets = npt.NDArray[np.uint8]

__all__ = ["NO_CONTENT", "Plan", "lay_out"]

NO_CONTENT = -1

_REDIRECT = b"trusted.overlay.redirect"
# A directory's last block stands behind its inode up to this size: not to cross a block may waste as much.
_MAX_INLINE_DIRECTORY = 2048
_CHUNK_FORMAT = 31  # log2 of the blocks in a chunk of CHUNK_SPAN bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What an image shows.

    Attributes:
        inodes, parents, children, names, targets, sets: a tree, as in `tree.Tree`; the order in each of `sets` is
            the order on disk.
        uuid: 16 bytes.
        content: for each inode a number in `paths`, or NO_CONTENT; None for no paths at all.
        paths: where overlayfs finds the contents; all of one length.
        spans: array of SPAN, numbered as `extent` in inodes says; None if all files are holes.
        device_bytes: size of the chunk file; 0 for no device.
    """

    inodes: npt.NDArray[np.void]
    parents: npt.NDArray[np.uint32]
    children: npt.NDArray[np.uint32]
    names: Sequence[bytes]
    targets: Sequence[bytes]
    sets: Sequence[dict[bytes, bytes]]
    uuid: bytes
    content: Ints | None = None
    paths: Sequence[bytes] = ()
    spans: npt.NDArray[np.void] | None = None
    device_bytes: int = 0


def lay_out(plan: Plan) -> bytes:
    """The image of a plan.

    Raises:
        CorruptStore: a span is no frame that Linux reads, or a file's do not add up to its size.
        InvalidArgument: the image would be larger than 64 GiB.
    """
    is_directory = plan.inodes["kind"] == Kind.DIRECTORY
    directories = arrange_directories(is_directory, plan.parents, plan.children, plan.names)
    maps = _map_files(plan)
    behind = _Attributes.of(plan)
    shape = _measure(plan, directories, maps, behind.lengths)

    begin = BLOCK + -(-len(behind.shared) // SLOT) * SLOT
    at, end = _place(begin, shape.core + shape.content, shape.inline)
    first_block = -(-end // BLOCK) + np.cumsum(shape.outside) - shape.outside
    blocks = -(-end // BLOCK) + int(shape.outside.sum())
    if blocks * BLOCK > ondisk.UNIFIED_BASE:
        raise InvalidArgument(f"an image of {blocks * BLOCK} bytes would overlap its device")

    image = np.zeros(blocks * BLOCK, "u1")
    image[BLOCK : BLOCK + len(behind.shared)] = np.frombuffer(behind.shared, "u1")
    behind.fill(image, at + ondisk.INODE.itemsize)
    content = at + shape.core
    _fill_inodes(image, plan, at, shape, _meaning(plan, shape, maps, first_block), behind.lengths)
    _fill_holes(image, content, shape)
    _fill_links(image, plan, content, first_block * BLOCK, shape)
    _fill_directories(image, plan, directories, at, content, first_block, shape)
    header, first, _ = maps.place(shape.core[maps.files])
    maps.fill(image, at[maps.files] + header, at[maps.files] + first)
    _fill_head(image, plan, shape, int(at[0]) // SLOT, bool(behind.shared))
    return image.tobytes()


def _map_files(plan: Plan) -> FileMaps:
    if plan.spans is None:
        return NO_MAPS
    files = np.flatnonzero((plan.inodes["kind"] == Kind.FILE) & (plan.inodes["size"] > 0))
    sizes, first, counts = (
        plan.inodes[name][files].astype("i8") for name in ("size", "extent", "extents")
    )
    return map_files(files, sizes, first, counts, plan.spans, plan.device_bytes)


@dataclass(frozen=True, slots=True)
class _Attributes:
    """What stands behind each inode: the body of its set, and for a file with a path the entry that says it."""

    plan: Plan
    shared: bytes
    bodies: list[Octets]  # of each set; the last is for none
    lengths: Ints  # by inode
    redirects: Octets  # one row for each path

    @classmethod
    def of(cls, plan: Plan) -> _Attributes:
        number = plan.inodes["xattrs"]
        uses = np.bincount(number[number >= 0], minlength=len(plan.sets))
        packed = pack_attributes(plan.sets, uses.tolist())
        bodies = [np.frombuffer(body, "u1") for body in (*packed.bodies, b"")]
        redirects = _redirects(plan.paths)
        lengths = np.array([len(body) for body in bodies], "i8")[number]
        if plan.content is not None:
            lengths[plan.content != NO_CONTENT] += redirects.shape[1]
        return cls(plan, packed.shared, bodies, lengths, redirects)

    def fill(self, image: Octets, at: Ints) -> None:
        number = self.plan.inodes["xattrs"]
        order = np.argsort(number, kind="stable")
        numbers, first = np.unique(number[order], return_index=True)
        for one, members in zip(numbers.tolist(), np.split(order, first[1:]), strict=True):
            body = self.bodies[one]
            image[at[members][:, None] + np.arange(len(body))] = body
        if self.plan.content is not None:
            files = np.flatnonzero(self.plan.content != NO_CONTENT)
            width = self.redirects.shape[1]
            entry = (at + self.lengths - width)[files]
            image[entry[:, None] + np.arange(width)] = self.redirects[self.plan.content[files]]


def _redirects(paths: Sequence[bytes]) -> Octets:
    """One row for each path: the attribute that leads there."""
    width = len(paths[0]) if paths else 0
    template = np.frombuffer(encode_attribute(_REDIRECT, bytes(width)), "u1")
    rows = np.tile(template, (len(paths), 1))
    value = len(encode_attribute(_REDIRECT, b""))  # its name ends at a multiple of 4
    rows[:, value : value + width] = np.frombuffer(b"".join(paths), "u1").reshape(-1, width or 1)
    return rows


class _Shape(NamedTuple):
    """How large everything is, by inode.

    Attributes:
        core: bytes of the inode and its attributes.
        content: bytes that stand behind them.
        outside: blocks elsewhere.
        inline: whether what stands behind may not cross a block.
        layout: of the inode.
        size: as stat says.
    """

    core: Ints
    content: Ints
    outside: Ints
    inline: Bools
    layout: Ints
    size: Ints


def _measure(plan: Plan, directories: Directories, maps: FileMaps, attributes: Ints) -> _Shape:
    kind = plan.inodes["kind"]
    is_link = kind == Kind.SYMLINK
    core = ondisk.INODE.itemsize + attributes
    target_size = np.array([*map(len, plan.targets), 0], "i8")  # the last for inodes without
    size = np.where(kind == Kind.FILE, plan.inodes["size"].astype("i8"), 0)
    size[is_link] = target_size[plan.inodes["target"][is_link]]
    size[directories.inodes] = (directories.blocks - 1) * BLOCK + directories.tails

    tail = np.where(is_link, size, 0)
    tail[directories.inodes] = directories.tails
    inline = (tail > 0) & (core + tail <= BLOCK) & (is_link | (tail <= _MAX_INLINE_DIRECTORY))
    outside = np.where(tail > 0, -(-size // BLOCK) - inline, 0)

    layout = np.where(inline, Layout.INLINE, Layout.PLAIN)
    holes = (kind == Kind.FILE) & (size > 0)
    layout[holes], layout[maps.files] = Layout.CHUNKS, Layout.RECORDS
    content = np.where(inline, tail, 0)
    content[holes] = 4 * -(-size[holes] // ondisk.CHUNK_SPAN)
    content[maps.files] = maps.place(core[maps.files])[2] - core[maps.files]
    return _Shape(core, content, outside, inline, layout, size)


def _place(begin: int, lengths: Ints, unbroken: Bools) -> tuple[Ints, int]:
    """Offsets of inodes of these lengths, one behind another, and the end; unbroken ones do not cross a block."""
    found, at = [], begin
    for length, whole in zip(lengths.tolist(), unbroken.tolist(), strict=True):
        at = (at + SLOT - 1) & -SLOT
        if whole and (at & (BLOCK - 1)) + length > BLOCK:
            at = (at + BLOCK - 1) & -BLOCK
        found.append(at)
        at += length
    return np.array(found, "i8"), at


def _meaning(plan: Plan, shape: _Shape, maps: FileMaps, first_block: Ints) -> Ints:
    """The field `u` of each inode."""
    kind = plan.inodes["kind"]
    u = np.where(shape.outside > 0, first_block, 0)
    u[shape.layout == Layout.CHUNKS] = _CHUNK_FORMAT
    u[maps.files] = maps.blocks
    special = (kind == Kind.CHARACTER) | (kind == Kind.BLOCK)
    major, minor = (plan.inodes[name][special].astype("i8") for name in ("major", "minor"))
    u[special] = minor & 0xFF | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12
    return u


def _fill_inodes(
    image: Octets, plan: Plan, at: Ints, shape: _Shape, u: Ints, attributes: Ints
) -> None:
    inodes, header = plan.inodes, ondisk.ATTRIBUTES_HEADER.size
    found = np.zeros(len(inodes), ondisk.INODE)
    found["format"] = 1 | shape.layout << 1
    found["attributes"] = np.where(attributes > 0, (attributes - header) // 4 + 1, 0)
    found["mode"] = ondisk.TYPE_BITS[inodes["kind"]] | inodes["mode"] & 0o7777
    found["size"] = shape.size
    found["u"], found["high"] = u & 0xFFFFFFFF, u >> 32
    found["ino"] = np.arange(1, len(inodes) + 1)
    for name in ("uid", "gid", "mtime", "nsec", "nlink"):
        found[name] = inodes[name]
    slots = image.reshape(-1, SLOT)
    raw = found.view("u1").reshape(-1, 2, SLOT)
    slots[at // SLOT], slots[at // SLOT + 1] = raw[:, 0], raw[:, 1]


def _fill_holes(image: Octets, content: Ints, shape: _Shape) -> None:
    holes = np.flatnonzero(shape.layout == Layout.CHUNKS)
    lengths = shape.content[holes]
    ones = np.full(int(lengths.max(initial=0)), 0xFF, "u1")
    scatter(image, content[holes], ones, np.zeros_like(holes), lengths)


def _fill_links(image: Octets, plan: Plan, content: Ints, elsewhere: Ints, shape: _Shape) -> None:
    links = np.flatnonzero((plan.inodes["kind"] == Kind.SYMLINK) & (shape.size > 0))
    ends = np.cumsum(np.fromiter(map(len, plan.targets), "i8", len(plan.targets)))
    lengths = shape.size[links]
    targets = np.frombuffer(b"".join(plan.targets), "u1")
    at = np.where(shape.inline, content, elsewhere)[links]
    scatter(image, at, targets, ends[plan.inodes["target"][links]] - lengths, lengths)


def _fill_directories(
    image: Octets,
    plan: Plan,
    directories: Directories,
    at: Ints,
    content: Ints,
    first_block: Ints,
    shape: _Shape,
) -> None:
    count, ordinal = directories.blocks, directories.block_owner
    owner = directories.inodes[ordinal]
    rank = np.arange(len(owner)) - (np.cumsum(count) - count)[ordinal]
    behind = shape.inline[owner] & (rank == count[ordinal] - 1)
    addresses = np.where(behind, content[owner], (first_block[owner] + rank) * BLOCK)
    directories.fill(image, addresses, at // SLOT, ondisk.FILE_TYPES[plan.inodes["kind"]])


def _fill_head(image: Octets, plan: Plan, shape: _Shape, root: int, shared: bool) -> None:
    features = Feature.ZERO_PADDING
    compressed = bool((shape.layout == Layout.RECORDS).any())
    if compressed:
        features |= Feature.COMPRESSION_SETTINGS
    # Metadata images do without, so that kernels before 6.15 take them.
    big = compressed or root > ondisk.MAX_SMALL_ROOT or plan.device_bytes > 0
    if big:
        features |= Feature.BIG_ADDRESSES
    if (shape.layout == Layout.CHUNKS).any():
        features |= Feature.CHUNKED_FILE
    if plan.device_bytes:
        features |= Feature.DEVICE_TABLE
    blocks = len(image) // BLOCK
    head = bytearray(BLOCK)
    ondisk.SUPERBLOCK.pack_into(
        head, ondisk.SUPERBLOCK_OFFSET,
        ondisk.MAGIC, 0, ondisk.COMPATIBLE, BLOCK.bit_length() - 1, 0, blocks >> 32 if big else root, len(plan.inodes), 0, 0,
        blocks & 0xFFFFFFFF, 0, int(shared), plan.uuid, b"", features, ondisk.ALGORITHMS if compressed else 0,
        int(plan.device_bytes > 0), ondisk.DEVICE_OFFSET // ondisk.DEVICE.size, 0, 0, 0, 0, 0, 0, root if big else 0,
    )  # fmt: skip
    if compressed:
        settings = ondisk.SUPERBLOCK_OFFSET + ondisk.SUPERBLOCK.size
        ondisk.ZSTD_SETTINGS.pack_into(head, settings, 6, 0, ondisk.WINDOW_LOG - 10)
    if plan.device_bytes:
        size, base = -(-plan.device_bytes // BLOCK), ondisk.UNIFIED_BASE // BLOCK
        low = (size & 0xFFFFFFFF, base & 0xFFFFFFFF)
        ondisk.DEVICE.pack_into(head, ondisk.DEVICE_OFFSET, b"chunks", *low, size >> 32, base >> 32)
    checksum = ondisk.SUPERBLOCK_OFFSET + 4
    covered = bytes(head[checksum + 4 :])
    head[checksum : checksum + 4] = ondisk.crc32c(covered, ondisk.CHECKSUM_SEED).to_bytes(
        4, "little"
    )
    image[:BLOCK] = np.frombuffer(head, "u1")
