"""Verified reads: chunk numbers in, plain bytes out, never wrong ones.

A frame is checked twice: by its own content checksum while it is decoded, and by the chunk ID over the result.
Reads of neighbouring frames are joined into one, so that what was written together is read together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import zstandard

from layerstore import kernels
from layerstore.errors import CorruptStore
from layerstore.formats import frame
from layerstore.formats.recipe import Part, decode_part
from layerstore.tree import HOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from layerstore.store.catalog import Stretch
    from layerstore.store.chunkfile import ChunkFile
    from layerstore.store.database import Database
    from layerstore.store.index import ChunkIndex

__all__ = ["ChunkReader", "DamagedChunks"]

_MAX_READ = 4 << 20  # encoded bytes in one read
_MAX_GAP = 64 << 10  # reading over a gap is cheaper than a second read
_BATCH = 4 << 20  # decoded bytes of a stream in memory at once


class DamagedChunks(CorruptStore):
    """Chunks whose bytes are not what was stored.

    Attributes:
        numbers: the damaged chunk numbers, ascending.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = tuple(numbers)
        some = ", ".join(map(str, self.numbers[:5])) + (", …" if len(self.numbers) > 5 else "")
        super().__init__(
            f"chunk {some}: damaged on disk; `layerstore verify` says which images are hit"
        )


class ChunkReader:
    """Reads of one store.

    Thread safety: all methods, from any thread.
    """

    def __init__(
        self,
        database: Database,
        index: ChunkIndex,
        chunkfile: ChunkFile,
        pace: Callable[[int], object] = lambda length: None,
    ) -> None:
        """Read a store's chunks. `pace` is told the bytes of each read of the chunk file before it, and may wait."""
        self._database, self._index, self._chunkfile = database, index, chunkfile
        self._pace = pace

    def read(self, numbers: npt.NDArray[np.uint64]) -> list[bytes | memoryview]:
        """The contents of these chunks, in the order asked; none may be the hole. All are in memory at once.

        Raises: DamagedChunks: at least one is not what was stored; all damaged ones are named.
        """
        if not len(numbers):
            return []
        wanted, inverse = np.unique(numbers, return_inverse=True)
        with self._database.read() as txn:
            places = self._index.places(txn, wanted)
        contents: list[bytes | memoryview] = [b""] * len(wanted)
        is_possible = _is_possible(places)
        damaged: list[int] = wanted[~is_possible].tolist()
        for group in _neighbours(places, np.flatnonzero(is_possible)):
            decoded = self._decode(places[group])
            for position, content in zip(group.tolist(), decoded, strict=True):
                if content is None:
                    damaged.append(int(wanted[position]))
                else:
                    contents[position] = content
        if damaged:
            raise DamagedChunks(sorted(damaged))
        return [contents[position] for position in inverse.tolist()]

    def join_literals(self, stretch: Stretch) -> bytes:
        """The literals of a stretch."""
        return b"".join(self.read(np.array(stretch.literals, "u8")))

    def part(self, stretch: Stretch) -> Part:
        """The part of a stretch."""
        return decode_part(b"".join(self.read(np.array(stretch.part, "u8"))))

    def iter_stream(self, stretches: Sequence[Stretch], start: int = 0) -> Iterator[bytes]:
        """Join a stream from its stretches, in blocks of up to a few MiB; memory is bounded.

        With `start`, from that byte on: of what is before, only the parts are read.
        """
        for stretch in stretches:
            if not stretch.part:
                literals = self.join_literals(stretch)
                if block := literals[start:]:
                    yield block
                start = max(start - len(literals), 0)
                continue
            part = self.part(stretch)
            if start >= part.length:
                start -= part.length
                continue
            yield from self._join(part, self.join_literals(stretch), start)
            start = 0

    def _join(self, part: Part, literals: bytes, start: int) -> Iterator[bytes]:
        """Interleave literals and extents from a byte on, a batch of extents at a time."""
        ops, extents, literals, start = _behind(part, literals, start)
        limits = _batches(extents["length"])
        contents: list[bytes | memoryview] = []
        first = limit = extent = at = 0
        out: list[bytes | memoryview] = []
        for literal, count in ops.tolist():
            out.append(literals[at : at + literal])
            at += literal
            end = extent + count
            while extent < end:
                if extent == limit:
                    if block := b"".join(out):
                        yield block
                    out = []
                    first, limit = limit, limits.pop()
                    contents = self._read_extents(extents[first:limit])
                    if start:  # inside the first extent
                        contents[0], start = contents[0][start:], 0
                until = min(end, limit)
                out += contents[extent - first : until - first]
                extent = until
        if block := b"".join(out):
            yield block

    def _read_extents(self, extents: npt.NDArray[np.void]) -> list[bytes | memoryview]:
        numbers, lengths = extents["number"], extents["length"]
        real = numbers != HOLE
        contents = iter(self.read(numbers[real]))
        result: list[bytes | memoryview] = []
        for is_real, length in zip(real.tolist(), lengths.tolist(), strict=True):
            content = next(contents) if is_real else bytes(length)
            if len(content) != length:
                raise CorruptStore(
                    f"a chunk has {len(content)} bytes where its recipe says {length}"
                )
            result.append(content)
        return result

    def _decode(self, places: npt.NDArray[np.void]) -> list[bytes | memoryview | None]:
        """Read and check frames that lie close together; None for a damaged one."""
        base = int(places["address"][0])
        end = int((places["address"] + places["encoded"]).max())  # damaged ones may overlap
        self._pace(end - base)
        data = self._chunkfile.read(base, end - base)
        segments = np.stack([places["address"] - np.uint64(base), places["encoded"]], axis=1)
        if len(data) == end - base:
            try:
                frames = frame.decode_frames(data, segments, places["decoded"])
            except zstandard.ZstdError:
                pass
            else:
                return _checked(b"".join(frames), places)
        if len(places) == 1:
            return [None]
        return [
            content for row in range(len(places)) for content in self._decode(places[row : row + 1])
        ]


def _is_possible(places: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Whether a place is one that a session writes; in damaged tables it may ask for any amount of memory."""
    possible: npt.NDArray[np.bool_] = (
        (places["address"] < np.uint64(1 << 62))
        & (places["encoded"] > 0)
        & (places["encoded"] <= frame.MAX_ENCODED)
        & (places["decoded"] > 0)
        & (places["decoded"] <= frame.MAX_DECODED)
    )
    return possible


def _neighbours(
    places: npt.NDArray[np.void], positions: npt.NDArray[np.int64]
) -> list[npt.NDArray[np.int64]]:
    """Positions in groups that are worth one read, each ascending by address."""
    if not len(positions):
        return []
    order = positions[np.argsort(places["address"][positions], kind="stable")]
    starts = places["address"][order].astype("i8")
    ends = starts + places["encoded"][order]
    cuts = [0]
    for position in range(1, len(order)):
        if (
            starts[position] - ends[position - 1] > _MAX_GAP
            or ends[position] - starts[cuts[-1]] > _MAX_READ
        ):
            cuts.append(position)
    return [order[a:b] for a, b in zip(cuts, [*cuts[1:], len(order)], strict=True)]


def _behind(
    part: Part, literals: bytes, start: int
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void], bytes, int]:
    """Ops, extents and literals without what lies before `start`, and how much of the first extent does too."""
    if not start:
        return part.ops, part.extents, literals, 0
    ops, extents = part.ops, part.extents
    ends = np.concatenate([[0], np.cumsum(extents["length"], dtype="i8")])
    counts = np.concatenate([[0], np.cumsum(ops["extents"], dtype="i8")])
    given = np.concatenate([[0], np.cumsum(ops["literal"], dtype="i8")])
    op = int(np.searchsorted((given + ends[counts])[1:], start, side="right"))
    start -= int(given[op] + ends[counts[op]])
    skipped = min(start, int(ops["literal"][op]))
    start += int(ends[counts[op]]) - skipped
    first = int(np.searchsorted(ends, start, side="right")) - 1
    ops = ops[op:].copy()
    ops["literal"][0] -= skipped
    ops["extents"][0] -= first - int(counts[op])
    return ops, extents[first:], literals[int(given[op]) + skipped :], start - int(ends[first])


def _batches(lengths: npt.NDArray[np.uint32]) -> list[int]:
    """Where batches of extents end, last first: a batch decodes to about _BATCH bytes."""
    batch = np.cumsum(lengths, dtype="u8") // np.uint64(_BATCH)
    ends = np.flatnonzero(np.diff(batch)) + 1
    return [len(lengths), *ends[::-1].tolist()]


def _checked(data: bytes, places: npt.NDArray[np.void]) -> list[bytes | memoryview | None]:
    """Cut joined contents into chunks, and compare each with its ID."""
    lengths = places["decoded"].astype("u8")
    ends = np.cumsum(lengths)
    spans = np.stack([ends - lengths, lengths], axis=1).astype("<u8").tobytes()
    got = np.frombuffer(kernels.hash_many(data, spans), "V32")
    view = memoryview(data)
    return [
        view[end - length : end] if right else None
        for end, length, right in zip(
            ends.tolist(), lengths.tolist(), (got == places["id"]).tolist(), strict=True
        )
    ]
