"""Are the tables whole? Pages, rows, the journal beside them, what leads to what, who has which bytes of the chunk file.

    pages    LMDB's tree: order, counts, each page once                      lmdbfile.py
    rows     every record can be read
    journal  its records are whole, and give the rows that are there        journal.py
    index    numbers, chunk IDs and places fit together
    space    nobody's bytes are another's
    links    names lead to images, images to layers

Reads tables and journal, and no chunk. Everything is looked at in one transaction.

A place may have no row in `chunks`, because the chunk is condemned, or was given back after its bytes had been stored
again, and those went. It costs deduplication and is counted, not called damage. A row that was lost by damage looks
the same, but leaves its traces: LMDB counts rows, and a key that changed leads to a place of another ID.

Source: docs/format.md; docs/adr/0009.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from layerstore import kernels
from layerstore.errors import CorruptStore
from layerstore.store.chunkfile import WORTH_REUSING, Extent
from layerstore.store.condemned import CondemnedTable
from layerstore.store.damage import Damage
from layerstore.store.database import unpack_u64
from layerstore.store.index import PLACE
from layerstore.store.journal import Gap
from layerstore.store.layout import BLOCK, SEGMENT
from layerstore.store.leases import LeaseTable
from layerstore.store.mountstate import ContentTable, MountTable
from layerstore.store.sessionstate import SessionTable
from layerstore.store.snapstate import SnapshotTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from layerstore.store.database import Transaction
    from layerstore.store.store import Store

__all__ = ["Structure", "check_structure", "unlisted_chunks"]

_MAX_ROWS = 20  # named for each kind of damage; the rest is counted
_MAX_NUMBERS = 1 << 33  # chunk numbers that a store can have given
_BATCH = 1 << 16  # rows of `chunks` that are looked at in one go


@dataclass(slots=True)
class Structure:
    """What the tables are like.

    Attributes:
        damages: what is wrong.
        needs_tables: whether the tables have to be made anew: they, or what follows from them, are wrong.
        is_readable: whether the tables can be relied on to find chunks; without that nothing behind them was looked at.
        unlisted: chunks that are not condemned, and that no look-up by ID finds.
        notes: what is no damage and should be known.
    """

    damages: list[Damage] = field(default_factory=list)
    needs_tables: bool = False
    is_readable: bool = True
    unlisted: int = 0
    notes: list[str] = field(default_factory=list)


def check_structure(store: Store) -> Structure:
    """Look at all tables and the journal; damage is in the result, not raised."""
    found = Structure()
    try:
        with store.read() as txn:
            problems = store.database.damaged_pages(txn)
            found.damages += [Damage("tables", "", problem) for problem in problems[:_MAX_ROWS]]
            if not problems:
                _check_tables(store, txn, found)
    except (CorruptStore, MemoryError, OverflowError, ValueError) as error:
        # Numbers of damaged tables are anything; what they make of the arithmetic is damage too.
        found.damages.append(Damage("tables", "", str(error) or type(error).__name__))
    found.needs_tables = any(one.what in ("tables", "index", "space") for one in found.damages)
    found.is_readable &= not any(damage.what == "tables" for damage in found.damages)
    return found


def _check_tables(store: Store, txn: Transaction, found: Structure) -> None:
    _check_journal(store, txn, found)
    found.damages += _check_rows(store, txn)
    if not any(damage.what == "tables" for damage in found.damages):
        found.damages += _check_index(store, txn, found)
        found.damages += _check_space(store, txn)
        found.damages += _check_links(store, txn)


def _check_journal(store: Store, txn: Transaction, found: Structure) -> None:
    """Compare the tables with their second copy, row by row. A record has its own hash: where they differ, it is right."""
    database = store.database
    position = database.journal_position(txn)
    opened = database.open_journal(txn)
    if opened is None:
        if position.end and position.transaction == txn.id():
            problem = "it is missing, shorter than the tables say, or another store's"
            found.damages.append(Damage("journal", "", problem))
        else:
            found.notes.append(
                "there is no journal of these tables yet; whoever opens the store to write begins one"
            )
        return
    file, position = opened
    rows: dict[tuple[str, bytes], bytes] = {}
    with file:
        for part in file.records(end=position.end):
            if isinstance(part, Gap):
                problem = f"bytes {part.start} to {part.end} are no records"
                found.damages.append(Damage("journal", "", problem))
                return
            for table, key, value in part.changes:
                if value is None:
                    rows.pop((table, key), None)
                else:
                    rows[table, key] = _row_hash(value)
    changed = [
        (change.table, change.key)
        for change in database.journaled(txn)
        if rows.pop((change.table, change.key), None) != _row_hash(change.value or b"")
    ]
    found.damages += _differing(changed, "is not what the journal says")
    found.damages += _differing(rows, "is missing, the journal has it")


def unlisted_chunks(store: Store, txn: Transaction) -> dict[int, bytes]:
    """Chunks that are not condemned and that no row of `chunks` leads to, with their IDs."""
    count = store.index.count(txn)
    listed, _ = _listed(store, txn, count)
    condemned = set(CondemnedTable(store.database).numbers(txn).tolist())
    found = {}
    for first, run in store.index.runs(txn):
        for row in np.flatnonzero(listed[first : first + len(run)] == 0).tolist():
            if first + row not in condemned:
                found[first + row] = bytes(run["id"][row])
    return found


def _differing(rows: Iterable[tuple[str, bytes]], problem: str) -> Iterator[Damage]:
    names = [f"{table} {_key_text(key)}" for table, key in rows]
    for name in names[:_MAX_ROWS]:
        yield Damage("tables", name, f"the row {problem}")
    if len(names) > _MAX_ROWS:
        yield Damage("tables", "", f"{len(names) - _MAX_ROWS} more rows: {problem}")


def _check_rows(store: Store, txn: Transaction) -> Iterator[Damage]:
    """Every record of every table can be read."""
    database, catalog = store.database, store.catalog
    readers: dict[str, Callable[[], Iterable[object]]] = {
        "layers": lambda: catalog.layers(txn),
        "blobs": lambda: catalog.blobs(txn),
        "images": lambda: catalog.images(txn),
        "refs": lambda: catalog.refs(txn),
        "snapshots": lambda: SnapshotTable(database).records(txn),
        "mounts": lambda: MountTable(database).items(txn),
        "contents": lambda: ContentTable(database).names(txn),
        "leases": lambda: LeaseTable(database).items(txn),
        "sessions": lambda: SessionTable(database).items(txn),
        "condemned": lambda: CondemnedTable(database).numbers(txn),
        "free": lambda: store.chunkfile.free_extents(txn),
    }
    for table, rows in readers.items():
        try:
            for _ in rows():
                pass
        except CorruptStore as error:
            yield Damage("tables", table, str(error))


def _check_index(store: Store, txn: Transaction, found: Structure) -> Iterator[Damage]:
    """Numbers ascend, places lie in the file, and a row of `chunks` leads to a place of its ID."""
    count = store.index.count(txn)
    if count > _MAX_NUMBERS:
        yield Damage("tables", "state next_number", "no store has given so many numbers")
        return
    size = min(store.chunkfile.size(txn), store.layout.chunks.stat().st_size)
    listed, rows = _listed(store, txn, count)
    condemned = np.zeros(count + 1, np.bool_)
    numbers = CondemnedTable(store.database).numbers(txn)
    condemned[numbers[numbers <= count]] = True
    outside, wrong = list[int](), list[int]()
    below = 1
    for first, run in store.index.runs(txn):
        if not below <= first <= first + len(run) - 1 <= count:
            yield Damage(
                "tables", f"places {first}", "numbers that are others', or were never given"
            )
            return
        below = first + len(run)
        outside += (np.flatnonzero(run["address"] + run["encoded"] > size) + first).tolist()
        mark, is_condemned = listed[first:below], condemned[first:below]
        rows -= int(np.count_nonzero(mark))
        misled = (mark != 0) & ((mark != _folded(run["id"])) | is_condemned)
        wrong += (np.flatnonzero(misled) + first).tolist()
        found.unlisted += int(np.count_nonzero((mark == 0) & ~is_condemned))
    if outside:
        yield Damage("chunk", "", "they lie outside the chunk file", tuple(outside))
    if wrong:
        yield Damage(
            "index", "", "chunk IDs lead to chunks of others, or that are condemned", tuple(wrong)
        )
    if rows:
        yield Damage("index", "", f"{rows} chunk IDs lead to no place")


def _listed(store: Store, txn: Transaction, count: int) -> tuple[npt.NDArray[np.uint64], int]:
    """For each number a word made of the chunk ID that leads to it, 0 without one; and how many rows there are."""
    listed = np.zeros(count + 1, "u8")
    rows = store.database.items(txn, "chunks")
    total = 0
    while batch := list(islice(rows, _BATCH)):
        total += len(batch)
        keys = b"".join([key for key, _ in batch])
        values = b"".join([value for _, value in batch])
        if len(keys) != 32 * len(batch) or len(values) != 8 * len(batch):
            raise CorruptStore(
                "the store's tables are damaged: a row of chunk IDs has the wrong length"
            )
        numbers = np.frombuffer(values, ">u8").astype("u8")
        given = numbers <= np.uint64(count)
        listed[numbers[given]] = _folded(np.frombuffer(keys, "V32"))[given]
    return listed, total


def _folded(ids: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    """A word that changes with any bit of an ID, never 0."""
    words = np.ascontiguousarray(ids).view("<u8").reshape(-1, 4)
    folded: npt.NDArray[np.uint64] = np.bitwise_xor.reduce(words, axis=1) | np.uint64(1 << 63)
    return folded


def _check_space(store: Store, txn: Transaction) -> Iterator[Damage]:
    """No two frames overlap, and none lies in free space or in what a session has still to write."""
    size = store.chunkfile.size(txn)
    free = list(store.chunkfile.free_extents(txn))
    reserved = [
        Extent(until, end)
        for _, session in SessionTable(store.database).items(txn)
        for _, end, until in session.extents
    ]
    if any(start % BLOCK or end % BLOCK or end > size for start, end in free):
        yield Damage("space", "", "a free extent is not one of whole blocks in the chunk file")
    # A store from before the table lists none of its older room: that is only not used.
    reusable = {unpack_u64(key) for key, _ in store.database.items(txn, "reusable")}
    if reusable - {one.start for one in free if one.end - one.start >= WORTH_REUSING}:
        yield Damage("space", "", "where writers find room is not what is free")
    # A crash may undo the growth of the file, where nothing was committed yet: that is free, or a session's.
    ours = (store.layout.chunks.stat().st_size, *(end for _, end in (*free, *reserved)))
    if size % SEGMENT or size > -(-max(ours) // SEGMENT) * SEGMENT:
        yield Damage("space", "", f"{size} is no size of this chunk file")
    runs = [run[["address", "encoded"]] for _, run in store.index.runs(txn)]
    places = np.unique(np.concatenate(runs)) if runs else np.empty(0, PLACE)  # several may be one
    taken = np.array([*free, *reserved], "i8").reshape(-1, 2)
    starts = np.concatenate([places["address"].astype("i8"), taken[:, 0]])
    ends = np.concatenate([places["address"].astype("i8") + places["encoded"], taken[:, 1]])
    starts, ends = starts[starts < ends], ends[starts < ends]
    order = np.argsort(starts, kind="stable")
    overlaps = int(np.count_nonzero(starts[order][1:] < ends[order][:-1]))
    if overlaps:
        yield Damage("space", "", f"{overlaps} chunks or free extents overlap")


def _check_links(store: Store, txn: Transaction) -> Iterator[Damage]:
    """Records lead to records: names to images, images to documents and layers, blobs to layers, streams to places."""
    layers = set(store.catalog.layer_digests(txn))
    blobs = dict(store.catalog.blobs(txn))
    for digest, image in store.catalog.images(txn):
        missing = [d for d in (digest, image.config) if d not in blobs]
        missing += [d for d in image.diff_ids if d not in layers]
        if missing:
            yield Damage("image", digest, f"{missing[0]} is missing")
    for name, target in store.catalog.refs(txn):
        if target not in blobs:
            yield Damage("ref", name, f"{target} is missing")
    for digest, record in blobs.items():
        if record.diff_id is not None and record.diff_id not in layers:
            yield Damage("blob", digest, f"its layer {record.diff_id} is missing")


def _row_hash(value: bytes) -> bytes:
    return kernels.blake3(value)[:16]


def _key_text(key: bytes) -> str:
    return key.decode() if key.isascii() and key.decode().isprintable() else key.hex()
