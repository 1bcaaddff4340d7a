"""Where the frames of a zstd stream begin and end, told by their headers alone; nothing is decoded.

    frame: magic[4] descriptor[1] (window, dictionary, content size)[1..13] block... checksum[0|4]
    block: header[3] = last[1 bit] type[2 bits] size[21 bits], body
    skippable frame: magic[4] size[4] body

Source: RFC 8878, section 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FrameWalk", "Step", "is_frame"]

_MAGIC = 0xFD2FB528
_SKIPPABLE = 0x184D2A50  # the low four bits are free


def is_frame(head: bytes) -> bool:
    """Whether the first four bytes of something begin a frame, of either kind."""
    magic = int.from_bytes(head[:4], "little")
    return len(head) >= 4 and (magic == _MAGIC or magic & ~0xF == _SKIPPABLE)


class Step(NamedTuple):
    """What a walk met in one buffer.

    Attributes:
        ends: offsets in the buffer, each behind a frame.
        wrong: the offset of four bytes that do not begin a frame where one must, negative if the first of them were in
            the buffer before; None where all is well. The walk is of no more use then.
    """

    ends: list[int]
    wrong: int | None


class FrameWalk:
    """A walk along a stream that comes in buffers of any size.

    Attributes:
        frames: how many have ended.

    Thread safety: one thread at a time.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._skip = 0  # bytes to pass over before the next header
        self._is_ending = False  # the frame ends behind them
        self._head = b""  # the beginning of a header that the last buffer cut
        self._next: Callable[[int], bool] = self._magic
        self._wanted = 4  # bytes of the next header
        self._checksum = 0

    @property
    def is_between(self) -> bool:
        """Whether the stream may end here: at its beginning, or behind a frame."""
        return not self._head and not self._is_inside

    @property
    def magic_seen(self) -> int:
        """How many bytes of the next frame's magic the last buffer ended with."""
        return 0 if self._is_inside else len(self._head)

    @property
    def _is_inside(self) -> bool:
        return self._is_ending or self._next != self._magic

    def step(self, data: bytes) -> Step:
        """Follow the next buffer."""
        ends: list[int] = []
        at, size = 0, len(data)
        while True:
            passed = min(self._skip, size - at)
            at += passed
            self._skip -= passed
            if self._skip:
                return Step(ends, None)
            if self._is_ending:
                self._is_ending = False
                self.frames += 1
                ends.append(at)
            head = self._head + data[at : at + self._wanted - len(self._head)]
            at += len(head) - len(self._head)
            if len(head) < self._wanted:
                self._head = head
                return Step(ends, None)
            self._head = b""
            if not self._next(int.from_bytes(head, "little")):
                return Step(ends, at - 4)

    def _magic(self, magic: int) -> bool:
        if magic == _MAGIC:
            self._next, self._wanted = self._descriptor, 1
        elif magic & ~0xF == _SKIPPABLE:
            self._next = self._skippable
        else:
            return False
        return True

    def _skippable(self, size: int) -> bool:
        self._end_behind(size)
        return True

    def _descriptor(self, descriptor: int) -> bool:
        single = descriptor >> 5 & 1
        content_size = (single, 2, 4, 8)[descriptor >> 6]
        self._skip = content_size + (0, 1, 2, 4)[descriptor & 3] + (1 - single)
        self._checksum = 4 if descriptor & 4 else 0
        self._next, self._wanted = self._block, 3
        return True

    def _block(self, header: int) -> bool:
        # A block of type 1 is one byte repeated; type 3 is reserved, and the decoder's to refuse.
        self._skip = 1 if header >> 1 & 3 == 1 else header >> 3
        if header & 1:
            self._end_behind(self._skip + self._checksum)
        return True

    def _end_behind(self, size: int) -> None:
        self._skip, self._is_ending = size, True
        self._next, self._wanted = self._magic, 4
