"""A gzip blob to its plain bytes and a small recipe, and back, exactly.

A *model* foretells what a known encoder writes for plain bytes; the recipe holds what it got wrong, which for the
encoders that make layers is nearly nothing. The stream is split into segments of a MiB or so, each of whole deflate
blocks, that are joined one by one: in any order, in parallel, or only those that a range needs.

    plain    ... | history 128 KiB | segment | ahead 0..512 bytes | ...
    blob     ................. first bit [ bits of the segment ] .........

A segment's first and last byte may be shared with its neighbours; `Joiner` puts them together. What a recipe gives
is right only if its digest is: whoever drops a blob compares that first.

Source: docs/format.md, "Recipes of blobs"; RFC 1951, RFC 1952. The models are native/deflate_model.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore import kernels
from layerstore.errors import CorruptStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt

    from layerstore.digest import Readable

__all__ = [
    "Family",
    "GzipRecipe",
    "Joiner",
    "Model",
    "NotSplit",
    "TextSpan",
    "decode_recipe",
    "describe",
    "encode_recipe",
    "split_gzip",
]

MAGIC = b"LSG1"
HISTORY = 128 << 10  # plain bytes before a segment that its model looks at

_HEADER = struct.Struct(
    "<4sBBIII"
)  # magic, family, level, block, bytes of the gzip header, segments
_SEGMENT = np.dtype(
    [
        ("plain", "<u4"),  # bytes
        ("bits", "<u4"),  # of the blob
        ("recipe", "<u4"),  # bytes
        ("ahead", "<u2"),  # plain bytes behind the segment that its model looks at
        ("position", "<u8"),  # plain bytes of its member before the segment
    ]
)
assert _SEGMENT.itemsize == 22
_READ = 4 << 20  # what is left is copied at each read
_MAX_DATA = 32 << 20  # compressed bytes that one segment may need
_SAMPLE = 128 << 10  # plain bytes on which all models are tried
_FINAL_SAMPLE = 3 << 20  # plain bytes on which the best ones are
_FINALISTS = 3
_RIGHT = 64  # bytes of recipe of a sample that a model foretells; headers of klauspost's may differ
_RIGHT_IN_ALL = 600  # of the final one
_DEAREST = 8  # a recipe of more than an eighth of the blob is of an encoder that no model knows
_SMALL_RECIPE = 256  # bytes that any blob may need
_MAX_RECIPE = 64 << 20  # bytes that whoever joins has in memory
_MARGIN = 64 << 10
_OK, _NEED_DATA = 0, 1
_NOT_GZIP = "not gzip to its last byte, or with a block or header that no encoder writes"
_AT_HEADER = 1


class Family(IntEnum):
    """Encoders of one kind; the numbers are part of the format."""

    ZLIB = 1
    GO = 2
    GO_FAST = 3
    KLAUSPOST = 4


class Model(NamedTuple):
    """An encoder: its family, its level (klauspost: 15 and 25 are older versions of 5), and the bytes it compresses alone."""

    family: Family
    level: int
    block: int = 0

    def __str__(self) -> str:
        name = "go" if self.family is Family.GO_FAST else self.family.name.lower()
        blocks = f", blocks of {self.block >> 10} KiB" if self.block else ""
        return f"{name} {self.level}{blocks}"

    @property
    def segment_size(self) -> int:
        """Plain bytes of a segment: more where the model has to learn the past anew at its beginning."""
        is_greedy = self.level < 4 and self.family in (Family.ZLIB, Family.GO)
        has_tables = self.family in (Family.GO_FAST, Family.KLAUSPOST)
        return 4 << 20 if (is_greedy or has_tables) and not self.block else 1 << 20


# Klauspost's levels 1, 15 and 25 are not among them: nobody has compared them with the encoders that they are named
# after, and what a recipe is made of stays for ever. Recipes of theirs are joined.
_CANDIDATES = (
    Model(Family.KLAUSPOST, 5),
    Model(Family.GO, 6),
    Model(Family.ZLIB, 6),
    Model(Family.ZLIB, 9),
    Model(Family.GO_FAST, 1),
    Model(Family.KLAUSPOST, 6),
    *(Model(Family.GO, level) for level in (9, 2, 3, 4, 5, 7, 8)),
    *(Model(Family.ZLIB, level) for level in (1, 2, 3, 4, 5, 7, 8)),
)
_TELLING = {Family.ZLIB: 320 << 10, Family.KLAUSPOST: 9 << 18}  # bytes in which two blocks end
_BLOCKS = {
    Family.ZLIB: (128 << 10,),  # pigz
    Family.KLAUSPOST: (1 << 20, 256 << 10),  # pgzip, and as umoci asks for it
}


class NotSplit(Exception):
    """A blob has no recipe that is worth having; the message says why. It is to be kept as it is."""


class TextSpan(NamedTuple):
    """The plain bytes that a segment is joined from: `size` bytes at `offset`; the segment is `[start, end)` of them."""

    offset: int
    size: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class GzipRecipe:
    """How to make a blob again from the tar inside it.

    Attributes:
        model: of the encoder.
        header: the gzip header of the first member.
        segments: a record for each, see docs/format.md.
        bodies: the recipes of all segments, one behind another.
    """

    model: Model
    header: bytes
    segments: npt.NDArray[np.void]
    bodies: bytes

    @property
    def plain_size(self) -> int:
        """Bytes of the tar."""
        return int(self.segments["plain"].sum(dtype="u8"))

    @property
    def blob_size(self) -> int:
        """Bytes of the blob."""
        return int(self.segments["bits"].sum(dtype="u8")) >> 3

    @property
    def size(self) -> int:
        """Bytes of the recipe itself."""
        return _HEADER.size + len(self.header) + self.segments.nbytes + len(self.bodies)

    def first_bits(self) -> npt.NDArray[np.uint64]:
        """Where each segment begins in the blob, and at last where it ends."""
        ends = np.cumsum(self.segments["bits"], dtype="u8")
        return np.concatenate([np.zeros(1, "u8"), ends])

    def spans(self) -> list[TextSpan]:
        """The plain bytes that each segment needs."""
        ends = np.cumsum(self.segments["plain"], dtype="u8").tolist()
        spans = []
        for end, plain, ahead in zip(
            ends,
            self.segments["plain"].tolist(),
            self.segments["ahead"].tolist(),
            strict=True,
        ):
            before = min(end - plain, HISTORY)
            spans.append(
                TextSpan(end - plain - before, before + plain + ahead, before, before + plain)
            )
        return spans


class Joiner:
    """Joins segments of one recipe. Thread safety: all methods, from any thread; the work is done without the GIL."""

    def __init__(self, recipe: GzipRecipe) -> None:
        self.recipe = recipe
        self.spans = recipe.spans()
        self.first_bits = recipe.first_bits().tolist()
        ends = np.cumsum(recipe.segments["recipe"], dtype="u8").tolist()
        self._bodies = list(zip([0, *ends], ends, strict=False))
        self._positions = recipe.segments["position"].tolist()

    def join(self, index: int, text: bytes | memoryview) -> bytes:
        """The bytes of the blob that a segment lies in, from the text of its span.

        The bits of the first byte below the segment's first are 0, those of the last one above its last too: neighbours
        are put together with `or`.

        Raises: CorruptStore: this is not the text, or not the recipe, that there was. Unsupported: no native kernels.
        """
        first, end = self._bodies[index]
        start_bit, end_bit = self.first_bits[index : index + 2]
        span, model = self.spans[index], self.recipe.model
        try:
            return kernels.gzip_join(
                memoryview(self.recipe.bodies)[first:end],
                text,
                span.start,
                span.end,
                self._positions[index],
                *model,
                self.recipe.header,
                start_bit & 7,
                end_bit - start_bit,
            )
        except ValueError as error:
            raise CorruptStore(f"segment {index} of a blob: {error}") from error


def encode_recipe(recipe: GzipRecipe) -> bytes:
    """A recipe as bytes."""
    segments = np.ascontiguousarray(recipe.segments)
    planes = segments.view("u1").reshape(-1, _SEGMENT.itemsize).T.tobytes()
    head = _HEADER.pack(MAGIC, *recipe.model, len(recipe.header), len(segments))
    return b"".join([head, recipe.header, planes, recipe.bodies])


def decode_recipe(data: bytes) -> GzipRecipe:
    """A recipe from its bytes.

    Raises: CorruptStore: not what `encode_recipe` writes.
    """
    if len(data) < _HEADER.size:
        raise CorruptStore("the recipe of a blob is damaged: it is too short")
    magic, family, level, block, header_size, count = _HEADER.unpack_from(data)
    planes = _HEADER.size + header_size
    bodies = planes + count * _SEGMENT.itemsize
    if magic != MAGIC or family not in set(Family) or bodies > len(data):
        raise CorruptStore("the recipe of a blob is damaged: it does not begin as one")
    rows = np.frombuffer(data, "u1", bodies - planes, planes).reshape(_SEGMENT.itemsize, count)
    segments = np.ascontiguousarray(rows.T).view(_SEGMENT).reshape(count)
    if int(segments["recipe"].sum(dtype="u8")) != len(data) - bodies:
        raise CorruptStore("the recipe of a blob is damaged: its segments do not add up")
    model = Model(Family(family), level, block)
    return GzipRecipe(model, data[_HEADER.size : planes], segments, data[bodies:])


def describe(head: bytes) -> str:
    """The model that the first bytes of a recipe name, for people."""
    if len(head) < _HEADER.size or not head.startswith(MAGIC) or head[4] not in set(Family):
        return "?"
    _, family, level, block, _, _ = _HEADER.unpack_from(head)
    return str(Model(Family(family), level, block))


def split_gzip(source: Readable, check: Callable[[], None] = lambda: None) -> GzipRecipe:
    """Find the model of a blob and its recipe.

    `check` is called before each segment, and each time that one is tried with a model: what it raises ends the work.

    Memory beside the recipe is bounded: some 20 MiB for what encoders write, up to 150 MiB for hostile streams, whose
    blocks are huge or expand without end.

    Raises: NotSplit: not gzip to its last byte, or of no known encoder. Unsupported: no native kernels.
    """
    stream = _Stream(source, check)
    model = _choose(stream)
    rows: list[tuple[int, int, int, int, int]] = []
    bodies: list[bytes] = []
    cost = bits = 0
    while not stream.is_done():
        position = stream.position
        found = stream.split(model, model.segment_size)
        rows.append((len(found.plain), found.bits, len(found.recipe), found.ahead, position))
        bodies.append(found.recipe)
        cost += len(found.recipe) + _SEGMENT.itemsize
        bits += found.bits
        if cost > _MARGIN + (bits >> 3) // _DEAREST or cost > _MAX_RECIPE:
            raise NotSplit("no known encoder")
        stream.advance(found)
    recipe = GzipRecipe(model, stream.header, np.array(rows, _SEGMENT), b"".join(bodies))
    if recipe.size > _SMALL_RECIPE + recipe.blob_size // _DEAREST:
        raise NotSplit("no known encoder")
    return recipe


class _Found(NamedTuple):
    """A segment that was split; `end`, `state` and `position` are those of the next one."""

    bits: int
    end: int
    state: int
    position: int
    plain: bytes
    ahead: int
    recipe: bytes


class _Stream:
    """Compressed bytes from where the next segment begins, and what a model needs to know of those before."""

    def __init__(self, source: Readable, check: Callable[[], None]) -> None:
        self._source, self._check = source, check
        self._data = b""
        self._is_last = False
        self._bit = 0
        self._state = _AT_HEADER
        self._history = b""
        self.position = 0
        self._fill(_SAMPLE)
        self.header = self._first_header()

    def is_done(self) -> bool:
        """Whether the last member has ended with the data."""
        self._fill(1)
        return self._state == _AT_HEADER and self._bit == 8 * len(self._data)

    def split(self, model: Model, wanted: int) -> _Found:
        """Split the next segment, and stay in front of it.

        Raises: NotSplit: that is not gzip.
        """
        self._fill(wanted + _MARGIN)
        while True:
            self._check()
            status, end, state, position, plain, ahead, recipe = kernels.gzip_split(
                self._data,
                self._bit,
                self._is_last,
                self._state,
                self._history,
                self.position,
                wanted,
                *model,
                self.header,
            )
            if status == _OK:
                return _Found(end - self._bit, end, state, position, plain, ahead, recipe)
            if status != _NEED_DATA or self._is_last:
                raise NotSplit(_NOT_GZIP)
            have = len(self._data) - (self._bit >> 3)
            if have > _MAX_DATA:
                raise NotSplit("a deflate block is too large")
            self._fill(2 * have)

    def advance(self, found: _Found) -> None:
        """Go behind a segment."""
        self._bit = found.end
        self._state, self.position = found.state, found.position
        self._history = (self._history + found.plain[-HISTORY:])[-HISTORY:]

    def _fill(self, size: int) -> None:
        """Have this many bytes behind the next segment's first, if there are so many."""
        have = len(self._data) - (self._bit >> 3)
        if have >= size or self._is_last:
            return
        parts = [self._data[self._bit >> 3 :]]
        while have < size and not self._is_last:
            part = self._source.read(max(_READ, size - have))
            self._is_last = not part
            have += len(part)
            parts.append(part)
        self._data = b"".join(parts)
        self._bit &= 7

    def _first_header(self) -> bytes:
        """The usual header of ten bytes; longer ones stand in the recipe of their segment."""
        return self._data[:10] if self._data[3:4] == b"\0" else b""


def _choose(stream: _Stream) -> Model:
    """The model that foretells the beginning of a blob best."""
    if stream.is_done():
        raise NotSplit(_NOT_GZIP)
    if (first := _first_right(stream)) is not None:
        return first
    costs = _costs(stream, _CANDIDATES, _SAMPLE)
    finalists = sorted(costs, key=costs.__getitem__)[:_FINALISTS]
    return _best(_costs(stream, _with_blocks(finalists), _FINAL_SAMPLE))


def _first_right(stream: _Stream) -> Model | None:
    """The first model that is right on a small sample, where it or one in blocks is so on a larger one too."""
    for model in _CANDIDATES:
        found = stream.split(model, _SAMPLE)
        if len(found.recipe) <= _RIGHT and len(found.plain) >= _SAMPLE:
            if (size := _TELLING.get(model.family)) is None:
                return model
            usual, *others = _in_blocks(model)
            costs = _costs(stream, [usual], size)
            if model.family is Family.ZLIB or costs[usual] > _RIGHT:  # pgzip's is the usual block
                rest = [other for other in (model, *others) if _may_win(stream, other, size, costs)]
                costs |= _costs(stream, rest, size)
            best = min(sorted(costs), key=costs.__getitem__)
            return best if costs[best] <= _RIGHT_IN_ALL else None
    return None


def _may_win(stream: _Stream, model: Model, size: int, costs: dict[Model, int]) -> bool:
    """Whether a model may need less than these others: not if it needs more for a part of the same bytes already."""
    enough = min(costs.values()) + _RIGHT  # how a sample ends makes some bytes of difference
    return all(len(stream.split(model, part).recipe) <= enough for part in (size >> 3, size >> 1))


def _with_blocks(models: list[Model]) -> list[Model]:
    return [*models, *(variant for model in models for variant in _in_blocks(model))]


def _in_blocks(model: Model) -> list[Model]:
    return [model._replace(block=block) for block in _BLOCKS.get(model.family, ())]


def _costs(stream: _Stream, models: Iterable[Model], wanted: int) -> dict[Model, int]:
    """Bytes of recipe that each model needs for the next `wanted` plain bytes."""
    return {model: len(stream.split(model, wanted).recipe) for model in models}


def _best(costs: dict[Model, int]) -> Model:
    return min(costs, key=costs.__getitem__)
