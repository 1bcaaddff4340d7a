"""Garbage collection: records that nothing leads to, chunks that no record needs, blocks that no chunk touches.

    1  records   unreachable from the roots: deleted, in transactions that see the same roots
    2  mark      the chunks of all records that are left, as a bitmap
    3  condemn   the others: no look-up finds them from here on; their places stay
    4  settle    once every session is gone that may have found one before: mark what came since, give back what is
                 needed after all, take away the places of the rest
    5  space     blocks of nobody: into a session's record, punched, onto the free list

Each step leaves a store that is whole, so that it can be killed anywhere; what is left over is found by the next run. No
step waits for anybody: chunks that a session may know stay condemned, and the next run settles them. LMDB's writer lock is
held for batches that are kept short by measuring them. The argument why nothing is lost is in docs/durability.md.

Source: docs/adr/0006; the idea of step 3 and 4 is epoch-based reclamation (Fraser, "Practical lock-freedom", 2004).
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore import kernels
from layerstore.digest import DiffID, from_raw
from layerstore.errors import Busy
from layerstore.store import files
from layerstore.store.catalog import Catalog
from layerstore.store.condemned import CondemnedTable
from layerstore.store.layout import GARBAGE_COLLECTED
from layerstore.store.reach import NumberSet, records_of, stream_numbers
from layerstore.store.roots import expire_leases, read_roots
from layerstore.store.sessionstate import (
    SessionRecord,
    SessionTable,
    end_session,
    reclaim_dead_sessions,
    register_session,
)
from layerstore.store.spacemap import unowned_extents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    import numpy.typing as npt

    from layerstore.digest import Digest
    from layerstore.store.chunkfile import Extent
    from layerstore.store.database import Transaction
    from layerstore.store.store import Store

__all__ = ["GcReport", "GcStep", "collect_garbage", "collecting_alone", "estimate_garbage"]

_AIM_S = 0.010  # for how long a batch may keep other writers waiting, about
_FIRST_ROWS = 256
_FEWEST_ROWS = 256  # one page each: 1 MiB
_MAX_ROWS = 16384
_WINDOW = 1 << 20  # candidates that are sorted at once: 40 MB


class GcStep(StrEnum):
    """What a run is about to do; MARK and SETTLE come twice where there are chunks to condemn."""

    RECORDS = "records"  # see what the roots lead to
    DELETE = "delete"  # records that they do not lead to, if the roots are as they were
    SWEEP = "sweep"  # what others made of those records
    MARK = "mark"
    CONDEMN = "condemn"
    SETTLE = "settle"
    SPACE = "space"


@dataclass(frozen=True, slots=True)
class GcReport:
    """What was collected, or would be.

    Attributes:
        layers: records of layers that are gone.
        blobs: records of blobs (documents, compressed layers) that are gone.
        chunks: chunks that are gone.
        bytes: of the chunk file that came back, in whole blocks.
        given_back: chunks that were condemned, and turned out to be needed.
        waiting: chunks that are condemned, and that a session that goes on may know; the next run frees them.
        longest_lock_s: for how long another writer can have waited.
    """

    layers: int = 0
    blobs: int = 0
    chunks: int = 0
    bytes: int = 0
    given_back: int = 0
    waiting: int = 0
    longest_lock_s: float = 0.0


def collect_garbage(
    store: Store, *, at: Callable[[GcStep], object] = lambda step: None
) -> GcReport:
    """Free what nothing leads to; safe beside all other work on the store, and after a crash of another run.

    `at` is called before each step. What is made of records has to be looked at in SWEEP: records are gone then, and
    their chunks are not.

    Raises:
        Busy: another run is under way.
        CorruptStore: a record, a document or a recipe is damaged, so that nobody can say what it needs. Nothing is freed.
        FailedPrecondition: the store is open for reading only.
        StoreFull: not even what says what is free can be written.
    """
    store.need_write()
    # Also names may need room to be taken away: filesystems that copy on write say so.
    with files.no_room("collect garbage"), collecting_alone(store):
        store.layout.add_read_only_compatible(GARBAGE_COLLECTED)
        return _Collector(store, at).run()


def estimate_garbage(
    store: Store, *, refs: Iterable[str] = (), images: Iterable[Digest] = ()
) -> GcReport:
    """What a run would free if these names and images were removed before. Changes nothing. Raises: CorruptStore."""
    names, gone = set(refs), set(images)
    with store.hold(everything=True), store.read() as txn:
        roots = read_roots(store, txn)
        kept = {target for name, target in store.catalog.refs(txn) if name not in names}
        live = records_of(store, {*kept, *(roots.images - gone), *roots.used}, txn)
        layers = {d: record.stretches for d, record in store.catalog.layers(txn)}
        blobs = {d: record.stretches for d, record in store.catalog.blobs(txn)}
        if roots.all_leased:
            live.layers.update(layers)
            live.blobs.update(blobs)
        marks = NumberSet(store.index.count(txn))
        streams = [stretches for diff_id, stretches in layers.items() if diff_id in live.layers]
        streams += [stretches for digest, stretches in blobs.items() if digest in live.blobs]
        for numbers in stream_numbers(store, streams):
            marks.add(numbers)
        floor = _first_unsettled(store, txn)

        def is_kept(first: int, count: int) -> npt.NDArray[np.bool_]:
            return marks.window(first, count) | (np.arange(first, first + count) >= floor)

        chunks = sum(int((~is_kept(n, len(run))).sum()) for n, run in store.index.runs(txn))
        space = sum(end - start for start, end in unowned_extents(store, txn, is_kept))
    return GcReport(len(layers) - len(live.layers), len(blobs) - len(live.blobs), chunks, space)


class _State(NamedTuple):
    """What one transaction saw, after the marks were brought up to it.

    Attributes:
        floor: chunks from this number on may belong to sessions that go on.
        condemned: numbers, ascending.
        is_settled: whether no session goes on that may know one of them.
    """

    floor: int
    condemned: npt.NDArray[np.uint64]
    is_settled: bool


class _Collector:
    """One run."""

    def __init__(self, store: Store, at: Callable[[GcStep], object]) -> None:
        self._store, self._at = store, at
        self._table = CondemnedTable(store.database)
        self._pace = _Pace(store)
        self._marks = NumberSet(0)
        self._marked: dict[bytes, bytes] = {}  # record -> which version of it is in the marks
        self._layers = self._blobs = self._chunks = self._bytes = self._given_back = 0

    def run(self) -> GcReport:
        self._reclaim()
        expire_leases(self._store)
        self._delete_records()
        self._at(GcStep.SWEEP)
        state = self._mark()
        if len(state.condemned):  # an earlier run was killed, or a session was in its way
            state = self._settle(state)
        if not len(state.condemned):
            self._condemn(state.floor)
            self._reclaim()
            state = self._settle(self._mark())
        self._free_space()
        return GcReport(
            self._layers,
            self._blobs,
            self._chunks,
            self._bytes,
            self._given_back,
            len(state.condemned),
            self._pace.longest_s,
        )

    def _reclaim(self) -> None:
        store = self._store
        reclaim_dead_sessions(store.layout, store.database, store.chunkfile)

    def _delete_records(self) -> None:
        """Delete records that no root leads to; where a root comes meanwhile, all is looked at again."""
        store = self._store
        while True:
            self._at(GcStep.RECORDS)
            # All in one transaction: what a target leads to may have been absent the last time.
            with store.read() as txn:
                roots = read_roots(store, txn)
                if roots.everything:
                    return
                targets = roots.targets()
                live = records_of(store, targets, txn)
                layers = [DiffID(from_raw(key)) for key in _keys(store, txn, "layers")]
                blobs = [from_raw(key) for key in _keys(store, txn, "blobs")]
            # A blob goes before its layer: one that is there has its layer.
            if self._delete(
                [digest for digest in blobs if digest not in live.blobs],
                [diff_id for diff_id in layers if diff_id not in live.layers],
                targets,
            ):
                return

    def _delete(
        self, blobs: list[Digest], layers: list[DiffID], targets: AbstractSet[Digest]
    ) -> bool:
        """Delete records; False if there is a root that was not followed, and what is left has to be looked at again."""
        catalog = self._store.catalog
        self._at(GcStep.DELETE)
        while blobs or layers:
            with self._pace.write() as txn:
                roots = read_roots(self._store, txn)
                if roots.everything or roots.targets() - targets:
                    return False
                for _ in range(self._pace.rows):
                    if blobs:
                        self._blobs += catalog.delete_blob(txn, blobs.pop())
                    elif layers:
                        self._layers += catalog.delete_layer(txn, layers.pop())
                    else:
                        break
        return True

    def _mark(self) -> _State:
        """Bring the marks up to all records of this moment; those that were marked before are not read again."""
        store = self._store
        self._at(GcStep.MARK)
        streams = []
        with store.read() as txn:
            for table in ("layers", "blobs"):
                for key, row in store.database.items(txn, table):
                    version = kernels.blake3(row)
                    if self._marked.get(table.encode() + key) != version:
                        self._marked[table.encode() + key] = version
                        streams.append(Catalog.stretches(row))
            condemned = self._table.numbers(txn)
            before = self._table.sessions_before(txn)
            is_settled = not any(
                session.numbers_from and number < before
                for number, session in SessionTable(store.database).items(txn)
            )
            floor = _first_unsettled(store, txn)
            count = store.index.count(txn)
        self._marks.grow(count)
        for numbers in stream_numbers(store, streams):
            self._marks.add(numbers)
        return _State(floor, condemned, is_settled)

    def _condemn(self, floor: int) -> None:
        """Let no look-up find the chunks below `floor` that no record needs."""
        table = SessionTable(self._store.database)
        self._at(GcStep.CONDEMN)
        for numbers, ids in self._candidates(floor):
            at = 0
            while at < len(numbers):
                with self._pace.write() as txn:
                    until = at + self._pace.rows
                    self._store.index.delist(txn, ids[at:until], numbers[at:until])
                    self._table.add(txn, numbers[at:until])
                    # Whoever begins later cannot have found them.
                    self._table.set_sessions_before(txn, table.next_session(txn))
                at = until

    def _candidates(self, floor: int) -> Iterator[tuple[npt.NDArray[np.uint64], list[bytes]]]:
        """Numbers below `floor` that have a place and no mark, in windows, each in the order of the chunk IDs."""
        numbers: list[npt.NDArray[np.uint64]] = []
        ids: list[npt.NDArray[np.void]] = []
        at = count = 0
        while True:
            with self._store.read() as txn:
                # A window is looked at in one transaction, but not held on to while it is condemned.
                for first, run in self._store.index.runs(txn, at):
                    at = first + len(run)
                    rows = np.flatnonzero(~self._marks.window(first, len(run)))
                    rows = rows[rows + first < floor]
                    numbers.append((rows + first).astype("u8"))
                    ids.append(run["id"][rows])
                    count += len(rows)
                    if count >= _WINDOW:
                        break
                else:
                    at = 0
            if count:
                yield _by_id(np.concatenate(numbers), np.concatenate(ids))
            numbers, ids, count = [], [], 0
            if not at:
                return

    def _settle(self, state: _State) -> _State:
        """Free the condemned chunks without a mark and give the others back, if no session can know them any more."""
        self._at(GcStep.SETTLE)
        if not state.is_settled:
            return state
        needed = self._marks.has(state.condemned)
        self._give_back(state.condemned[needed])
        self._remove(state.condemned[~needed])
        return state._replace(condemned=np.empty(0, "u8"))

    def _give_back(self, numbers: npt.NDArray[np.uint64]) -> None:
        at = 0
        while at < len(numbers):
            with self._pace.write() as txn:
                some = numbers[at : at + self._pace.rows]
                places = self._store.index.places(txn, some)
                sorted_numbers, ids = _by_id(some, places["id"])
                self._store.index.relist(txn, ids, sorted_numbers)
                self._table.remove(txn, some)
            at += len(some)
        self._given_back += len(numbers)

    def _remove(self, numbers: npt.NDArray[np.uint64]) -> None:
        at = 0
        while at < len(numbers):
            with self._pace.write() as txn:
                some = numbers[at : at + self._pace.rows]
                self._chunks += self._store.index.remove(txn, some)
                self._table.remove(txn, some)
            at += len(some)

    def _free_space(self) -> None:
        """Punch the blocks of nobody and put them on the free list, under a session's record meanwhile.

        The same for what is on the free list and takes disk space: a hole is not synced, so a crash may undo it.
        """
        store = self._store
        self._at(GcStep.SPACE)
        with store.read() as txn:
            unowned = unowned_extents(store, txn)
            stale = list(store.chunkfile.stale_extents(txn))
        if not unowned and not stale:
            return
        session, lock = register_session(store.layout, store.database, SessionRecord())
        try:
            self._free_extents(session, unowned, stale)
            end_session(store.database, store.chunkfile, session)
            store.layout.session_lock(session).unlink(missing_ok=True)
        finally:
            os.close(lock)

    def _free_extents(
        self, session: int, unowned: Sequence[Extent], stale: Sequence[Extent]
    ) -> None:
        table, chunkfile = SessionTable(self._store.database), self._store.chunkfile
        taken: list[Extent] = []
        at, count = 0, len(unowned) + len(stale)
        while taken or at < count:
            with self._pace.write() as txn:
                for extent in taken:
                    chunkfile.release(txn, extent)
                until = min(at + self._pace.rows, count)
                taken = list(unowned[at:until])
                for extent in stale[max(at - len(unowned), 0) : max(until - len(unowned), 0)]:
                    taken += chunkfile.claim(txn, extent)  # a session may have reserved some of it
                rows = tuple((start, end, start) for start, end in taken)
                table.put(txn, session, SessionRecord(rows))
            for extent in taken:
                chunkfile.punch(extent)
                self._bytes += extent.end - extent.start
            at = until


class _Pace:
    """Transactions of a size that keeps others waiting for about 10 ms, and as long a pause between two of them.

    A disk may need longer for the syncs of any commit: below some size, smaller ones would only be more of them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last_s = 0.0
        self.rows = _FIRST_ROWS
        self.longest_s = 0.0

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A write transaction for `rows` changes."""
        # LMDB's lock is not fair: who lets go and asks again at once mostly gets it.
        time.sleep(self._last_s)
        with self._store.write() as txn:
            begin = time.perf_counter()
            yield txn
        self._last_s = time.perf_counter() - begin
        self.longest_s = max(self.longest_s, self._last_s)
        factor = min(2.0, _AIM_S / max(self._last_s, 1e-6))
        self.rows = min(max(int(self.rows * factor), _FEWEST_ROWS), _MAX_ROWS)


@contextmanager
def collecting_alone(store: Store) -> Iterator[None]:
    """Let nobody else collect garbage or repair meanwhile. Raises: Busy."""
    with ExitStack() as stack:
        try:
            stack.enter_context(files.locked_directory(store.layout.tmp, wait=False))
        except Busy:
            raise Busy("another prune or repair of this store is under way; wait for it") from None
        yield


def _first_unsettled(store: Store, txn: Transaction) -> int:
    """The first number that may be of a chunk whose session has not committed the record for it yet."""
    firsts = [one.numbers_from for _, one in SessionTable(store.database).items(txn)]
    return min([store.index.count(txn) + 1, *(first for first in firsts if first)])


def _keys(store: Store, txn: Transaction, table: str) -> list[bytes]:
    return [key for key, _ in store.database.items(txn, table)]


def _by_id(
    numbers: npt.NDArray[np.uint64], ids: npt.NDArray[np.void]
) -> tuple[npt.NDArray[np.uint64], list[bytes]]:
    """Both in the order of the chunk IDs, so that neighbours are on one page of the table."""
    head = np.ascontiguousarray(ids).view("u1").reshape(-1, ids.dtype.itemsize)[:, :8]
    order = np.argsort(np.ascontiguousarray(head).view(">u8").reshape(-1), kind="stable")
    data = ids[order].tobytes()
    width = ids.dtype.itemsize
    return numbers[order], [data[at : at + width] for at in range(0, len(data), width)]
