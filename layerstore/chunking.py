"""Where file contents are cut into chunks.

Cuts are content defined (a gear hash with normalised masks), inside one file's payload and never across files, so
that equal files, and equal stretches of files, give equal chunks wherever they lie. The parameters are part of the
format: a store cut with other values is still read, but shares nothing with what is cut now.

A kind of file whose head is volatile is cut after it: a `.pyc` has its source's mtime in bytes 8 to 12, and all behind
them is the same in every build (PEP 552). The source's size, which comes next, belongs to what stays: with it the head
would be another for each file, and not one for all that were unpacked in the same second.

Source: W. Xia et al., "FastCDC", USENIX ATC 2016 (normalised chunking); the hash itself is in `kernels.cut_hash`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore import kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["DEFAULT_PARAMS", "HOLE_ID", "ChunkParams", "Cuts", "cut_spans", "volatile_head"]

HOLE_ID = bytes(
    32
)  # a chunk of zeros needs no bytes anywhere; no BLAKE3 output is expected to be zero

_PYC_HEAD = 12  # magic, flags, source mtime (PEP 552)


@dataclass(frozen=True, slots=True)
class ChunkParams:
    """Sizes in bytes; `strict_bits` zero bits end a chunk before `normal_size`, `loose_bits` after it."""

    min_size: int = 8 << 10
    normal_size: int = 32 << 10
    max_size: int = 128 << 10
    strict_bits: int = 16
    loose_bits: int = 13


DEFAULT_PARAMS = ChunkParams()


class Cuts(NamedTuple):
    """The chunks of some spans, in order.

    Attributes:
        counts: chunks of each span.
        lengths: bytes of each chunk.
        ids: 32 bytes for each chunk, `HOLE_ID` for one of zeros.
    """

    counts: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.uint32]
    ids: bytes


def cut_spans(
    data: bytes, spans: Sequence[tuple[int, int]], last_is_open: bool, params: ChunkParams
) -> Cuts:
    """Cut and name the chunks of `spans`, pairs of (offset, length) in `data`.

    When the last span is open (its payload goes on behind `data`), bytes whose cut depends on what follows are left
    out: give them again, in front of what follows.
    """
    packed = np.array(spans, dtype="<u8").tobytes()
    counts, lengths, ids = kernels.cut_hash(
        data,
        packed,
        params.min_size,
        params.normal_size,
        params.max_size,
        params.strict_bits,
        params.loose_bits,
        last_is_open,
    )
    return Cuts(np.frombuffer(counts, "<u4"), np.frombuffer(lengths, "<u4"), ids)


def volatile_head(path: bytes) -> int:
    """How many bytes at the front of this file differ from build to build; 0 for most."""
    return _PYC_HEAD if path.endswith(b".pyc") else 0
