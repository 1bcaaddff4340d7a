"""A layer blob as pieces: verified, decompressed, verified, split as a tar, cut and hashed; nothing is stored.

Each stage runs ahead of the next in a thread of its own; their hot loops release the GIL, and what waits between them
is little, so that memory does not depend on the layer's size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.chunking import DEFAULT_PARAMS, ChunkParams, Cuts, cut_spans
from layerstore.digest import DiffID, Digest, VerifyingReader
from layerstore.errors import DigestMismatch, MalformedInput
from layerstore.formats.codecs import Compression, open_decoder
from layerstore.formats.tarsplit import Split, TarSplitter
from layerstore.ingest.ahead import Ahead

if TYPE_CHECKING:
    from collections.abc import Container, Generator, Iterable, Iterator

    import numpy.typing as npt

    from layerstore.digest import Readable
    from layerstore.limits import Limits

__all__ = [
    "Expected",
    "LayerCutter",
    "Piece",
    "chunk_starts",
    "cut_tar",
    "decode",
    "find_chunks",
    "verify_layer",
]

_BLOCK = 4 << 20  # bytes that the stages hand on at once


@dataclass(frozen=True, slots=True)
class Expected:
    """What a blob is said to be; None where nothing was said.

    Attributes:
        name: how messages call it: a file name, a digest.
        digest: of the bytes as they are read.
        size: of the bytes as they are read.
        diff_id: of the tar inside.
    """

    name: str
    digest: Digest | None = None
    size: int | None = None
    diff_id: DiffID | None = None


class Piece(NamedTuple):
    """A buffer of tar, split and cut.

    Attributes:
        starts: of the chunks, in `data`.
    """

    data: bytes
    split: Split
    cuts: Cuts
    starts: npt.NDArray[np.int64]


class LayerCutter:
    """A layer blob as pieces, with three stages that run ahead in threads; nothing is stored.

    Thread safety: one thread at a time. Close the iterator of `pieces` before what it reads from.
    """

    def __init__(
        self,
        source: Readable,
        expected: Expected,
        compression: Compression,
        limits: Limits,
        params: ChunkParams = DEFAULT_PARAMS,
    ) -> None:
        self._expected, self._compression = expected, compression
        self._limits, self._params = limits, params
        self._wire = VerifyingReader(source, expected.digest, expected.size, expected.name)
        self._tar = _Hashed(compression, self._wire)

    def pieces(self) -> Generator[Piece]:
        """All of the layer, once. Raises: MalformedInput, DigestMismatch: the blob is not what it was said to be."""
        with (
            Ahead(decode(self._wire, self._compression, self._expected, self._limits)) as decoded,
            Ahead(self._tar.through(decoded)) as hashed,
            Ahead(cut_tar(hashed, self._params)) as pieces,
        ):
            yield from pieces

    def finish(self) -> DiffID:
        """The diff ID, when `pieces` has ended. Raises: DigestMismatch: it is not what was expected."""
        diff_id = self._tar.diff_id()
        if self._expected.diff_id not in (None, diff_id):
            raise DigestMismatch(
                str(self._expected.diff_id), diff_id, self.size, source=self._expected.name
            )
        return diff_id

    @property
    def size(self) -> int:
        """Bytes of tar that were read."""
        return self._tar.size

    def digest(self) -> Digest:
        """Of the blob, when `pieces` has ended."""
        return Digest(self._wire.finish())


def verify_layer(
    source: Readable, expected: Expected, compression: Compression, limits: Limits
) -> DiffID:
    """Read a blob whose tar is stored already, to be sure that it is; returns the tar's diff ID.

    Raises: MalformedInput, DigestMismatch: as `ingest_layer`.
    """
    wire = VerifyingReader(source, expected.digest, expected.size, expected.name)
    tar = _Hashed(compression, wire)
    with Ahead(decode(wire, compression, expected, limits)) as decoded:
        for _ in tar.through(decoded):
            pass
    diff_id = tar.diff_id()
    if expected.diff_id not in (None, diff_id):
        raise DigestMismatch(str(expected.diff_id), diff_id, tar.size, source=expected.name)
    return diff_id


def find_chunks(
    source: Readable,
    expected: Expected,
    compression: Compression,
    limits: Limits,
    wanted: Container[bytes],
    *,
    params: ChunkParams = DEFAULT_PARAMS,
) -> Iterator[tuple[bytes, bytes]]:
    """Cut a layer as `ingest_layer` does and give the chunks whose IDs are `wanted`: (ID, bytes). Stores nothing.

    Raises: MalformedInput: as `ingest_layer`; chunks that came before are what their IDs say.
    """
    wire = VerifyingReader(source, expected.digest, expected.size, expected.name)
    try:
        with (
            Ahead(decode(wire, compression, expected, limits)) as decoded,
            Ahead(cut_tar(decoded, params)) as pieces,
        ):
            for piece in pieces:
                ids, lengths, starts = piece.cuts.ids, piece.cuts.lengths, piece.starts
                for row, at in enumerate(range(0, len(ids), 32)):
                    chunk_id = ids[at : at + 32]
                    if chunk_id in wanted:
                        start = int(starts[row])
                        yield chunk_id, piece.data[start : start + int(lengths[row])]
    except MalformedInput as error:
        raise error.within(source=expected.name) from error.__cause__


def decode(
    wire: VerifyingReader, compression: Compression, expected: Expected, limits: Limits
) -> Iterator[bytes]:
    """Blocks of what is inside a blob; the blob is verified before this ends."""
    decoder = open_decoder(wire, compression, expected.name)
    parts: list[bytes] = []
    size = 0
    while part := decoder.read(_BLOCK - size):
        parts.append(part)
        size += len(part)
        limits.check("layer_bytes", decoder.produced, source=expected.name)
        limits.check_growth(decoder.consumed, decoder.produced, source=expected.name)
        if size >= _BLOCK:
            yield b"".join(parts)
            parts, size = [], 0
    wire.finish()
    if parts:
        yield b"".join(parts)


class _Hashed:
    """The diff ID of what passes through; for a plain tar the blob's own digest already is it."""

    def __init__(self, compression: Compression, wire: VerifyingReader) -> None:
        self._wire = wire if compression is Compression.NONE else None
        self._hash = hashlib.sha256()
        self.size = 0

    def through(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in blocks:
            if self._wire is None:
                self._hash.update(block)
            self.size += len(block)
            yield block

    def diff_id(self) -> DiffID:
        if self._wire is not None:
            return DiffID(self._wire.finish())
        return DiffID(Digest("sha256:" + self._hash.hexdigest()))


def cut_tar(blocks: Iterable[bytes], params: ChunkParams) -> Iterator[Piece]:
    """Split and cut a tar that comes in blocks; what cannot be decided yet waits for the next block."""
    splitter = TarSplitter()
    carry = b""
    for block in blocks:
        data = carry + block if carry else block
        split = splitter.split(data)
        cuts = cut_spans(data, split.spans, split.is_open, params)
        uncut = 0
        if split.is_open:
            uncut = sum(length for _, length in split.spans) - int(cuts.lengths.sum(dtype="u8"))
            splitter.give_back(uncut)
        carry = data[split.used - uncut :]
        yield Piece(data, split, cuts, chunk_starts(split.spans, cuts))
    split = splitter.split(carry)
    rest = carry[split.used :]
    splitter.finish(rest)
    split = split._replace(
        literals=split.literals + rest, tail_literal=split.tail_literal + len(rest)
    )
    cuts = cut_spans(carry, split.spans, False, params)
    yield Piece(carry, split, cuts, chunk_starts(split.spans, cuts))


def chunk_starts(spans: list[tuple[int, int]], cuts: Cuts) -> npt.NDArray[np.int64]:
    """Where each chunk starts: chunks of a span follow one another."""
    before = np.cumsum(cuts.lengths, dtype="i8") - cuts.lengths
    offsets = np.array([offset for offset, _ in spans], "i8")
    counts = cuts.counts.astype("i8")
    firsts = np.concatenate([before, [0]])[np.cumsum(counts) - counts]
    starts: npt.NDArray[np.int64] = before + np.repeat(offsets - firsts, counts)
    return starts
