"""Layers: split one that comes in blocks; put one in a real store, look at what is known of it, get it out."""

from __future__ import annotations

import io
import posixpath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.digest import digest_of
from layerstore.emit import iter_layer
from layerstore.formats.codecs import Compression, sniff
from layerstore.formats.tarsplit import Member, TarSplitter
from layerstore.ingest import Expected, IngestReport, ingest_layer
from layerstore.tree import HOLE, Entry, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from layerstore.digest import DiffID
    from layerstore.store.store import Store
    from tests.support.tars import Seen

__all__ = [
    "Content",
    "Pieces",
    "Trickle",
    "catalog_rows",
    "chunk_ids",
    "contents",
    "expected",
    "extents",
    "put",
    "shown",
    "split",
    "tar_of",
]


class Content(NamedTuple):
    """An entry, and its bytes: holes of sparse files filled in; None if it has none."""

    entry: Entry
    data: bytes | None


def shown(row: Entry) -> tuple[object, ...]:
    """A row, to be compared with what another reader sees."""
    return (
        row.kind,
        row.path,
        row.mode,
        row.uid,
        row.gid,
        row.mtime,
        row.nsec,
        row.size,
        row.link,
        (row.major, row.minor),
        row.xattrs,
    )


def expected(seen: Seen) -> tuple[object, ...]:
    """How a row shows what another reader sees."""
    link = _normal(seen.link) if seen.type == "h" else seen.link
    return (_KINDS[seen.type], _normal(seen.path), *seen[2:8], link, seen.device, seen.xattrs)


_KINDS = {
    "-": Kind.FILE, "d": Kind.DIRECTORY, "l": Kind.SYMLINK, "h": Kind.HARDLINK,
    "c": Kind.CHARACTER, "b": Kind.BLOCK, "p": Kind.FIFO,
}  # fmt: skip


def _normal(path: bytes) -> bytes:
    normal = posixpath.normpath(path)
    return b"" if normal == b"." else normal


class Trickle:
    """Gives a few bytes at a time, as a socket may; `steps` are taken in turn."""

    def __init__(self, data: bytes, *steps: int) -> None:
        self._stream, self._steps, self._turn = io.BytesIO(data), steps, 0

    def read(self, size: int, /) -> bytes:
        step = self._steps[self._turn % len(self._steps)]
        self._turn += 1
        return self._stream.read(min(size, step))


class Pieces(NamedTuple):
    """A whole tar, split: each payload stretch as one piece, however many blocks it came in."""

    members: list[Member]
    literals: bytes
    payloads: list[tuple[int, bytes]]  # where in the tar, and the bytes

    def join(self) -> bytes:
        """The tar again."""
        out, at = bytearray(), 0
        for offset, data in self.payloads:
            gap = offset - len(out)
            out += self.literals[at : at + gap] + data
            at += gap
        return bytes(out) + self.literals[at:]


def split(blocks: Iterable[bytes], give_back: int = 0) -> Pieces:
    """Drive a splitter as ingest does, giving back up to `give_back` bytes of every open payload."""
    splitter = TarSplitter()
    pieces = Pieces([], b"", [])
    literals, carry, is_open = [], b"", False
    for block in [*blocks, None]:
        data = carry + (block or b"")
        base = splitter.offset
        found = splitter.split(data)
        uncut = min(give_back, found.spans[-1][1]) if found.is_open and block is not None else 0
        splitter.give_back(uncut)
        carry = data[found.used - uncut :]
        assert sum(found.literal_lengths) + found.tail_literal == len(found.literals)
        literals.append(found.literals)
        pieces.members.extend(found.members)
        for number, (offset, length) in enumerate(found.spans):
            last = found.is_open and number == len(found.spans) - 1
            taken = data[offset : offset + length - (uncut if last else 0)]
            if is_open:
                start, before = pieces.payloads.pop()
                pieces.payloads.append((start, before + taken))
            else:
                pieces.payloads.append((base + offset, taken))
            is_open = last
        if block is None:
            splitter.finish(carry)
            literals.append(carry)
    return pieces._replace(literals=b"".join(literals))


def put(
    store: Store,
    blob: bytes,
    compression: Compression | None = None,
    expected: Expected | None = None,
) -> IngestReport:
    """Store a layer in a session of its own; by default the compression is sniffed and nothing is promised."""
    compression = sniff(blob[:10]) if compression is None else compression
    promise = expected or Expected("layer", digest_of(blob), len(blob))
    with store.begin() as session:
        return ingest_layer(io.BytesIO(blob), promise, compression, session)


def tar_of(store: Store, diff_id: DiffID) -> bytes:
    """The layer's tar, as it comes out."""
    return b"".join(iter_layer(store, diff_id))


def contents(store: Store, diff_id: DiffID) -> list[Content]:
    """The layer's entries and the bytes that the extents give to each, by the sum of `stored` so far."""
    numbers, lengths, entries = _all(store, diff_id)
    real = iter(store.reader.read(numbers[numbers != HOLE]))
    pairs = zip(numbers.tolist(), lengths.tolist(), strict=True)
    stream = b"".join(bytes(n) if number == HOLE else next(real) for number, n in pairs)
    found, at = [], 0
    for entry in entries:
        stored = stream[at : at + entry.stored]
        assert len(stored) == entry.stored
        at += entry.stored
        found.append(Content(entry, _filled(entry, stored) if entry.stored or entry.size else None))
    return found


def extents(store: Store, diff_id: DiffID) -> list[tuple[int, int]]:
    """(chunk number, length) of every extent of the layer."""
    numbers, lengths, _ = _all(store, diff_id)
    return list(zip(numbers.tolist(), lengths.tolist(), strict=True))


def chunk_ids(store: Store) -> set[bytes]:
    """The IDs of all chunks that the store has."""
    with store.read() as txn:
        return {bytes(chunk_id) for _, run in store.index.runs(txn) for chunk_id in run["id"]}


def catalog_rows(store: Store) -> list[list[tuple[object, object]]]:
    """All that can be named: layers, blobs, images and references."""
    catalog = store.catalog
    with store.read() as txn:
        return [
            list(catalog.layers(txn)),
            list(catalog.blobs(txn)),
            list(catalog.images(txn)),
            list(catalog.refs(txn)),
        ]


def _all(
    store: Store, diff_id: DiffID
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32], list[Entry]]:
    with store.read() as txn:
        record = store.catalog.layer(txn, diff_id)
    assert record is not None
    parts = [store.reader.part(stretch) for stretch in record.stretches]
    if not parts:
        return np.empty(0, "u8"), np.empty(0, "u4"), []
    table = np.concatenate([part.extents for part in parts])
    entries = [entry for part in parts for entry in part.entries]
    assert len(entries) == record.entries
    return table["number"], table["length"], entries


def _filled(entry: Entry, stored: bytes) -> bytes:
    if entry.size == entry.stored:
        return stored
    data, at = bytearray(entry.size), 0
    for offset, length in entry.sparse:
        data[offset : offset + length] = stored[at : at + length]
        at += length
    return bytes(data)
