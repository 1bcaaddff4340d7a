"""What ingest cannot do without, each stage alone in one thread: the bound that its pipeline is measured against.

    read blob > sha256 > gunzip > sha256 > cut + hash > compress the new chunks > write them

A pipeline that lost nothing would keep every core busy with exactly this: the sum of the stages' processor seconds
divided by the number of cores. Splitting the tar, looking chunks up, metadata and hand-over between threads are what an
implementation adds, so they are not in the bound; the stages get the blocks in ingest's size, warm from the stage before.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from isal import igzip_lib

from layerstore.chunking import DEFAULT_PARAMS, cut_spans
from layerstore.formats.frame import FrameEncoder
from layerstore.formats.tarsplit import TarSplitter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from benchmarks.corpora import Corpus, CorpusLayer

__all__ = ["measure_stages"]

_BLOCK = 4 << 20
_OUTPUT = 1 << 20  # larger results cost isal fresh pages each time


class _Stages:
    """Processor seconds and bytes that went in, for each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str, size: int) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
        self.bytes[name] = self.bytes.get(name, 0) + size


def measure_stages(corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Take every unique layer of a corpus through the stages; `folder` gets the file that is written.

    Returns: for each stage `cpu_s` and `mb_per_s`, in order; and `new_chunks`.
    """
    stages = _Stages()
    known: set[bytes] = set()
    encoder = FrameEncoder(threads=1)
    with (folder / "chunks").open("wb", buffering=0) as target:
        for layer in corpus.unique_layers():
            _take_through(layer, stages, known, encoder, target.fileno())
        with stages.stage("write", 0):
            os.fdatasync(target.fileno())
    (folder / "chunks").unlink()
    return {
        "new_chunks": len(known),
        "stages": {
            name: {
                "cpu_s": round(seconds, 3),
                "bytes": stages.bytes[name],
                "mb_per_s": round(stages.bytes[name] / seconds / 1e6) if seconds else 0,
            }
            for name, seconds in stages.seconds.items()
        },
    }


def _take_through(
    layer: CorpusLayer, stages: _Stages, known: set[bytes], encoder: FrameEncoder, target: int
) -> None:
    splitter = TarSplitter()
    tar = hashlib.sha256()
    carry = b""
    for block in _gunzipped(layer, stages):
        with stages.stage("sha256 tar", len(block)):
            tar.update(block)
        data = carry + block
        split = splitter.split(data)
        size = sum(length for _, length in split.spans)
        with stages.stage("cut+hash", size):
            cuts = cut_spans(data, split.spans, split.is_open, DEFAULT_PARAMS)
        uncut = size - int(cuts.lengths.sum(dtype="u8"))
        splitter.give_back(uncut)
        carry = data[split.used - uncut :]
        fresh = _fresh_chunks(
            data, split.spans, cuts.counts.tolist(), cuts.lengths, cuts.ids, known
        )
        with stages.stage("zstd-3", sum(map(len, fresh))):
            frames = encoder.encode(fresh)
        with stages.stage("write", sum(map(len, frames))):
            os.write(target, b"".join(frames))
    if f"sha256:{tar.hexdigest()}" != layer.diff_id:
        raise ValueError(f"{layer.blob} is not {layer.diff_id}")


def _gunzipped(layer: CorpusLayer, stages: _Stages) -> Iterator[bytes]:
    """Blocks of the tar; read, hash and decompress are timed, a block of each at a time."""
    blob = hashlib.sha256()
    decoder = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    parts: list[bytes] = []
    size = 0
    with layer.blob.open("rb", buffering=0) as file:
        while True:
            with stages.stage("read", 0):
                data = file.read(_BLOCK)
            stages.bytes["read"] += len(data)
            if not data:
                break
            with stages.stage("sha256 blob", len(data)):
                blob.update(data)
            while data or not decoder.needs_input:
                with stages.stage("gunzip", 0):
                    part = decoder.decompress(data, _OUTPUT)
                stages.bytes["gunzip"] += len(part)
                data = b""
                if decoder.eof:
                    data = decoder.unused_data
                    decoder = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
                parts.append(part)
                size += len(part)
                if size >= _BLOCK:
                    yield b"".join(parts)
                    parts, size = [], 0
    if parts:
        yield b"".join(parts)
    if blob.hexdigest() != layer.blob.name:
        raise ValueError(f"{layer.blob} is not what its name says")


def _fresh_chunks(
    data: bytes,
    spans: list[tuple[int, int]],
    counts: list[int],
    lengths: npt.NDArray[np.uint32],
    ids: bytes,
    known: set[bytes],
) -> list[memoryview]:
    """The chunks that were not seen before, holes left out."""
    view = memoryview(data)
    hole = bytes(32)
    sizes = lengths.tolist()
    fresh = []
    number = 0
    for (offset, _), count in zip(spans, counts, strict=True):
        for size in sizes[number : number + count]:
            key = ids[number * 32 : number * 32 + 32]
            if key != hole and key not in known:
                known.add(key)
                fresh.append(view[offset : offset + size])
            offset += size
            number += 1
    return fresh
