"""Damaged chunks: kept from being relied on, and given their bytes again.

    quarantine   no look-up finds them: a load of the same bytes stores them once more, under another number
    heal         the bytes are there again. In place, where the frame comes out as long as it was: also mounts that
                 read the chunk file see it then. Else in a new place, which goes into the tables; only while nothing is
                 mounted, since data images have addresses in them
    relist       look-ups find them again

In place, only bytes are written that were damaged: a crash leaves the chunk damaged, or whole. That a write changes no
byte beside it is assumed of the disk, as SQLite does ("powersafe overwrite"). A new place is durable before its row (I1).

Nobody may collect garbage meanwhile: places must stay whose they are.

Source: docs/durability.md, "Repair".
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from layerstore.errors import CorruptStore
from layerstore.formats.frame import FrameEncoder
from layerstore.store.condemned import CondemnedTable
from layerstore.store.damage import damaged_among
from layerstore.store.index import PLACE
from layerstore.store.mountstate import ContentTable, MountTable
from layerstore.store.sessionstate import (
    SessionRecord,
    SessionTable,
    end_session,
    register_session,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from layerstore.store.store import Store

__all__ = ["chunk_ids", "heal_chunks", "list_chunks", "quarantine_chunks"]

_BATCH = 4096  # rows in a transaction


def chunk_ids(store: Store, numbers: Iterable[int]) -> dict[int, bytes]:
    """The IDs of those chunks that have a place."""
    found = {}
    with store.read() as txn:
        for number in numbers:
            with suppress(CorruptStore):
                place = store.index.places(txn, np.array([number], "u8"))
                found[number] = bytes(place["id"][0])
    return found


def quarantine_chunks(store: Store, ids: Mapping[int, bytes]) -> None:
    """Let no look-up find these chunks; durable. Records that need them still do."""
    rows = sorted((chunk_id, number) for number, chunk_id in ids.items())
    for at in range(0, len(rows), _BATCH):
        some = rows[at : at + _BATCH]
        with store.write() as txn:
            numbers = np.array([number for _, number in some], "u8")
            store.index.delist(txn, [chunk_id for chunk_id, _ in some], numbers)


def list_chunks(store: Store, ids: Mapping[int, bytes]) -> int:
    """Let look-ups find chunks that are whole and not condemned, unless another of the ID is found; returns how many."""
    rows = sorted((chunk_id, number) for number, chunk_id in ids.items())
    listed = 0
    for at in range(0, len(rows), _BATCH):
        with store.write() as txn:
            condemned = set(CondemnedTable(store.database).numbers(txn).tolist())
            some = [row for row in rows[at : at + _BATCH] if row[1] not in condemned]
            known = store.index.lookup(txn, [chunk_id for chunk_id, _ in some])
            some = [row for row in some if row[0] not in known]
            numbers = np.array([number for _, number in some], "u8")
            store.index.relist(txn, [chunk_id for chunk_id, _ in some], numbers)
            listed += len(some)
    return listed


def heal_chunks(store: Store, contents: Mapping[int, bytes], *, in_place: bool) -> set[int]:
    """Give damaged chunks, by number, the bytes that their IDs name; durable. Returns those that are whole now.

    `in_place` says that the tables can be relied on for who owns which bytes of the chunk file.

    Raises: StoreFull, OSError: what was healed before stays so.
    """
    numbers = sorted(contents)
    encoder = FrameEncoder()
    frames = dict(zip(numbers, encoder.encode([contents[n] for n in numbers]), strict=True))
    left = set(numbers) - _heal_in_place(store, frames) if in_place else set(numbers)
    if left:
        _move(store, {number: frames[number] for number in sorted(left)})
    return set(numbers) - damaged_among(store.reader, np.array(numbers, "u8"))


def _heal_in_place(store: Store, frames: Mapping[int, memoryview]) -> set[int]:
    """Write the frames that are as long as they were; returns those that can be read again."""
    numbers = np.array(list(frames), "u8")
    with store.read() as txn:
        places = store.index.places(txn, numbers)
    fits = []
    for number, place in zip(numbers.tolist(), places, strict=True):
        if len(frames[number]) == int(place["encoded"]):
            with suppress(OSError):  # a block that cannot be written: it goes elsewhere
                store.chunkfile.write(int(place["address"]), bytes(frames[number]))
                fits.append(number)
    if not fits:
        return set()
    with suppress(OSError):
        store.chunkfile.sync()
        return set(fits) - damaged_among(store.reader, np.array(fits, "u8"))
    return set()


def _move(store: Store, frames: Mapping[int, memoryview]) -> None:
    """Put frames into new places; does nothing while something is mounted."""
    session, lock = register_session(store.layout, store.database, SessionRecord())
    try:
        places = _append(store, session, frames)
        store.chunkfile.sync()
        with store.write() as txn:
            if any(True for _ in MountTable(store.database).items(txn)):
                return
            numbers = np.array(list(frames), "u8")
            places["decoded"] = store.index.places(txn, numbers)["decoded"]
            places["id"] = store.index.places(txn, numbers)["id"]
            store.index.move(txn, numbers, places)
            table = ContentTable(store.database)
            for image in table.images(txn):  # they have the old addresses
                table.forget_image(txn, image)
            record = SessionTable(store.database).get(txn, session)
            ours = tuple(
                (start, end, max(start, _used(places, start, end)))
                for start, end, _ in record.extents
            )
            SessionTable(store.database).put(txn, session, SessionRecord(ours))
    finally:
        end_session(store.database, store.chunkfile, session)
        store.layout.session_lock(session).unlink(missing_ok=True)
        os.close(lock)


def _append(store: Store, session: int, frames: Mapping[int, memoryview]) -> npt.NDArray[np.void]:
    """Write frames into extents of a session; returns their places, without what the caller knows."""
    table = SessionTable(store.database)
    places = np.zeros(len(frames), PLACE)
    at = end = 0
    for row, frame in enumerate(frames.values()):
        while at + len(frame) > end:
            with store.write() as txn:
                extent = store.chunkfile.reserve(txn)
                record = table.get(txn, session)
                rows = (*record.extents, (extent.start, extent.end, extent.start))
                table.put(txn, session, SessionRecord(rows))
            at, end = extent
        store.chunkfile.write(at, bytes(frame))
        places[row]["address"], places[row]["encoded"] = at, len(frame)
        at += len(frame)
    return places


def _used(places: npt.NDArray[np.void], start: int, end: int) -> int:
    """Up to where frames lie in an extent."""
    inside = places[(places["address"] >= start) & (places["address"] < end)]
    return int((inside["address"] + inside["encoded"]).max()) if len(inside) else start
