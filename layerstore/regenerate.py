"""A gzip blob, made again from the tar that the store holds and the blob's recipe: from any byte on, on all cores.

    tar of the layer ──▶ text of each segment ──▶ joined, by several threads ──▶ in order, put together ──▶ blob

A segment is about a MiB and needs at most 128 KiB of tar before it, so a range costs no more than the segments that it
touches. Memory: a few MiB for each thread, beside the recipe.

What comes out is not hashed here: `emit` does that, and `images.convert` before a recipe is trusted.

Source: docs/format.md, "Recipes of blobs".
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from layerstore.errors import CorruptStore
from layerstore.formats.gzipsplit import Joiner, decode_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerstore.store.catalog import BlobRecord, LayerRecord, Stretch
    from layerstore.store.store import Store

__all__ = ["iter_regenerated"]

_MAX_THREADS = 8


def iter_regenerated(
    store: Store,
    blob: BlobRecord,
    layer: LayerRecord,
    *,
    start: int = 0,
    end: int | None = None,
    threads: int | None = None,
) -> Iterator[bytes]:
    """The bytes of a regenerated blob from `start` to `end`, in blocks of a MiB or so; on all cores by default.

    Raises: CorruptStore: the recipe or the tar is damaged. Unsupported: the native kernels are missing.
    """
    data = b"".join(store.reader.iter_stream(blob.stretches))
    joiner = Joiner(decode_recipe(data))
    if joiner.recipe.plain_size != layer.size or joiner.recipe.blob_size != blob.size:
        raise CorruptStore("the recipe of a blob is not that of its layer; run `layerstore verify`")
    end = blob.size if end is None else end
    if start >= end:
        return
    # From the segment of the first byte's first bit to that of the last one's last.
    first = bisect_right(joiner.first_bits, start * 8) - 1
    wanted = range(first, bisect_left(joiner.first_bits, end * 8))
    parts = _joined(joiner, wanted, _texts(store, layer.stretches, joiner, wanted), threads)
    at = joiner.first_bits[first] >> 3
    for block in _put_together(joiner, wanted, parts):
        if part := block[max(start - at, 0) : end - at]:
            yield part
        at += len(block)


def _texts(
    store: Store, stretches: Sequence[Stretch], joiner: Joiner, wanted: range
) -> Iterator[bytes]:
    """The plain bytes that each of these segments is joined from; the tar is read once."""
    at = joiner.spans[wanted.start].offset
    blocks = store.reader.iter_stream(stretches, at)
    window = b""  # of the tar, from `at` on
    for span in joiner.spans[wanted.start : wanted.stop]:
        window, at = window[span.offset - at :], span.offset
        parts, have = [window], len(window)
        while have < span.size and (block := next(blocks, None)) is not None:
            parts.append(block)
            have += len(block)
        window = b"".join(parts) if len(parts) > 1 else window
        if have < span.size:
            raise CorruptStore(
                "a layer is shorter than the recipe of its blob; run `layerstore verify`"
            )
        yield window[: span.size]


def _joined(
    joiner: Joiner, segments: range, texts: Iterator[bytes], threads: int | None
) -> Iterator[bytes]:
    """The segments, in order, while others are under way."""
    wanted = min(threads or os.cpu_count() or 1, _MAX_THREADS, len(segments))
    if wanted <= 1:
        yield from (joiner.join(i, text) for i, text in zip(segments, texts, strict=True))
        return
    running: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(wanted, "layerstore-join") as pool:
        try:
            for i, text in zip(segments, texts, strict=True):
                running.append(pool.submit(joiner.join, i, text))
                if len(running) > wanted:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _put_together(joiner: Joiner, segments: range, parts: Iterator[bytes]) -> Iterator[bytes]:
    """Whole bytes: one that two segments share waits for the second. That before the first segment reads as zeros."""
    shared = 0
    for part, end in zip(
        parts, joiner.first_bits[segments.start + 1 : segments.stop + 1], strict=True
    ):
        block = bytearray(part)
        if block:
            block[0] |= shared
            shared = block.pop() if end & 7 else 0
        yield bytes(block)
