"""Bytes come in: a layer blob to chunks, recipe and tree; a blob kept as it is.

    blob > verify > decompress > verify > split tar > cut + hash > look up > compress new > append > recipe > commit

The first four stages each run ahead in a thread of their own; their hot loops release the GIL, and the queues between
them are short, so that memory does not depend on the layer's size.

Source: docs/architecture.md, "One image on its way in".
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, Self, TypeVar

import numpy as np

from layerstore.chunking import DEFAULT_PARAMS, ChunkParams, Cuts, cut_spans
from layerstore.digest import DiffID, Digest, VerifyingReader
from layerstore.errors import DigestMismatch, MalformedInput
from layerstore.formats.codecs import Compression, open_decoder
from layerstore.formats.layertar import entries_of
from layerstore.formats.recipe import OP, Part, encode_part
from layerstore.formats.tarsplit import Split, TarSplitter
from layerstore.store.catalog import LayerRecord, Stretch
from layerstore.tree import EXTENT, HOLE, Entries, concat_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Generator, Iterable, Iterator
    from types import TracebackType

    import numpy.typing as npt

    from layerstore.digest import Readable
    from layerstore.limits import Limits
    from layerstore.store.session import WriteSession

__all__ = [
    "Expected",
    "IngestReport",
    "LayerCutter",
    "Piece",
    "find_chunks",
    "ingest_blob",
    "ingest_document",
    "ingest_layer",
    "verify_layer",
]

_BLOCK = 4 << 20  # bytes that the stages hand on at once
_AHEAD = 3  # blocks that a stage may be ahead of the next
_PART_BYTES = 768 << 10  # about what a part and its literals hold
_HELD_BYTES = 16 << 20  # parts that wait for their chunk numbers

_POLL_S = 0.1  # how soon a stage notices that it is no longer wanted
_PATIENCE_S = 5.0

T = TypeVar("T")


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
    recipe = _RecipeWriter(session)
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
            _Ahead(_decode(self._wire, self._compression, self._expected, self._limits)) as decoded,
            _Ahead(self._tar.through(decoded)) as hashed,
            _Ahead(_cut(hashed, self._params)) as pieces,
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
    with _Ahead(_decode(wire, compression, expected, limits)) as decoded:
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
            _Ahead(_decode(wire, compression, expected, limits)) as decoded,
            _Ahead(_cut(decoded, params)) as pieces,
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


def ingest_blob(
    source: Readable,
    expected: Expected,
    session: WriteSession,
    *,
    params: ChunkParams = DEFAULT_PARAMS,
) -> tuple[Stretch, ...]:
    """Store a blob as it is; returns its stretches, whose chunks are flushed.

    Raises: DigestMismatch: not the bytes that were promised.
    """
    wire = VerifyingReader(source, expected.digest, expected.size, expected.name)
    recipe = _RecipeWriter(session)
    carry = b""
    with _Ahead(_decode(wire, Compression.NONE, expected, session.limits)) as decoded:
        for block in decoded:
            carry = _put_stretch(carry + block, True, session, recipe, params)
    _put_stretch(carry, False, session, recipe, params)
    recipe.flush()
    session.flush()
    return recipe.stretches()


def ingest_document(data: bytes, session: WriteSession) -> Callable[[], tuple[Stretch, ...]]:
    """Store a small blob (a manifest, a config); call the result for its stretches once the session has flushed."""
    numbers = session.put_bytes(data)
    return lambda: (Stretch(tuple(session.numbers_of(numbers).tolist()), ()),)


def _decode(
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


def _cut(blocks: Iterable[bytes], params: ChunkParams) -> Iterator[Piece]:
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
        yield Piece(data, split, cuts, _starts(split.spans, cuts))
    split = splitter.split(carry)
    rest = carry[split.used :]
    splitter.finish(rest)
    split = split._replace(
        literals=split.literals + rest, tail_literal=split.tail_literal + len(rest)
    )
    cuts = cut_spans(carry, split.spans, False, params)
    yield Piece(carry, split, cuts, _starts(split.spans, cuts))


def _starts(spans: list[tuple[int, int]], cuts: Cuts) -> npt.NDArray[np.int64]:
    """Where each chunk starts: chunks of a span follow one another."""
    before = np.cumsum(cuts.lengths, dtype="i8") - cuts.lengths
    offsets = np.array([offset for offset, _ in spans], "i8")
    counts = cuts.counts.astype("i8")
    firsts = np.concatenate([before, [0]])[np.cumsum(counts) - counts]
    starts: npt.NDArray[np.int64] = before + np.repeat(offsets - firsts, counts)
    return starts


def _put_stretch(
    data: bytes, is_open: bool, session: WriteSession, recipe: _RecipeWriter, params: ChunkParams
) -> bytes:
    """Cut and store bytes without structure; returns what has to come again."""
    spans = [(0, len(data))] if data else []
    cuts = cut_spans(data, spans, is_open, params)
    numbers = session.put_chunks(data, cuts.lengths, cuts.ids, _starts(spans, cuts))
    recipe.add(Split(b"", spans, [0] * len(spans), 0, [], is_open, len(data)), cuts, numbers)
    return data[int(cuts.lengths.sum(dtype="u8")) :]


class _RecipeWriter:
    """Collects what `_cut` finds into parts, and stores a part as soon as its chunks have numbers."""

    def __init__(self, session: WriteSession) -> None:
        self._session = session
        self._literals: list[bytes] = []
        self._ops: list[npt.NDArray[np.void]] = []
        self._extents: list[npt.NDArray[np.void]] = []
        self._entries: list[Entries] = []
        self._weight = 0
        self._open_literal = 0  # literal bytes that belong to the next op
        self._held: list[
            tuple[npt.NDArray[np.uint64], Part]
        ] = []  # parts, with their literals' numbers
        self._held_bytes = 0
        self._stored: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]] = []
        self.entries = 0
        self.chunks = 0

    def add(self, split: Split, cuts: Cuts, numbers: npt.NDArray[np.uint64]) -> None:
        """Add what one buffer held, whose chunks got these numbers or promises."""
        ops = np.empty(len(cuts.counts), OP)
        ops["literal"] = split.literal_lengths
        ops["extents"] = cuts.counts
        if len(ops):
            ops["literal"][0] += self._open_literal
            self._open_literal = 0
        self._open_literal += split.tail_literal
        extents = np.empty(len(numbers), EXTENT)
        extents["number"], extents["length"] = numbers, cuts.lengths
        entries = entries_of(split.members)
        _check_paths(entries, self._session.limits)
        self._literals.append(split.literals)
        self._ops.append(ops)
        self._extents.append(extents)
        self._entries.append(entries)
        self.entries += len(entries)
        self.chunks += int(np.count_nonzero(numbers != HOLE))
        self._weight += len(split.literals) + ops.nbytes + extents.nbytes + entries.rows.nbytes
        self._weight += len(entries.paths) + len(entries.links) + len(entries.extras)
        if self._weight >= _PART_BYTES:
            self._close_part()
        if self._session.group_is_full or self._held_bytes >= _HELD_BYTES:
            self._session.flush()
            self._store_held()

    def flush(self) -> None:
        """Close the last part, and hand all parts to the session, which still has to flush them."""
        self._close_part()
        self._session.flush()
        self._store_held()

    def stretches(self) -> tuple[Stretch, ...]:
        """All stretches, once the session has flushed what `flush` gave it."""
        number = self._session.numbers_of
        return tuple(
            Stretch(tuple(number(literals).tolist()), tuple(number(part).tolist()))
            for literals, part in self._stored
        )

    def _close_part(self) -> None:
        if not self._literals:
            return
        if self._open_literal:
            self._ops.append(np.array([(self._open_literal, 0)], OP))
            self._open_literal = 0
        part = Part(
            np.concatenate(self._ops), np.concatenate(self._extents), concat_entries(self._entries)
        )
        if part.length:
            self._held.append((self._session.put_bytes(b"".join(self._literals)), part))
            self._held_bytes += self._weight
        self._literals, self._ops, self._extents, self._entries, self._weight = [], [], [], [], 0

    def _store_held(self) -> None:
        for literals, part in self._held:
            part.extents["number"] = self._session.numbers_of(part.extents["number"])
            self._stored.append((literals, self._session.put_bytes(encode_part(part))))
        self._held, self._held_bytes = [], 0


def _check_paths(entries: Entries, limits: Limits) -> None:
    """No path is longer, or has more components, than the limits allow."""
    lengths = entries.rows["path"].astype("i8")
    if not len(lengths):
        return
    slashes = np.frombuffer(entries.paths, "u1") == ord("/")
    before = np.concatenate([[0], np.cumsum(slashes)])
    ends = np.cumsum(lengths)
    depths = np.where(lengths > 0, before[ends] - before[ends - lengths] + 1, 0)
    for name, values in (("path_bytes", lengths), ("depth", depths)):
        worst = int(np.argmax(values))
        path = entries.paths[int(ends[worst] - lengths[worst]) : int(ends[worst])]
        shown = path[:200].decode("utf-8", "backslashreplace")
        limits.check(name, int(values[worst]), entry=shown)


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing a stage gives: nothing more comes, maybe because of an error."""

    error: BaseException | None = None


class _Ahead(Generic[T]):
    """Runs an iterable in a thread, a few items ahead; its errors are raised here, in their turn.

    Leave the block before closing what the iterable reads from. Thread safety: one consumer.
    Only queues that C implements are between the threads: an exception from a signal handler leaves no lock taken.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._pipe: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        self._credits: queue.SimpleQueue[None] = queue.SimpleQueue()  # what may still be put
        for _ in range(_AHEAD):
            self._credits.put(None)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="layerstore-ahead", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        # A thread that waits for a slow source (a pipe) is left to it; it can do no harm any more.
        self._thread.join(_PATIENCE_S)

    def __iter__(self) -> Iterator[T]:
        while not self._stopped.is_set():
            try:
                item = self._pipe.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            self._credits.put(None)
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._offer(item):
                    return
            self._offer(_End())
        except BaseException as error:  # raised again in the consumer
            self._offer(_End(error))

    def _offer(self, item: T | _End) -> bool:
        while not self._stopped.is_set():
            try:
                self._credits.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            self._pipe.put(item)
            return True
        return False
