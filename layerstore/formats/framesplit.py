"""A blob that is kept as it is to literals and spans, for the cutter of chunks: any bytes, and zstd frame by frame.

    frame | frame | tiny | tiny | frame | skippable frame ...
    span    span    literals      span    span

Writers of zstd:chunked begin a frame with every file, so equal files are equal frames wherever they lie. A frame is a span
of its own, and chunks of equal frames are equal too. Tiny ones (a tar header each, which differs by its mtime) are literals,
as headers are in a tar: a chunk of their own would cost more than it could share. Bytes that are no frames are one span.

What it saves: docs/benchmarks.md, "zstd layers that are kept".
"""

from __future__ import annotations

from itertools import pairwise

from layerstore.formats.tarsplit import Split
from layerstore.formats.zstdframes import FrameWalk

__all__ = ["FrameSplitter"]

_TINY = 256  # bytes of a frame; on images made by skopeo, 128 and 512 both give more chunks or more bytes


class FrameSplitter:
    """Splits a blob that arrives in buffers of any size. Thread safety: one thread at a time."""

    def __init__(self) -> None:
        self._walk: FrameWalk | None = FrameWalk()  # until something is no frame
        self._followed = 0  # bytes at the beginning of the next buffer that the walk knows
        self._is_rest = False  # whether the next buffer begins inside of a frame
        self._last = 0  # where the last span of this one begins
        self._size = 0

    def split(self, data: bytes, *, at_end: bool) -> Split:
        """Split the next buffer; what `give_back` was told of comes first in it."""
        bounds = [0, *self._ends(data), len(data)]
        spans, literals, before, waiting = [], [], [], 0
        for index, (start, end) in enumerate(pairwise(bounds)):
            is_whole = index < len(bounds) - 2 and (index or not self._is_rest)
            if is_whole and end - start < _TINY:
                literals.append(data[start:end])
                waiting += end - start
            elif start < end:
                spans.append((start, end - start))
                before.append(waiting)
                waiting = 0
        self._last, self._size = bounds[-2], len(data)
        self._is_rest = self._is_rest and len(bounds) == 2
        is_open = not at_end and self._last < len(data)
        return Split(b"".join(literals), spans, before, waiting, [], is_open, len(data))

    def give_back(self, size: int) -> None:
        """Say how many bytes of the last span were not cut: they are the first of the next buffer."""
        self._is_rest |= self._size - size > self._last
        self._followed = size

    def _ends(self, data: bytes) -> list[int]:
        """Where frames end."""
        if self._walk is None:
            return []
        ends, wrong = self._walk.step(data[self._followed :])
        if wrong is not None:
            self._walk = None
        return [self._followed + end for end in ends]
