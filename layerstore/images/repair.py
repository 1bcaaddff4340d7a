"""Repair: tables made anew, damaged chunks healed from other copies of the images, and what stays damaged named.

    tables   unreadable, or not what the journal says?   made anew from the journal               store/rebuild.py
    journal  damaged?                                    begun anew from the tables
    look     all chunks, layers and blobs                                                         store/check.py
    close    damaged chunks are found by no look-up from here on                                  store/heal.py
    heal     from each source: chunks by their IDs; then layers and blobs that are still hit are
             stored anew, and their records lead to the new chunks                                sources.py
    look     again at what was damaged

A source only gives bytes: each chunk is compared with its ID and each layer and blob with its digest, so that a wrong or
hostile archive heals nothing and does no harm. Nothing is deleted, no image and no name. Every step is durable before
the next, and what a stopped run has not done, the next does.

Source: docs/durability.md, "Repair".
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore import kernels
from layerstore.archives import open_archive
from layerstore.digest import DiffID, Digest
from layerstore.errors import CorruptStore
from layerstore.formats.codecs import SNIFF_SIZE, sniff
from layerstore.images.checking import ImageDamage, with_images
from layerstore.images.progress import SILENT
from layerstore.images.sources import ArchiveSource, StoreSource
from layerstore.ingest import Expected, ingest_blob, ingest_layer
from layerstore.limits import Limits
from layerstore.store.catalog import Wrapping
from layerstore.store.check import Damage, VerifyOptions, compare_stream, verify_store
from layerstore.store.damage import damaged_among, hit_streams, streams_of
from layerstore.store.gc import collecting_alone
from layerstore.store.heal import chunk_ids, heal_chunks, list_chunks, quarantine_chunks
from layerstore.store.layout import Layout
from layerstore.store.rebuild import TablesReport, rebuild_tables
from layerstore.store.store import Store
from layerstore.store.structure import check_structure, unlisted_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from layerstore.images.progress import Progress
    from layerstore.images.sources import Source

__all__ = ["RepairOptions", "RepairReport", "repair_store"]

_STREAMS = ("layer", "blob")
_HEAL_BYTES = 16 << 20  # contents that are healed together


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """How to repair.

    Attributes:
        sources: where bytes come from, one after the other: archives and layouts of images, folders of other stores.
        accept_loss: make the tables anew also from a journal that is known to lack something.
        limits: what archives may ask for.
    """

    sources: tuple[Path, ...] = ()
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
        damaged: numbers of the chunks that were damaged, those that nothing is known to need among them.
        healed: of those, the ones that have their bytes again.
        stored_again: layers and blobs whose records lead to new chunks now; what they had before goes with `prune`.
        left: what is still damaged, with the images and paths that it hits; its chunks are found by no look-up.
    """

    format_written: bool = False
    tables: TablesReport | None = None
    journal_renewed: bool = False
    listed: int = 0
    damaged: tuple[int, ...] = ()
    healed: tuple[int, ...] = ()
    stored_again: tuple[Digest, ...] = ()
    left: tuple[ImageDamage, ...] = ()


def repair_store(
    root: Path, options: RepairOptions = RepairOptions(), progress: Progress = SILENT
) -> RepairReport:
    """Repair a store, as far as its journal and the sources allow. Others may work on it, unless its tables are damaged.

    Raises:
        NotFound: no store, or a source is not there.
        Busy: the tables are damaged and somebody has the store open; or a prune or repair is under way.
        CorruptStore: the tables are damaged and the journal is not enough; they are as they were.
        MalformedInput: a source is damaged; what was healed before stays.
        StoreFull: what was repaired before stays.
    """
    layout = Layout(root)
    format_written = layout.restore_format()
    tables = _repair_tables(layout, accept_loss=options.accept_loss)
    with Store(root, create=False, limits=options.limits) as store, collecting_alone(store):
        report = _Repairer(store, options.sources, progress).run()
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

    def __init__(self, store: Store, sources: Sequence[Path], progress: Progress) -> None:
        self._store, self._sources, self._progress = store, sources, progress
        self._damaged: set[int] = set()
        self._ids: dict[int, bytes] = {}  # of those that have a place
        self._healed: set[int] = set()
        self._again: list[Digest] = []
        self._left: list[Damage] = []  # of layers and blobs
        self._in_place = True

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
        damaged = self._damaged = set(found.damaged)
        self._ids = chunk_ids(store, damaged)
        quarantine_chunks(store, self._ids)
        self._in_place = not any(damage.what == "space" for damage in found.damages)
        self._left = [one for one in found.damages if one.what in _STREAMS]
        others = [one for one in found.damages if one.what not in (*_STREAMS, "journal", "chunk")]
        listed = self._list(damaged)
        for source in self._sources:
            if self._left:
                self._heal_from(source)
        return RepairReport(
            listed=listed,
            damaged=tuple(sorted(damaged)),
            healed=tuple(sorted(self._healed)),
            stored_again=tuple(self._again),
            left=with_images(store, [*others, *self._left]),
        )

    def _list(self, damaged: set[int]) -> int:
        """Let look-ups find again what they lost; not what is damaged."""
        with self._store.read() as txn:
            unlisted = unlisted_chunks(self._store, txn)
        whole = {number: key for number, key in unlisted.items() if number not in damaged}
        return list_chunks(self._store, whole)

    def _heal_from(self, path: Path) -> None:
        """Chunks by their IDs; what is damaged then has a damaged recipe, or was cut in another way: it is stored anew."""
        with self._opened(path) as source:
            try:
                self._heal_chunks(source)
            finally:
                self._look_again()
            for damage in self._left:
                if self._store_again(source, damage.what, Digest(damage.name)):
                    self._again.append(Digest(damage.name))
            self._look_again()

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Source]:
        store = self._store
        if (path / "FORMAT").exists():
            with Store(path, create=False, read_only=True) as other:
                yield StoreSource(other)
        else:
            with open_archive(path, store.layout.tmp, store.limits) as archive:
                yield ArchiveSource(archive, store, self._progress)

    def _heal_chunks(self, source: Source) -> None:
        wanted: dict[bytes, list[int]] = {}
        for number, chunk_id in self._ids.items():
            if number not in self._healed:
                wanted.setdefault(chunk_id, []).append(number)
        contents: dict[int, bytes] = {}
        size = 0
        try:
            for chunk_id, content in source.chunks(wanted, {one.name for one in self._left}):
                if kernels.blake3(content) == chunk_id:
                    contents |= dict.fromkeys(wanted.pop(chunk_id, ()), content)
                    size += len(content)
                if size >= _HEAL_BYTES:
                    self._heal(contents)
                    contents, size = {}, 0
        finally:
            self._heal(contents)

    def _heal(self, contents: dict[int, bytes]) -> None:
        if contents:
            whole = heal_chunks(self._store, contents, in_place=self._in_place)
            list_chunks(self._store, {number: self._ids[number] for number in whole})
            self._healed |= whole

    def _store_again(self, source: Source, what: str, digest: Digest) -> bool:
        """Store a layer or blob anew, so that its record leads to other chunks; whether the source has it."""
        opener = source.open_layer(DiffID(digest)) if what == "layer" else source.open_blob(digest)
        if opener is None:
            return False
        with opener() as probe:
            compression = sniff(probe.read(SNIFF_SIZE))
        with self._store.begin() as session, opener() as stream:
            session.hold([digest])
            if what == "layer":
                expected = Expected(digest, diff_id=DiffID(digest))
                ingest_layer(stream, expected, compression, session)
                return True
            stretches = ingest_blob(stream, Expected(digest, digest), session)
            with session.commit() as txn:
                record = session.catalog.blob(txn, digest)
                if record is not None:
                    # A recipe is left to `optimize`.
                    kept = replace(record, wrapping=Wrapping.KEPT, stretches=stretches)
                    session.catalog.put_blob(txn, digest, kept)
        return True

    def _look_again(self) -> None:
        """Which of the layers and blobs that were damaged still are."""
        store = self._store
        names = {(damage.what, damage.name): damage for damage in self._left}
        with store.read() as txn:
            streams = [one for one in streams_of(store, txn) if (one.what, one.digest) in names]
        left = np.array(sorted(self._damaged - self._healed), "u8")
        still = damaged_among(store.reader, left)
        self._left = list(hit_streams(store, streams, still))
        hit = {(damage.what, damage.name) for damage in self._left}
        for stream in streams:
            if (stream.what, stream.digest) not in hit:
                problem = compare_stream(store.reader, stream)
                if problem:
                    self._left.append(Damage(stream.what, stream.digest, problem))
