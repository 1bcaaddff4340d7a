"""The second copy of the tables: what every transaction changed, one record behind another, each with its own hash.

    ROOT/journal:  header | record | record | record …
                            └─ the tables as they were when the file was begun ─┘ then one for each transaction

    header:  "LSJOURN1"   generation (16 random bytes)
    record:  "LSJ1"   u32 length of the body   u64 transaction   16 bytes of BLAKE3   body
    body:    a zstd frame of changes: u8, u16, u32 lengths of table, key, value (2^32 - 1: deleted)   table   key   value

LMDB has no checksums and no second copy of anything. With the journal `verify` can tell a row that changed by itself,
and `repair` can make the tables again. Tables that follow from others or from the chunk file are not in it.

The file is only appended to, by whoever holds LMDB's writer lock; when it has grown to a multiple of what the tables
need, it is begun anew beside the old one and renamed over it. How far it is right stands in the tables themselves
(`Position`), so that a record whose transaction was never committed is written over by the next.

Source: docs/format.md, "Journal"; docs/adr/0009.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import zstandard

from layerstore import kernels
from layerstore.errors import CorruptStore
from layerstore.store import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["Change", "Gap", "JournalFile", "Position", "Record", "new_generation", "read_journal"]

_MAGIC, _RECORD_MAGIC = b"LSJOURN1", b"LSJ1"
_GENERATION = 16
_HEADER = len(_MAGIC) + _GENERATION
_RECORD = struct.Struct("<4sIQ16s")
_HASHED = 16  # bytes of a record's head that its hash covers, the body behind them
_CHANGE = struct.Struct("<BHI")
_DELETED = 0xFFFFFFFF
_MAX_BODY = 1 << 30  # a damaged length must not ask for any amount of memory
_WINDOW = 1 << 20  # bytes looked at in one go for the next record behind a damaged one
_LEVEL = 1

_POSITION = struct.Struct("<QQQQ16s")


class Change(NamedTuple):
    """One row set, or deleted (`value` is None)."""

    table: str
    key: bytes
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Position:
    """How far a journal is right, as the tables say.

    Attributes:
        transaction: LMDB's number of the transaction that wrote this.
        end: bytes of the journal that belong to committed transactions; 0: there is no journal to go on with.
        synced: of those, how many are surely on the disk.
        base: bytes that the tables needed when the file was begun.
        generation: which file it is.
    """

    transaction: int
    end: int
    synced: int
    base: int
    generation: bytes

    def encode(self) -> bytes:
        """As it stands in the table `state`."""
        return _POSITION.pack(self.transaction, self.end, self.synced, self.base, self.generation)

    @staticmethod
    def decode(data: bytes | None) -> Position:
        """The inverse; of nothing, or of what is none, a position that fits no file."""
        if data is None or len(data) != _POSITION.size:
            return Position(0, 0, 0, 0, bytes(_GENERATION))
        return Position(*_POSITION.unpack(data))


class Record(NamedTuple):
    """A record that is whole: bytes `start` to `end` of the file."""

    start: int
    end: int
    transaction: int
    changes: list[Change]


class Gap(NamedTuple):
    """Bytes that are no record: damage, or a tail that never became durable."""

    start: int
    end: int


def new_generation() -> bytes:
    """A name for a new file."""
    return os.urandom(_GENERATION)


class JournalFile:
    """An open journal. Thread safety: none; LMDB's writer lock, or a lock of the file, is the caller's."""

    def __init__(self, fd: int) -> None:
        """Take over a descriptor; `close` closes it."""
        self._fd = fd

    @classmethod
    def open(cls, path: Path, *, write: bool) -> Self | None:
        """Open a journal; None if there is none."""
        try:
            return cls(os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC))
        except FileNotFoundError:
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def begin(self, generation: bytes) -> int:
        """Empty the file and give it a header; returns where the first record goes."""
        os.ftruncate(self._fd, 0)
        with files.no_room("write the journal"):
            files.pwrite_all(self._fd, _MAGIC + generation, 0)
        return _HEADER

    def generation(self) -> bytes | None:
        """Which file it is; None if it is no journal."""
        head = files.pread_exactly(self._fd, _HEADER, 0)
        return head[len(_MAGIC) :] if len(head) == _HEADER and head.startswith(_MAGIC) else None

    def size(self) -> int:
        """Bytes of the file, those of no committed transaction included."""
        return os.fstat(self._fd).st_size

    def fits(self, position: Position) -> bool:
        """Whether this is the file that a position means, and as long as it says."""
        return 0 < position.end <= self.size() and self.generation() == position.generation

    def append(self, end: int, transaction: int, changes: Iterable[Change]) -> int:
        """Write a record at `end`, in place of whatever is there and behind; returns its own end. Not synced.

        Raises: StoreFull, OSError: what stands before `end` is as it was.
        """
        data = _encode(transaction, changes)
        if self.size() > end:
            os.ftruncate(self._fd, end)
        with files.no_room("write the journal"):
            files.pwrite_all(self._fd, data, end)
        return end + len(data)

    def copy(self, source: JournalFile, start: int, end: int, at: int) -> int:
        """Append records of another file as they are; returns where they end."""
        with files.no_room("write the journal"):
            while start < end:
                data = files.pread_exactly(source._fd, min(end - start, _WINDOW), start)
                if not data:
                    raise CorruptStore("the journal ended early; run `layerstore repair`")
                files.pwrite_all(self._fd, data, at)
                start, at = start + len(data), at + len(data)
        return at

    def sync(self) -> None:
        """Make it durable."""
        with files.no_room("write the journal"):
            files.fdatasync(self._fd)

    def records(self, start: int = _HEADER, end: int | None = None) -> Iterator[Record | Gap]:
        """What is between two offsets, in order; behind damage it goes on with the next whole record."""
        at, limit = start, self.size() if end is None else end
        while at < limit:
            record = self._record(at, limit)
            if record is None:
                following = self._next_record(at + 1, limit)
                yield Gap(at, following)
                at = following
            else:
                yield record
                at = record.end

    def is_whole(self, start: int, end: int) -> bool:
        """Whether there is nothing but records between two offsets."""
        return all(isinstance(found, Record) for found in self.records(max(start, _HEADER), end))

    def _record(self, at: int, limit: int) -> Record | None:
        head = files.pread_exactly(self._fd, _RECORD.size, at)
        if len(head) < _RECORD.size or not head.startswith(_RECORD_MAGIC):
            return None
        _, length, transaction, want = _RECORD.unpack(head)
        end = at + _RECORD.size + length
        if end > limit or length > _MAX_BODY:
            return None
        body = files.pread_exactly(self._fd, length, at + _RECORD.size)
        if _hash(head[:_HASHED], body) != want:
            return None
        return Record(at, end, transaction, _changes(body))

    def _next_record(self, at: int, limit: int) -> int:
        """Where the next whole record starts, or the limit."""
        while at < limit:
            window = files.pread_exactly(self._fd, min(_WINDOW, limit - at), at)
            found = window.find(_RECORD_MAGIC)
            if found < 0:
                if len(window) < _WINDOW:
                    break
                at += len(window) - len(_RECORD_MAGIC) + 1
            elif self._record(at + found, limit) is not None:
                return at + found
            else:
                at += found + 1
        return limit


def read_journal(path: Path) -> Iterator[Record | Gap]:
    """Everything in a journal, whatever the tables say; a header that is damaged is a gap.

    Raises: CorruptStore: there is no journal.
    """
    file = JournalFile.open(path, write=False)
    if file is None:
        raise CorruptStore(f"{path} is missing: nothing says what the store holds")
    with file:
        if file.generation() is None:
            yield Gap(0, min(_HEADER, file.size()))
        yield from file.records()


def _encode(transaction: int, changes: Iterable[Change]) -> bytes:
    parts = []
    for table, key, value in changes:
        name = table.encode()
        length = _DELETED if value is None else len(value)
        parts += [_CHANGE.pack(len(name), len(key), length), name, key, value or b""]
    body = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False).compress(b"".join(parts))
    head = _RECORD.pack(_RECORD_MAGIC, len(body), transaction, bytes(16))[:_HASHED]
    return head + _hash(head, body) + body


def _hash(head: bytes, body: bytes) -> bytes:
    return kernels.blake3(head + body)[:16]


def _changes(body: bytes) -> list[Change]:
    """The changes of a body whose hash was right."""
    data = zstandard.ZstdDecompressor().decompress(body)
    changes, at = [], 0
    while at < len(data):
        table, key, value = _CHANGE.unpack_from(data, at)
        at += _CHANGE.size
        name, at = data[at : at + table].decode(), at + table
        row, at = data[at : at + key], at + key
        if value == _DELETED:
            changes.append(Change(name, row, None))
        else:
            changes.append(Change(name, row, data[at : at + value]))
            at += value
    return changes
