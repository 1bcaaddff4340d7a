"""Leases: what must not be collected for a while, whoever lives or dies.

    leases:  lease number (u64, big endian) -> LeaseRecord, JSON

A lease is for embedders that need records longer than an operation or a process. It ends when it is released or at its
time, by this machine's clock; a session (`sessionstate`) ends with its process instead.

Source: docs/format.md, docs/embedding.md.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from layerstore.digest import parse_digest
from layerstore.errors import CorruptStore, InvalidArgument, NotFound
from layerstore.store.database import pack_u64, unpack_u64

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from layerstore.digest import Digest
    from layerstore.store.database import Database, Transaction

__all__ = ["Lease", "LeaseRecord", "LeaseTable"]

_NEXT_LEASE = b"next_lease"


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A lease.

    Attributes:
        holds: digests of manifests, indexes, blobs and layers; what they lead to stays.
        holds_all: every record stays.
        label: for people.
        created_ns: when, nanoseconds since 1970.
        expires_ns: when it ends.
    """

    holds: tuple[Digest, ...]
    holds_all: bool
    label: str
    created_ns: int
    expires_ns: int


class LeaseTable:
    """The table `leases`. Thread safety: stateless; transactions are the caller's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, txn: Transaction, record: LeaseRecord) -> int:
        """Record a new lease; its number is never used again."""
        value = self._database.get(txn, "state", _NEXT_LEASE)
        number = unpack_u64(value) if value else 1
        self._database.put(txn, "state", _NEXT_LEASE, pack_u64(number + 1))
        self.put(txn, number, record)
        return number

    def put(self, txn: Transaction, number: int, record: LeaseRecord) -> None:
        """Set a record."""
        document = {
            "holds": record.holds,
            "holds_all": record.holds_all,
            "label": record.label,
            "created_ns": record.created_ns,
            "expires_ns": record.expires_ns,
        }
        data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
        self._database.put(txn, "leases", pack_u64(number), data)

    def get(self, txn: Transaction, number: int) -> LeaseRecord | None:
        """A record, or None."""
        data = self._database.get(txn, "leases", pack_u64(number))
        return None if data is None else _load(data)

    def delete(self, txn: Transaction, number: int) -> bool:
        """Forget a lease; whether it was there."""
        return self._database.delete(txn, "leases", pack_u64(number))

    def items(self, txn: Transaction) -> Iterator[tuple[int, LeaseRecord]]:
        """All leases, also those whose time is over, oldest first. Raises: CorruptStore."""
        for key, data in self._database.items(txn, "leases"):
            yield unpack_u64(key), _load(data)


class Lease:
    """A lease that was taken. As a context manager it is released with the block; otherwise it ends at its time.

    Thread safety: all methods, from any thread.
    """

    def __init__(self, database: Database, number: int) -> None:
        """Speak of a lease by its number; `take` makes one."""
        self._database, self.number = database, number

    @classmethod
    def take(cls, database: Database, digests: Iterable[Digest], ttl: float, label: str) -> Self:
        """Take a lease of `ttl` seconds on what these digests lead to; without any, on everything.

        Raises: InvalidArgument: no time. StoreFull.
        """
        now = time.time_ns()
        holds = tuple(dict.fromkeys(digests))
        record = LeaseRecord(holds, not holds, label, now, now + _nanoseconds(ttl))
        with database.write() as txn:
            return cls(database, LeaseTable(database).add(txn, record))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def renew(self, ttl: float) -> None:
        """Let it end `ttl` seconds from now.

        Raises: NotFound: it has ended, and what it held may be gone. InvalidArgument: no time.
        """
        length = _nanoseconds(ttl)
        table = LeaseTable(self._database)
        with self._database.write() as txn:
            now = time.time_ns()
            record = table.get(txn, self.number)
            if record is None or record.expires_ns <= now:
                raise NotFound(f"lease {self.number} has ended; take a new one")
            table.put(txn, self.number, replace(record, expires_ns=now + length))

    def release(self) -> None:
        """End it now. A second call does nothing."""
        with self._database.write() as txn:
            LeaseTable(self._database).delete(txn, self.number)


def _nanoseconds(ttl: float) -> int:
    if not 0 < ttl < 1e9:
        raise InvalidArgument(f"a lease of {ttl} seconds; give a number above 0 and below 10^9")
    return int(ttl * 1e9)


def _load(data: bytes) -> LeaseRecord:
    try:
        document = json.loads(data)
        return LeaseRecord(
            tuple(parse_digest(digest) for digest in document["holds"]),
            bool(document["holds_all"]),
            str(document["label"]),
            int(document["created_ns"]),
            int(document["expires_ns"]),
        )
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise CorruptStore(f"the record of a lease is damaged: {error}") from error
