"""One chunk as one standard zstd frame.

The frame is what Linux's EROFS decodes in place ("encoded extents"), which sets the rules: exactly one frame, with
magic and content checksum (the kernel verifies it too), window at most 1 MiB, no dictionary, encoded length at most
1 MiB. Bytes that do not compress are a zstd frame as well, of raw blocks.

Source: RFC 8878; Linux `fs/erofs/decompressor_zstd.c`, `Z_EROFS_ZSTD_MAX_DICT_SIZE` and `Z_EROFS_PCLUSTER_MAX_SIZE`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["DEFAULT_LEVEL", "MAX_DECODED", "MAX_ENCODED", "FrameEncoder", "decode_frames"]

DEFAULT_LEVEL = 3
MAX_ENCODED = 1 << 20
# The encoder's worst case adds a few bytes for each 128 KiB block; this leaves room below MAX_ENCODED.
MAX_DECODED = (1 << 20) - 4096

_THREADS_PAY_FROM = 256 << 10  # bytes; below that starting threads costs more than it saves


class FrameEncoder:
    """Encode chunks, many in one call and without the GIL.

    Thread safety: one call at a time.
    """

    def __init__(self, level: int = DEFAULT_LEVEL, threads: int = 1) -> None:
        self._encoder = zstandard.ZstdCompressor(level=level, write_checksum=True)
        self._threads = threads

    def encode(self, chunks: Sequence[memoryview | bytes]) -> list[memoryview]:
        """Encode each chunk (1..MAX_DECODED bytes) as one frame; the frames come in the same order.

        Raises: MemoryError.
        """
        if not chunks:
            return []
        total = sum(map(len, chunks))
        threads = self._threads if total >= _THREADS_PAY_FROM else 0
        try:
            return _segments(self._encoder.multi_compress_to_buffer(list(chunks), threads=threads))
        except zstandard.ZstdError as error:  # any bytes can be encoded: it had no memory or thread
            raise MemoryError(f"no memory to compress chunks: {error}") from error


def decode_frames(
    data: bytes, segments: npt.NDArray[np.uint64], decoded: npt.NDArray[np.uint64], threads: int = 0
) -> list[memoryview]:
    """Decode frames that lie at `segments` ([offset, length] rows) of `data`, whose contents are `decoded` bytes long.

    The content checksum of every frame is verified.

    Raises: zstandard.ZstdError: a frame is damaged; which one is not said.
    """
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 20)  # one is not for several threads
    frames = zstandard.BufferWithSegments(data, np.ascontiguousarray(segments, "<u8").tobytes())
    sizes = np.ascontiguousarray(decoded, "<u8").tobytes()
    return _segments(
        decoder.multi_decompress_to_buffer(frames, decompressed_sizes=sizes, threads=threads)
    )


def _segments(collection: Any) -> list[memoryview]:
    """The binding's collection, which has a length and items but is no sequence to the type checker."""
    return [memoryview(collection[position]) for position in range(len(collection))]
