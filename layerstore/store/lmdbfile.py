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
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.errors import CorruptStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["check_pages", "check_size", "newest_transaction"]

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
_DIRTY = 0x10  # of a page that its transaction has written; without meaning on disk
_MAX_DEPTH = 32  # LMDB's CURSOR_STACK
_BIG, _TABLE = 1, 2  # flags of a node
_INTEGER = 8  # flag of a table whose keys are native integers: the free list
_TRIES = 5

_ADVICE = "run `layerstore repair`, which makes them again from the journal"


class _Tree(NamedTuple):
    """A table as its `MDB_db` counts it."""

    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int


class _Meta(NamedTuple):
    page_size: int
    free: _Tree
    main: _Tree
    last_page: int
    transaction: int


def check_size(path: Path) -> None:
    """Make sure that LMDB can map a file: its root pages are a pair, and no page that is in use lies behind its end.

    Raises: CorruptStore: also where the file is missing or empty, which LMDB would take for tables without rows.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CorruptStore(f"{path.name} of the store is missing; {_ADVICE}") from None
    try:
        meta = _newest_meta(fd)
        if os.fstat(fd).st_size < (meta.last_page + 1) * meta.page_size:
            # That alone is no damage: pages that a transaction took and did not need are never written.
            _check(fd, meta, _Walk.problems)
        _check(fd, _newest_meta(fd), _Walk.directory_problems)
    finally:
        os.close(fd)


def _check(fd: int, meta: _Meta, problems: Callable[[_Walk], list[str]]) -> None:
    """Look at pages without a transaction, so that they may change meanwhile. Raises: CorruptStore."""
    for _ in range(_TRIES):
        if not problems(_Walk(fd, meta)):
            return
        before, meta = meta, _newest_meta(fd)
        if before.transaction == meta.transaction:
            break
    raise CorruptStore(f"the store's tables are damaged; {_ADVICE}")


def check_pages(path: Path) -> list[str]:
    """What is wrong with the pages of a file, in words. Hold a read transaction, so that no page is used again meanwhile."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _Walk(fd, _newest_meta(fd)).problems()
    except CorruptStore as error:
        return [str(error)]
    finally:
        os.close(fd)


def newest_transaction(path: Path) -> int | None:
    """The number of the last transaction; None where the root pages do not say."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return _newest_meta(fd).transaction
    except CorruptStore:
        return None
    finally:
        os.close(fd)


def _newest_meta(fd: int) -> _Meta:
    """The root page that counts. Two transactions that follow one another wrote them, the even one page 0."""
    for _ in range(_TRIES):  # a writer may come between the reads
        first = _read_meta(fd, 0)
        second = _read_meta(fd, first.page_size) if first else None
        if first is None or second is None:
            continue
        low, high = sorted((first.transaction, second.transaction))
        if high == 0 or (high - low == 1 and first.transaction % 2 == 0):
            return first if first.transaction == high else second
    raise CorruptStore(f"a root page of the store's tables is damaged; {_ADVICE}")


def _read_meta(fd: int, at: int) -> _Meta | None:
    size = _PAGE.size + _META.size + 2 * _DB.size + _LAST.size
    data = os.pread(fd, size, at)
    if len(data) < size:
        return None
    magic, version, _, _ = _META.unpack_from(data, _PAGE.size)
    _, _, flags, _, _ = _PAGE.unpack_from(data)
    if magic != _MAGIC or version != _VERSION or not flags & _META_PAGE:
        return None
    page_size = int.from_bytes(data[_PAGE.size + _META.size :][:4], "little")
    free = _tree_of(data, _PAGE.size + _META.size)
    main = _tree_of(data, _PAGE.size + _META.size + _DB.size)
    last, transaction = _LAST.unpack_from(data, _PAGE.size + _META.size + 2 * _DB.size)
    if page_size not in (4096, 8192, 16384, 32768, 65536):
        return None
    if (free.flags, main.flags) != (_INTEGER, 0):
        return None
    return _Meta(page_size, free, main, last, transaction)


def _tree_of(data: bytes, at: int) -> _Tree:
    _, flags, depth, branches, leaves, overflows, entries, root = _DB.unpack_from(data, at)
    return _Tree(flags, depth, branches, leaves, overflows, entries, root)


class _Child(NamedTuple):
    """A page to look at: how deep it is, and between which keys its own must lie (from, below; None: any)."""

    page: int
    depth: int
    low: bytes | None
    high: bytes | None


@dataclass(slots=True)
class _Walk:
    """One look at all pages that a root leads to."""

    fd: int
    meta: _Meta
    pages: int = 0
    overflows: int = 0  # pages of long values so far
    unwritten: int = 0  # pages on the free list that lie behind the file's end
    seen: bytearray = field(
        default_factory=bytearray
    )  # one for each page: met in use, or on the free list
    found: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """What is wrong, in words."""
        self.pages = os.fstat(self.fd).st_size // self.meta.page_size
        self.seen = bytearray(self.pages)
        self.seen[:2] = b"\1\1"
        self._trees(self.meta.main)
        self._tree(self.meta.free, is_free_list=True)
        lost = self.seen[: self.meta.last_page + 1].count(0)
        if lost and not self.found:
            self.found.append(f"{lost} pages of the tables are neither in use nor free")
        behind = max(self.meta.last_page + 1 - self.pages, 0)
        if behind != self.unwritten and not self.found:
            self.found.append(
                "the file of the tables is shorter, or their last page another, than is said"
            )
        return self.found

    def directory_problems(self) -> list[str]:
        """The same of the one tree that leads to the tables, which LMDB reads to open them, and of their first pages."""
        self.pages = os.fstat(self.fd).st_size // self.meta.page_size
        self.seen = bytearray(self.pages)
        for table in (*self._tree(self.meta.main, is_free_list=False), self.meta.free):
            self._root(table)
        return self.found

    def _root(self, tree: _Tree) -> None:
        """The first page of a tree: a leaf if there is nothing below."""
        page = None if tree.root == _NONE else self._page(tree.root)
        if page is None:
            return
        kind = int.from_bytes(page[10:12], "little") & ~_DIRTY
        if kind != (_LEAF if tree.depth == 1 else _BRANCH) or tree.depth > _MAX_DEPTH:
            self.found.append(f"page {tree.root} of the tables is not the first of its table")

    def _trees(self, tree: _Tree) -> None:
        for table in self._tree(tree, is_free_list=False):
            self._trees(table)

    def _tree(self, tree: _Tree, *, is_free_list: bool) -> list[_Tree]:
        """Look at a tree; the tables that it leads to come back."""
        waiting = [] if tree.root == _NONE else [_Child(tree.root, 1, None, None)]
        branches = leaves = entries = 0
        overflows = self.overflows
        tables: list[_Tree] = []
        while waiting:
            child = waiting.pop()
            page = self._page(child.page)
            nodes = None if page is None else self._nodes(child, page)
            if page is None or nodes is None:
                continue
            keys = [
                page[at + _NODE.size :][: int.from_bytes(page[at + 6 : at + 8], "little")]
                for at in nodes
            ]
            if page[10] & _BRANCH:
                branches += 1
                waiting += self._children(child, page, nodes, keys, tree)
            else:
                leaves += 1
                entries += len(nodes)
                if child.depth != tree.depth:
                    self.found.append(
                        f"page {child.page} of the tables is not as deep as it should be"
                    )
                self._check_order(child, keys, tree)
                tables += self._leaf(page, nodes, is_free_list=is_free_list)
        overflows = self.overflows - overflows
        if (branches, leaves, overflows, entries) != (
            *(tree.branches, tree.leaves, tree.overflows, tree.entries),
        ) and not self.found:
            self.found.append("a table has more or fewer rows or pages than it counts")
        return tables

    def _nodes(self, child: _Child, page: bytes) -> list[int] | None:
        """Where the nodes of a page lie; None if it cannot be one of a tree."""
        _, _, flags, lower, upper = _PAGE.unpack_from(page)
        if flags & ~_DIRTY not in (_BRANCH, _LEAF):
            self.found.append(f"page {child.page} of the tables is of no kind")
        elif not _PAGE.size <= lower <= upper <= len(page):
            self.found.append(f"page {child.page} of the tables has an impossible layout")
        else:
            nodes: list[int] = np.frombuffer(
                page, "<u2", (lower - _PAGE.size) // 2, _PAGE.size
            ).tolist()
            if all(upper <= at <= len(page) - _NODE.size for at in nodes):
                return nodes
            self.found.append(f"page {child.page} of the tables has an impossible layout")
        return None

    def _children(
        self, child: _Child, page: bytes, nodes: list[int], keys: list[bytes], tree: _Tree
    ) -> list[_Child]:
        """The pages below a branch; its first key is never looked at."""
        self._check_order(child, keys[1:], tree)
        lows = [child.low, *keys[1:]]
        highs = [*keys[1:], child.high]
        children = []
        for at, low, high in zip(nodes, lows, highs, strict=True):
            low_half, high_half, highest, _ = _NODE.unpack_from(page, at)
            number = low_half | high_half << 16 | highest << 32
            children.append(_Child(number, child.depth + 1, low, high))
        return children

    def _check_order(self, child: _Child, keys: list[bytes], tree: _Tree) -> None:
        bounds = [child.low, *keys, child.high]
        known = [key for key in bounds if key is not None]
        if tree.flags & _INTEGER:
            known = [key[::-1] for key in known]
        # The first key of a leaf may be the one that leads to it.
        first = known[0] == known[1] if child.low is not None and len(known) > 1 else False
        pairs = pairwise(known[1:] if first else known)
        if not all(before < after for before, after in pairs):
            self.found.append(f"page {child.page} of the tables has its keys in the wrong order")

    def _leaf(self, page: bytes, nodes: list[int], *, is_free_list: bool) -> list[_Tree]:
        """Overflow pages and free pages of a leaf are met; its tables come back."""
        tables = []
        for at in nodes:
            low, high, flags, key = _NODE.unpack_from(page, at)
            length, start = low | high << 16, at + _NODE.size + key
            value = page[start : start + (8 if flags & _BIG else length)]
            if flags & ~(_BIG | _TABLE):
                self.found.append("a row of the tables is of no kind")
            elif flags & _BIG and len(value) == 8:
                value = self._overflow(int.from_bytes(value, "little"), length)
            elif flags & _TABLE and len(value) == _DB.size:
                tables.append(_tree_of(value, 0))
                if tables[-1].flags:
                    self.found.append("a table is of another kind than layerstore's")
            elif len(value) != length:
                self.found.append("a row of the tables goes on behind its page")
            if is_free_list:
                self._free(value)
        return tables

    def _free(self, value: bytes) -> None:
        """A list of free pages: how many, then their numbers."""
        numbers = np.frombuffer(value[: len(value) // 8 * 8], "<u8")
        if not len(numbers) or int(numbers[0]) != len(numbers) - 1:
            self.found.append("a list of free pages of the tables has the wrong length")
            return
        for number in numbers[1:].tolist():
            if number > self.meta.last_page:
                self.found.append(f"page {number} of the tables is free but does not exist")
            elif number < self.pages:
                self._meet(number)
            else:
                self.unwritten += 1

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
        self.overflows += count
        for following in range(number + 1, number + count):
            self._meet(following)
        return os.pread(self.fd, length, number * self.meta.page_size + _PAGE.size)

    def _page(self, number: int) -> bytes | None:
        """A page that is in use, unless that cannot be."""
        if number >= self.pages or number > self.meta.last_page:
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
