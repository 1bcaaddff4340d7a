"""What is mounted, as the store remembers it: written before a mount is made, deleted after it is gone.

    mounts:    mount number (u64, big endian) -> MountRecord, JSON
    contents:  content name (32 bytes)        -> number of the data image that has it (u32, big endian)
               data image (u32, big endian)   -> BLAKE3 of its file (32 bytes)

A record says nothing about whether the mount is there: that is asked of the kernel, which shows the record's `token`
as the source of the mount. A boot or a mount namespace has mounts of its own.

Source: docs/mounting.md.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from layerstore.errors import CorruptStore
from layerstore.store.database import pack_u64, unpack_u64

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from layerstore.store.database import Database, Transaction

__all__ = ["ContentTable", "MountRecord", "MountTable"]

_U32 = struct.Struct(">I")
_NEXT_MOUNT = b"next_mount"
_NEXT_DATA_IMAGE = b"next_data_image"


@dataclass(frozen=True, slots=True)
class MountRecord:
    """A mount that was begun.

    Attributes:
        token: what the kernel shows as the source of the mount; nobody else's.
        target: absolute path; empty for one that only keeps the lower layers of others mounted.
        driver: what made it.
        diff_ids: the layers that it shows, bottom first.
        rw: whether it can be written to.
        meta: key of its metadata image; empty for drivers that use none.
        data: numbers of the data images that it reads.
        upper: folder with the changes (`fs` and `work` in it); empty if read-only.
        owns_upper: whether the folder goes with the mount.
        created_ns: when.
        boot: the kernel's boot ID.
        namespace: inode number of the mount namespace.
    """

    token: str
    target: str
    driver: str
    diff_ids: tuple[str, ...]
    rw: bool
    meta: str
    data: tuple[int, ...]
    upper: str
    owns_upper: bool
    created_ns: int
    boot: str
    namespace: int


class MountTable:
    """The records of one store. Thread safety: stateless; transactions are the caller's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, txn: Transaction, record: MountRecord) -> int:
        """Record a mount that is about to be made; returns its number, which is never used again."""
        value = self._database.get(txn, "state", _NEXT_MOUNT)
        number = unpack_u64(value) if value else 1
        self._database.put(txn, "state", _NEXT_MOUNT, pack_u64(number + 1))
        document = json.dumps(asdict(record), separators=(",", ":"), sort_keys=True)
        self._database.put(txn, "mounts", pack_u64(number), document.encode())
        return number

    def delete(self, txn: Transaction, number: int) -> None:
        """Forget a mount that is gone."""
        self._database.delete(txn, "mounts", pack_u64(number))

    def has(self, txn: Transaction, number: int) -> bool:
        """Whether a mount is recorded."""
        return self._database.get(txn, "mounts", pack_u64(number)) is not None

    def items(self, txn: Transaction) -> Iterator[tuple[int, MountRecord]]:
        """All records, oldest first. Raises: CorruptStore."""
        for key, value in self._database.items(txn, "mounts"):
            yield unpack_u64(key), _record(value)


class ContentTable:
    """Which data image has which content. Thread safety: stateless; transactions are the caller's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def lookup(self, txn: Transaction, names: Sequence[bytes]) -> dict[bytes, int]:
        """The data images of those contents that are in one."""
        found = self._database.cursor(txn, "contents").getmulti(names)
        return {bytes(name): _number(number) for name, number in found}

    def image_hash(self, txn: Transaction, image: int) -> bytes | None:
        """The BLAKE3 of a data image's file; None for a number that is not in use."""
        return self._database.get(txn, "contents", _U32.pack(image))

    def next_image(self, txn: Transaction) -> int:
        """A number for a new data image; never given again once the transaction is committed."""
        value = self._database.get(txn, "state", _NEXT_DATA_IMAGE)
        number = unpack_u64(value) if value else 1
        self._database.put(txn, "state", _NEXT_DATA_IMAGE, pack_u64(number + 1))
        return number

    def add_image(
        self, txn: Transaction, image: int, image_hash: bytes, names: Sequence[bytes]
    ) -> None:
        """Record a data image that is durable, and that these contents are read from it from here on."""
        number = _U32.pack(image)
        self._database.put(txn, "contents", number, image_hash)
        self._database.cursor(txn, "contents").putmulti([(name, number) for name in sorted(names)])

    def forget_image(self, txn: Transaction, image: int) -> None:
        """A data image is damaged or gone: its contents go into new ones when they are needed."""
        self._database.delete(txn, "contents", _U32.pack(image))

    def names(self, txn: Transaction) -> Iterator[tuple[bytes, int]]:
        """All contents, and the data image of each."""
        for key, value in self._database.items(txn, "contents"):
            if len(key) != _U32.size:
                yield key, _number(value)

    def forget_names(self, txn: Transaction, names: Sequence[bytes]) -> None:
        """Contents that nothing shows any more."""
        for name in names:
            self._database.delete(txn, "contents", name)

    def images(self, txn: Transaction) -> Mapping[int, bytes]:
        """All data images and the BLAKE3 of each."""
        rows = self._database.items(txn, "contents")
        return {_number(key): value for key, value in rows if len(key) == _U32.size}


def _number(value: bytes) -> int:
    if len(value) != _U32.size:
        raise CorruptStore("the store's tables are damaged: the number of a data image")
    return int(_U32.unpack(value)[0])


def _record(value: bytes) -> MountRecord:
    try:
        document = json.loads(value)
        document["diff_ids"] = tuple(map(str, document["diff_ids"]))
        document["data"] = tuple(map(int, document["data"]))
        return MountRecord(**document)
    except (LookupError, OverflowError, TypeError, ValueError) as error:
        raise CorruptStore(f"the record of a mount is damaged: {error!r}") from error
