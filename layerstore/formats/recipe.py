"""How a stream of bytes (a layer tar, a kept blob) is written down: parts that join to it exactly.

A part stands for a stretch of the stream. Joining it: for each op, give `literal` bytes of the part's literals, then
the contents of the next `extents` extents.

    part:   magic "LSP1"   u32 ops   u32 extents   u32 rows   u32 paths   u32 links   u32 extras
            ops     (u32 literal, u32 extents)          as byte planes
            extents (u64 number, u32 length)            numbers as differences, as byte planes
            rows    ROW                                 as byte planes
            paths, links, extras                        heaps

"As byte planes": all first bytes of the records, then all second bytes …; zstd then finds the constant columns. The
literals of a part are kept beside it, as chunks of their own, because mounting does not need them.

Source: docs/format.md, "Parts".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from layerstore.errors import CorruptStore
from layerstore.tree import EXTENT, ROW, Entries

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["OP", "Part", "decode_extents", "decode_part", "encode_part"]

OP = np.dtype([("literal", "<u4"), ("extents", "<u4")])

_MAGIC = b"LSP1"
_HEADER = struct.Struct("<4s6I")


@dataclass(frozen=True, slots=True)
class Part:
    """One stretch of a stream.

    Attributes:
        ops: array of OP.
        extents: array of EXTENT; number 0 is a hole of zeros.
        entries: the layer's entries whose headers lie in this stretch; none for a blob.
    """

    ops: npt.NDArray[np.void]
    extents: npt.NDArray[np.void]
    entries: Entries

    @property
    def length(self) -> int:
        """Bytes of the stretch."""
        return int(self.ops["literal"].sum(dtype="u8") + self.extents["length"].sum(dtype="u8"))


def encode_part(part: Part) -> bytes:
    """Write a part down."""
    entries = part.entries
    sizes = (len(entries.rows), len(entries.paths), len(entries.links), len(entries.extras))
    extents = part.extents.copy()
    extents["number"][1:] -= part.extents["number"][:-1]  # wraps around, and back again when read
    return b"".join(
        (
            _HEADER.pack(_MAGIC, len(part.ops), len(part.extents), *sizes),
            _to_planes(part.ops),
            _to_planes(extents),
            _to_planes(entries.rows),
            entries.paths,
            entries.links,
            entries.extras,
        )
    )


def decode_part(data: bytes) -> Part:
    """The inverse of `encode_part`.

    Raises: CorruptStore: not a part, or its lengths do not add up.
    """
    ops_end, extents_end, rows_end, heaps = _borders(data)
    table = _extents(data[ops_end:extents_end])
    paths_end = rows_end + heaps[0]
    links_end = paths_end + heaps[1]
    return Part(
        _from_planes(data[_HEADER.size : ops_end], OP),
        table,
        Entries(
            _from_planes(data[extents_end:rows_end], ROW),
            data[rows_end:paths_end],
            data[paths_end:links_end],
            data[links_end:],
        ),
    )


def decode_extents(data: bytes) -> npt.NDArray[np.void]:
    """Only the extents of an encoded part: array of EXTENT. Raises: as `decode_part`."""
    ops_end, extents_end, _, _ = _borders(data)
    return _extents(data[ops_end:extents_end])


def _borders(data: bytes) -> tuple[int, int, int, list[int]]:
    """Where the ops, the extents and the rows of an encoded part end, and the lengths of its heaps."""
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise CorruptStore("a recipe part has no header; run `layerstore verify`")
    _, ops, extents, rows, *heaps = _HEADER.unpack_from(data)
    ops_end = _HEADER.size + ops * OP.itemsize
    extents_end = ops_end + extents * EXTENT.itemsize
    rows_end = extents_end + rows * ROW.itemsize
    if rows_end + sum(heaps) != len(data):
        raise CorruptStore("a recipe part has the wrong length; run `layerstore verify`")
    return ops_end, extents_end, rows_end, heaps


def _extents(planes: bytes) -> npt.NDArray[np.void]:
    table = _from_planes(planes, EXTENT)
    np.cumsum(table["number"], out=table["number"])
    return table


def _to_planes(records: npt.NDArray[np.void]) -> bytes:
    size = records.dtype.itemsize
    return np.ascontiguousarray(records).view("u1").reshape(-1, size).T.tobytes()


def _from_planes(data: bytes, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    planes = np.frombuffer(data, "u1").reshape(dtype.itemsize, -1)
    return planes.T.copy().view(dtype).reshape(-1)  # a copy: of one record the transpose is a view
