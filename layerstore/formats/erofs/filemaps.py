"""Where the contents of files lie in the device: the maps of all files at once.

    MAP_HEADER   RECORD of each frame, or of zeros, in the order of the file

The rules of a frame are those of Linux (docs/format.md section 2): at most 1 MiB encoded, and at any address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.errors import CorruptStore
from layerstore.formats.erofs.ondisk import (
    BLOCK,
    MAP_HEADER,
    MAX_ENCODED,
    PARTIAL,
    RECORD,
    UNIFIED_BASE,
    ZSTD,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

__all__ = ["NO_MAPS", "SPAN", "FileMaps", "map_files"]

# What a file holds from some offset on: `decoded` bytes, from the frame at `address`; `encoded` 0: zeros.
SPAN = np.dtype([("address", "<u8"), ("encoded", "<u4"), ("decoded", "<u4")])

_WIDE = 1 << 32  # bytes: files from here on need records of 32 bytes
_HEAD = np.dtype([("low", "<u4"), ("advise", "<u2"), ("high", "<u2")])  # as MAP_HEADER
_NARROW_ADVISE, _WIDE_ADVISE = 1 | 2 << 1, 1 | 3 << 1


class FileMaps(NamedTuple):
    """The maps of all files that have frames.

    Attributes:
        files: inode number of each.
        counts: records of each.
        widths: bytes of each one's records, 16 or 32.
        blocks: blocks that its frames take on disk.
        owner: of each record, the place of its file in `files`; ascending.
        records: array of RECORD.
    """

    files: Ints
    counts: Ints
    widths: Ints
    blocks: Ints
    owner: Ints
    records: npt.NDArray[np.void]

    def place(self, core: Ints) -> tuple[Ints, Ints, Ints]:
        """Where header and first record stand, and where the last one ends, behind `core` bytes of each inode."""
        header = -(-core // 8) * 8
        first = -(-(header + MAP_HEADER.size) // self.widths) * self.widths
        return header, first, first + self.widths * self.counts

    def fill(self, image: npt.NDArray[np.uint8], headers: Ints, firsts: Ints) -> None:
        """Write each file's header and records at these offsets of the image."""
        head = np.zeros(len(self.files), _HEAD)
        head["low"], head["high"] = _halves(self.counts)
        head["advise"] = np.where(self.widths == 32, _WIDE_ADVISE, _NARROW_ADVISE)
        image[headers[:, None] + np.arange(8)] = head.view("u1").reshape(-1, 8)
        rank = np.arange(len(self.owner)) - (np.cumsum(self.counts) - self.counts)[self.owner]
        at = firsts[self.owner] + rank * self.widths[self.owner]
        raw = self.records.view("u1").reshape(-1, RECORD.itemsize)
        image[at[:, None] + np.arange(16)] = raw[:, :16]
        wide = self.widths[self.owner] == 32
        image[at[wide][:, None] + np.arange(16, 32)] = raw[wide, 16:]


_NONE = np.empty(0, "i8")
NO_MAPS = FileMaps(_NONE, _NONE, _NONE, _NONE, _NONE, np.empty(0, RECORD))


def map_files(
    files: Ints,
    sizes: Ints,
    first: Ints,
    counts: Ints,
    spans: npt.NDArray[np.void],
    device_bytes: int,
) -> FileMaps:
    """Maps for those of `files` (inode numbers) that are not all zeros; each has `counts` spans from `first` on.

    Raises: CorruptStore: a span is no frame that Linux reads, or a file's do not add up to its size.
    """
    owner, number = _ranges(first, counts)
    if len(number) and int(number.max()) >= len(spans):
        raise CorruptStore("a file has extents that are not there; run `layerstore verify`")
    spans = spans[number]
    _check(spans, device_bytes)
    encoded, decoded = spans["encoded"].astype("i8"), spans["decoded"].astype("i8")
    if not np.array_equal(_sums(owner, decoded, len(files)), sizes):
        raise CorruptStore("a file's extents do not add up to its size; run `layerstore verify`")
    on_disk = _sums(owner, encoded, len(files))
    start = np.cumsum(decoded) - decoded
    start -= start[(np.cumsum(counts) - counts)[owner]]

    # One record for zeros however many chunks they were.
    hole = encoded == 0
    again = np.zeros(len(hole), "?")
    again[1:] = hole[1:] & hole[:-1] & (owner[1:] == owner[:-1])
    wanted = np.flatnonzero((on_disk[owner] > 0) & ~again)
    partial = np.where(encoded >= decoded, PARTIAL, 0)
    records = np.zeros(len(wanted), RECORD)
    records["plen"] = np.where(hole, 0, encoded | partial | ZSTD << 28)[wanted]
    address = np.where(hole, 0, spans["address"].astype("i8") + UNIFIED_BASE)
    records["address_low"], records["address_high"] = _halves(address[wanted])
    records["start_low"], records["start_high"] = _halves(start[wanted])

    kept = np.flatnonzero(on_disk)
    owner = np.searchsorted(kept, owner[wanted])
    return FileMaps(
        files[kept],
        np.bincount(owner, minlength=len(kept)),
        np.where(sizes[kept] >= _WIDE, 32, 16),
        -(-on_disk[kept] // BLOCK),
        owner,
        records,
    )


def _check(spans: npt.NDArray[np.void], device_bytes: int) -> None:
    address, encoded, decoded = (spans[name] for name in ("address", "encoded", "decoded"))
    beyond = (address > device_bytes) | (address + encoded > device_bytes)
    bad = (encoded > MAX_ENCODED) | (decoded == 0)
    bad |= (encoded > 0) & (beyond | (decoded > MAX_ENCODED))
    if bad.any():
        span = dict(zip(SPAN.names or (), spans[bad][0].item(), strict=True))
        raise CorruptStore(f"no frame that Linux reads: {span}; run `layerstore verify`")


def _ranges(first: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """`counts[i]` numbers from `first[i]` on, for all i; the first result is the i of each."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) + (first - np.cumsum(counts) + counts)[owner]


def _sums(owner: Ints, values: Ints, count: int) -> Ints:
    """The sum of the values of each owner; owners ascend."""
    total = np.concatenate([[0], np.cumsum(values)])
    return np.diff(total[np.searchsorted(owner, np.arange(count + 1))])


def _halves(values: Ints) -> tuple[Ints, Ints]:
    return values & 0xFFFFFFFF, values >> 32
