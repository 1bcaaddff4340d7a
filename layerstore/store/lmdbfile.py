"""The file of LMDB, read without LMDB: is everything there that its root pages lead to?

LMDB maps the file and trusts it. A page behind the file's end ends the process (SIGBUS), and a page that is in use and
on the list of free ones is overwritten by a later transaction. Both can be seen here, with plain reads.

    page 0, 1   meta pages, the one with the larger transaction counts:  … | MDB_db of free pages | MDB_db of all | …
    page n      branch: (key, child page) …     leaf: (key, value | MDB_db | overflow page) …     overflow: bytes

Source: LMDB 0.9.31's mdb.c, "MDB_page", "MDB_meta", "MDB_db", "MDB_node"; little endian, 64 bits.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.errors import CorruptStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["check_pages", "check_size"]

_PAGE = struct.Struct(
    "<QHHHH"
)  # number, pad, flags, lower, upper; of overflow pages the last two are a u32
_META = struct.Struct(
    "<IIQQ"
)  # magic, version, address, map size; two MDB_db and (last page, transaction) follow
_DB = struct.Struct(
    "<IHHQQQQQ"
)  # page size of the first, flags, depth, branch, leaf, overflow, entries, root
_LAST = struct.Struct("<QQ")
_NODE = struct.Struct(
    "<HHHH"
)  # value length or child (low, high), flags (or child's highest), key length
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_NONE = (1 << 64) - 1  # the root of an empty table

_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 1, 2, 4, 8
_BIG, _TABLE = 1, 2  # flags of a node

_ADVICE = "run `layerstore repair`, which makes them again from the journal"


class _Meta(NamedTuple):
    page_size: int
    free_root: int
    main_root: int
    last_page: int
    transaction: int


def check_size(path: Path) -> None:
    """Make sure that LMDB can map a file: no page that is in use lies behind its end. A missing or empty one passes.

    Raises: CorruptStore.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        size = os.fstat(fd).st_size
        if not size:
            return
        meta = _newest_meta(fd)
        if size < (meta.last_page + 1) * meta.page_size:
            # That alone is no damage: pages that a transaction took and did not need are never written.
            for _ in _Walk(fd, meta).problems():
                raise CorruptStore(f"the store's tables are cut short; {_ADVICE}")
    finally:
        os.close(fd)


def check_pages(path: Path) -> Iterator[str]:
    """What is wrong with the pages of a file, in words. Hold a read transaction, so that no page is used again meanwhile."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield from _Walk(fd, _newest_meta(fd)).problems()
    except CorruptStore as error:
        yield str(error)
    finally:
        os.close(fd)


def _newest_meta(fd: int) -> _Meta:
    first = _read_meta(fd, 0)
    second = _read_meta(fd, first.page_size if first else 4096)
    found = [meta for meta in (first, second) if meta is not None]
    if not found:
        raise CorruptStore(f"the store's tables have no root page; {_ADVICE}")
    return max(found, key=lambda meta: meta.transaction)


def _read_meta(fd: int, at: int) -> _Meta | None:
    size = _PAGE.size + _META.size + 2 * _DB.size + _LAST.size
    data = os.pread(fd, size, at)
    if len(data) < size:
        return None
    magic, version, _, _ = _META.unpack_from(data, _PAGE.size)
    _, _, flags, _, _ = _PAGE.unpack_from(data)
    if magic != _MAGIC or version != _VERSION or not flags & _META_PAGE:
        return None
    free = _DB.unpack_from(data, _PAGE.size + _META.size)
    main = _DB.unpack_from(data, _PAGE.size + _META.size + _DB.size)
    last, transaction = _LAST.unpack_from(data, _PAGE.size + _META.size + 2 * _DB.size)
    if free[0] not in (4096, 8192, 16384, 32768, 65536):
        return None
    return _Meta(free[0], free[-1], main[-1], last, transaction)


@dataclass(slots=True)
class _Walk:
    """One look at all pages that a root leads to."""

    fd: int
    meta: _Meta
    pages: int = 0
    seen: bytearray = field(
        default_factory=bytearray
    )  # one for each page: met in use, or on the free list
    found: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """What is wrong, in words."""
        self.pages = os.fstat(self.fd).st_size // self.meta.page_size
        self.seen = bytearray(self.pages)
        self.seen[:2] = b"\1\1"
        self._tree(self.meta.main_root, is_free_list=False)
        self._tree(self.meta.free_root, is_free_list=True)
        lost = self.seen[: self.meta.last_page + 1].count(0)
        if lost and not self.found:
            self.found.append(f"{lost} pages of the tables are neither in use nor free")
        return self.found

    def _tree(self, root: int, *, is_free_list: bool) -> None:
        waiting = [] if root == _NONE else [root]
        while waiting:
            number = waiting.pop()
            page = self._page(number)
            if page is None:
                continue
            _, _, flags, lower, upper = _PAGE.unpack_from(page)
            if not _PAGE.size <= lower <= upper <= len(page):
                self.found.append(f"page {number} of the tables has an impossible layout")
                continue
            nodes = np.frombuffer(page, "<u2", (lower - _PAGE.size) // 2, _PAGE.size).tolist()
            if any(at < upper or at + _NODE.size > len(page) for at in nodes):
                self.found.append(f"page {number} of the tables has an impossible layout")
            elif flags & _BRANCH:
                for at in nodes:
                    low, high, highest, _ = _NODE.unpack_from(page, at)
                    waiting.append(low | high << 16 | highest << 32)
            elif flags & _LEAF:
                waiting += self._leaf(page, nodes, is_free_list=is_free_list)
            else:
                self.found.append(f"page {number} of the tables is of no kind")

    def _leaf(self, page: bytes, nodes: list[int], *, is_free_list: bool) -> list[int]:
        """Overflow pages and free pages of a leaf are met; the roots of its tables come back."""
        roots = []
        for at in nodes:
            low, high, flags, key = _NODE.unpack_from(page, at)
            length, start = low | high << 16, at + _NODE.size + key
            value = page[start : start + (8 if flags & _BIG else length)]
            if flags & _BIG and len(value) == 8:
                value = self._overflow(int.from_bytes(value, "little"), length)
            elif flags & _TABLE and len(value) == _DB.size:
                root = _DB.unpack(value)[-1]
                if root != _NONE:
                    roots.append(root)
            if is_free_list:
                self._free(value)
        return roots

    def _free(self, value: bytes) -> None:
        """A list of free pages: how many, then their numbers."""
        numbers = np.frombuffer(value[: len(value) // 8 * 8], "<u8")
        if not len(numbers) or int(numbers[0]) != len(numbers) - 1:
            self.found.append("a list of free pages of the tables has the wrong length")
            return
        for number in numbers[1:].tolist():
            if number < self.pages:
                self._meet(number)
            elif number > self.meta.last_page:
                self.found.append(f"page {number} of the tables is free but does not exist")

    def _overflow(self, number: int, length: int) -> bytes:
        page = self._page(number)
        if page is None:
            return b""
        count = int.from_bytes(page[12:16], "little")
        if not int.from_bytes(page[10:12], "little") & _OVERFLOW or (
            count != -(-(length + _PAGE.size) // self.meta.page_size)
        ):
            self.found.append(f"page {number} of the tables is not the long value it should be")
            return b""
        if number + count > self.pages:
            self.found.append(f"page {number} of the tables goes on behind the end of the file")
            return b""
        for following in range(number + 1, number + count):
            self._meet(following)
        return os.pread(self.fd, length, number * self.meta.page_size + _PAGE.size)

    def _page(self, number: int) -> bytes | None:
        """A page that is in use, unless that cannot be."""
        if number >= self.pages:
            self.found.append(f"page {number} of the tables lies behind the end of the file")
            return None
        if not self._meet(number):
            return None
        page = os.pread(self.fd, self.meta.page_size, number * self.meta.page_size)
        if int.from_bytes(page[:8], "little") != number:
            self.found.append(f"page {number} of the tables is another page")
            return None
        return page

    def _meet(self, number: int) -> bool:
        if self.seen[number]:
            self.found.append(f"page {number} of the tables is in two places")
            return False
        self.seen[number] = 1
        return True
