"""Repair: tables made anew, damaged chunks kept from being relied on, and what stays damaged named.

    tables   unreadable, or not what the journal says?   made anew from the journal               store/rebuild.py
    journal  damaged?                                    begun anew from the tables
    look     all chunks, layers and blobs                                                         store/check.py
    close    damaged chunks are found by no look-up from here on                                  store/heal.py

Nothing is deleted, no image and no name. Every step is durable before the next, and what a stopped run has not done, the
next does.

Source: docs/durability.md, "Repair".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from layerstore.errors import CorruptStore
from layerstore.images.checking import ImageDamage, with_images
from layerstore.images.progress import SILENT
from layerstore.limits import Limits
from layerstore.store.check import VerifyOptions, verify_store
from layerstore.store.gc import collecting_alone
from layerstore.store.heal import chunk_ids, list_chunks, quarantine_chunks
from layerstore.store.layout import Layout
from layerstore.store.rebuild import TablesReport, rebuild_tables
from layerstore.store.store import Store
from layerstore.store.structure import check_structure, unlisted_chunks

if TYPE_CHECKING:
    from pathlib import Path

    from layerstore.images.progress import Progress

__all__ = ["RepairOptions", "RepairReport", "repair_store"]


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """How to repair.

    Attributes:
        accept_loss: make the tables anew also from a journal that is known to lack something.
        limits: what archives may ask for.
    """

    accept_loss: bool = False
    limits: Limits = Limits()  # noqa: RUF009  # frozen


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was done, and what is left.

    Attributes:
        format_written: FORMAT was damaged or missing, and was written again.
        tables: how they were made anew; None if they were whole.
        journal_renewed: the journal was damaged, and was begun anew from the tables.
        listed: chunks that look-ups find again.
        damaged: numbers of the chunks that were damaged.
        left: what is still damaged, with the images and paths that it hits; its chunks are found by no look-up.
    """

    format_written: bool = False
    tables: TablesReport | None = None
    journal_renewed: bool = False
    listed: int = 0
    damaged: tuple[int, ...] = ()
    left: tuple[ImageDamage, ...] = ()


def repair_store(
    root: Path, options: RepairOptions = RepairOptions(), progress: Progress = SILENT
) -> RepairReport:
    """Repair a store, as far as its journal allows. Others may work on it, unless its tables are damaged.

    Raises:
        NotFound: no store.
        Busy: the tables are damaged and somebody has the store open; or a prune or repair is under way.
        CorruptStore: the tables are damaged and the journal is not enough; they are as they were.
        StoreFull: what was repaired before stays.
    """
    layout = Layout(root)
    format_written = layout.restore_format()
    tables = _repair_tables(layout, accept_loss=options.accept_loss)
    with Store(root, create=False, limits=options.limits) as store, collecting_alone(store):
        report = _Repairer(store, progress).run()
    return replace(
        report,
        format_written=format_written,
        tables=tables.report,
        journal_renewed=tables.is_journal_damaged,
    )


class _Tables(NamedTuple):
    """What was done about the tables, and whether the journal is damaged although they are whole."""

    report: TablesReport | None
    is_journal_damaged: bool


def _repair_tables(layout: Layout, *, accept_loss: bool) -> _Tables:
    layout.chunks.touch(mode=0o600)  # a lost chunk file is one whose every chunk is damaged
    try:
        with Store(layout.root, create=False, read_only=True) as store:
            found = check_structure(store)
        if not found.needs_tables:
            return _Tables(None, any(one.what == "journal" for one in found.damages))
    except CorruptStore:
        pass
    return _Tables(rebuild_tables(layout, accept_loss=accept_loss), False)


class _Repairer:
    """One run on a store whose tables can be relied on."""

    def __init__(self, store: Store, progress: Progress) -> None:
        self._store, self._progress = store, progress

    def run(self) -> RepairReport:
        store = self._store
        with store.read() as txn:
            store.chunkfile.restore_size(txn)
        found = verify_store(
            store, VerifyOptions(), start=self._progress.start, done=self._progress.advance
        )
        self._progress.finish("damaged" if found.damages else "whole")
        # Opening it has begun a journal that was missing or cut short; one that is damaged inside is left to us.
        if any(damage.what == "journal" for damage in found.damages):
            store.database.renew_journal()
        damaged = {number for damage in found.damages for number in damage.chunks}
        quarantine_chunks(store, chunk_ids(store, damaged))
        left = [damage for damage in found.damages if damage.what not in ("journal", "chunk")]
        return RepairReport(
            listed=self._list(damaged),
            damaged=tuple(sorted(damaged)),
            left=with_images(store, left),
        )

    def _list(self, damaged: set[int]) -> int:
        """Let look-ups find again what they lost; not what is damaged."""
        with self._store.read() as txn:
            unlisted = unlisted_chunks(self._store, txn)
        whole = {number: key for number, key in unlisted.items() if number not in damaged}
        return list_chunks(self._store, whole)
