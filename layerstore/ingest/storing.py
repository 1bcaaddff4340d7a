"""The flow of each kind of bytes into the store: a layer, a blob kept as it is, a small document."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from layerstore.chunking import DEFAULT_PARAMS, ChunkParams, cut_spans
from layerstore.digest import DiffID, Digest, VerifyingReader
from layerstore.errors import MalformedInput
from layerstore.formats.codecs import Compression
from layerstore.formats.framesplit import FrameSplitter
from layerstore.ingest.ahead import Ahead
from layerstore.ingest.cutting import Expected, LayerCutter, chunk_starts, decode
from layerstore.ingest.recipes import RecipeWriter
from layerstore.store.catalog import LayerRecord, Stretch

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerstore.digest import Readable
    from layerstore.store.session import WriteSession

__all__ = ["IngestReport", "ingest_blob", "ingest_document", "ingest_layer"]


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What one layer brought.

    Attributes:
        diff_id: of the tar.
        size: bytes of the tar.
        entries: members of the tar.
        chunks: chunk references that are not holes.
        new_chunks: of those, what the store did not have, its metadata included.
        new_bytes: encoded bytes written for them.
        digest: of the blob as it was read.
    """

    diff_id: DiffID
    size: int
    entries: int
    chunks: int
    new_chunks: int
    new_bytes: int
    digest: Digest


def ingest_layer(
    source: Readable,
    expected: Expected,
    compression: Compression,
    session: WriteSession,
    *,
    params: ChunkParams = DEFAULT_PARAMS,
) -> IngestReport:
    """Store a layer; it is durable and visible when this returns.

    Raises:
        MalformedInput: not what it should be; names the blob, the tar entry and the offset in the tar.
        DigestMismatch: not the bytes that were promised.
        StoreFull: nothing became visible.
    """
    before = session.new_chunks, session.new_bytes
    layer = LayerCutter(source, expected, compression, session.limits, params)
    recipe = RecipeWriter(session)
    try:
        with closing(layer.pieces()) as pieces:
            for piece in pieces:
                numbers = session.put_chunks(
                    piece.data, piece.cuts.lengths, piece.cuts.ids, piece.starts
                )
                recipe.add(piece.split, piece.cuts, numbers)
                session.limits.check("entries", recipe.entries)
    except MalformedInput as error:
        raise error.within(source=expected.name) from error.__cause__
    diff_id = layer.finish()
    recipe.flush()
    with session.commit() as txn:
        record = LayerRecord(layer.size, recipe.entries, recipe.stretches(), time.time_ns())
        session.catalog.put_layer(txn, diff_id, record)
        session.hold_new(txn, diff_id)
    return IngestReport(
        diff_id,
        layer.size,
        recipe.entries,
        recipe.chunks,
        session.new_chunks - before[0],
        session.new_bytes - before[1],
        layer.digest(),
    )


def ingest_blob(
    source: Readable,
    expected: Expected,
    session: WriteSession,
    *,
    params: ChunkParams = DEFAULT_PARAMS,
) -> tuple[Stretch, ...]:
    """Store a blob as it is, zstd cut where its frames end; returns its stretches, whose chunks are flushed.

    Raises: DigestMismatch: not the bytes that were promised.
    """
    wire = VerifyingReader(source, expected.digest, expected.size, expected.name)
    recipe = RecipeWriter(session)
    splitter, carry = FrameSplitter(), b""
    with Ahead(decode(wire, Compression.NONE, expected, session.limits)) as decoded:
        for block in chain(decoded, [b""]):
            data = carry + block
            split = splitter.split(data, at_end=not block)
            cuts = cut_spans(data, split.spans, split.is_open, params)
            starts = chunk_starts(split.spans, cuts)
            recipe.add(split, cuts, session.put_chunks(data, cuts.lengths, cuts.ids, starts))
            uncut = sum(length for _, length in split.spans) - int(cuts.lengths.sum(dtype="u8"))
            splitter.give_back(uncut)
            carry = data[len(data) - uncut :]
    recipe.flush()
    session.flush()
    return recipe.stretches()


def ingest_document(data: bytes, session: WriteSession) -> Callable[[], tuple[Stretch, ...]]:
    """Store a small blob (a manifest, a config); call the result for its stretches once the session has flushed."""
    numbers = session.put_bytes(data)
    return lambda: (Stretch(tuple(session.numbers_of(numbers).tolist()), ()),)
