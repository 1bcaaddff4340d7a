"""Tables that are lost or damaged are made anew from the journal: everything is there, and a kill at any step loses nothing."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store, repair_store
from layerstore.errors import Busy, CorruptStore, FailedPrecondition, NotFound
from layerstore.store.layout import Layout
from layerstore.store.rebuild import rebuild_tables
from tests.faults.injection import GONE, stopping
from tests.support.stores import assert_clean, assert_holds, sample_images, write_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from layerstore.api import LayerStore

_IMAGES = sample_images(90, count=2, layer_size=60_000)

_MEMORY = Path("/dev/shm")
_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["layerstore.images.repair", "tests.faults.injection"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a past: loads, a name more, an image removed and pruned, a snapshot, a lease."""
    folder = tmp_path_factory.mktemp("repair")
    (gone,) = sample_images(91, count=1, layer_size=60_000)
    with open_store(folder / "model") as store:
        for image in (*_IMAGES, gone):
            store.load(write_archive(folder, image))
        store.tag(_IMAGES[0].tags[0], "test/other:1")
        store.remove(gone.tags[0])
        store.prune()
        store.snapshots.prepare("box", labels={"a": "b"})
        store.lease(_IMAGES[1].tags[0], ttl=3600)
    return folder / "model"


@pytest.fixture
def root(model: Path, tmp_path: Path) -> Path:
    return _copy(model, tmp_path / "store")


def _copy(model: Path, root: Path) -> Path:
    subprocess.run(["cp", "-a", "--sparse=always", model, root], check=True)
    return root


def _rows(store: LayerStore) -> set[tuple[str, bytes, bytes]]:
    database = store.store.database
    with store.store.read() as txn:
        rows = {(one.table, one.key, one.value or b"") for one in database.journaled(txn)}
        return rows | {("chunks", key, value) for key, value in database.items(txn, "chunks")}


def _assert_as(model: Path, root: Path) -> None:
    """All that is acknowledged is there, byte for byte and row for row, and work goes on."""
    with open_store(model) as store:
        want = _rows(store)
    with open_store(root) as store:
        assert _rows(store) == want
        assert_clean(store)
        for image in _IMAGES:
            assert_holds(store, image)
        store.prune()  # takes the space that the tables have forgotten
        orphans = store.verify().checked.orphans
        assert orphans is not None
        assert orphans.space == 0
        (more,) = sample_images(92, count=1, layer_size=60_000)
        store.load(write_archive(root.parent, more))
        assert_clean(store)
        assert_holds(store, more)


def _damage_tables(root: Path, kind: str) -> None:
    path = root / "meta" / "data.mdb"
    match kind:
        case "missing":
            path.unlink()
        case "empty":
            os.truncate(path, 0)
        case "cut":
            os.truncate(path, path.stat().st_size // 2)
        case "noise":
            path.write_bytes(os.urandom(path.stat().st_size))
        case _:
            shutil.rmtree(path.parent)


@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "noise", "folder"])
def test_lost_tables_are_made_anew_from_the_journal(model: Path, root: Path, kind: str) -> None:
    _damage_tables(root, kind)
    report = repair_store(root)
    assert report.tables is not None
    assert report.tables.gaps == ()
    assert report.left == ()
    assert report.tables.kept is None or report.tables.kept.exists()
    _assert_as(model, root)


@pytest.mark.parametrize("table", ["layers", "places", "refs", "chunks", "free"])
def test_row_that_changed_by_itself_is_as_it_was(model: Path, root: Path, table: str) -> None:
    with open_store(root) as store, store.store.write() as txn:
        cursor = store.store.database.cursor(txn, table)
        assert cursor.first()
        key, value = cursor.item()
        if table in ("chunks", "free"):
            cursor.put(key, bytes([*value[:-2], value[-2] ^ 1, value[-1]]))
        else:
            cursor.put(key, bytes([value[0] ^ 1]) + value[1:])
    with open_store(root, read_only=True) as store:
        assert store.verify(depth="structure").damages
    assert repair_store(root).tables is not None
    _assert_as(model, root)


@pytest.mark.parametrize("where", [8, 200, -5])
def test_damaged_journal_is_begun_anew_from_whole_tables(
    model: Path, root: Path, where: int
) -> None:
    data = bytearray((root / "journal").read_bytes())
    data[where] ^= 4
    (root / "journal").write_bytes(data)
    report = repair_store(root)
    assert report.journal_renewed
    assert (report.tables, report.left) == (None, ())
    _assert_as(model, root)
    _damage_tables(root, "missing")
    assert repair_store(root).left == ()


def test_whole_store_is_left_as_it_is(model: Path, root: Path) -> None:
    report = repair_store(root)
    assert (report.tables, report.damaged, report.left, report.listed) == (None, (), (), 0)
    assert not report.journal_renewed
    _assert_as(model, root)


def test_damage_in_both_copies_is_repaired_only_if_the_loss_is_accepted(root: Path) -> None:
    data = bytearray((root / "journal").read_bytes())
    data[len(data) // 2] ^= 1
    (root / "journal").write_bytes(data)
    _damage_tables(root, "cut")
    before = (root / "meta" / "data.mdb").read_bytes()
    with pytest.raises(CorruptStore, match="accept-loss"):
        repair_store(root)
    assert (root / "meta" / "data.mdb").read_bytes() == before
    assert (root / "journal").read_bytes() == data
    report = repair_store(root, accept_loss=True)
    assert report.tables is not None
    assert len(report.tables.gaps) == 1
    assert report.tables.kept is not None
    assert report.tables.kept.read_bytes() == before
    assert (root / "damaged" / f"journal-{report.tables.kept.name}").read_bytes() == data
    with open_store(root) as store:
        store.images()


def test_journal_that_was_given_up_is_not_taken_for_the_store(root: Path) -> None:
    """A full disk ends the journal; what was committed without it must not be rolled back in silence."""
    journal = (root / "journal").read_bytes()
    with open_store(root) as store:
        (root / "journal").unlink()
        store.tag(_IMAGES[0].tags[0], "test/later:1")
    (root / "journal").write_bytes(journal)
    path = root / "meta" / "data.mdb"
    data = bytearray(path.read_bytes())
    for at in (0, 4096):  # neither root page can be used; the rest of the tables is there
        data[at + 16] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptStore, match="ends before"):
        repair_store(root)


def test_without_a_journal_nothing_is_made_up(root: Path) -> None:
    (root / "journal").unlink()
    _damage_tables(root, "noise")
    with pytest.raises(CorruptStore, match="journal is missing"):
        repair_store(root)
    with pytest.raises(NotFound):
        repair_store(root / "nothing")


@pytest.mark.parametrize("kind", ["missing", "damaged"])
def test_format_is_written_again(model: Path, root: Path, kind: str) -> None:
    if kind == "missing":
        (root / "FORMAT").unlink()
    else:
        (root / "FORMAT").write_bytes(b"{" + (root / "FORMAT").read_bytes()[1:-9])
    assert repair_store(root).format_written
    _assert_as(model, root)


def _make_anew(root: Path) -> None:
    """Only the step that needs the store for itself, whether or not it has to be."""
    rebuild_tables(Layout(root))


def _hold_open(root: str, told: Connection) -> None:
    with open_store(root, create=False) as store:
        told.send(b"open")
        told.recv()
        store.tag(_IMAGES[0].tags[0], "test/meanwhile:1")


def test_store_that_others_have_open_is_not_repaired_under_them(root: Path) -> None:
    ours, theirs = _children.Pipe()
    child = _children.Process(target=_hold_open, args=(str(root), theirs))
    child.start()
    assert ours.recv() == b"open"
    data = (root / "meta" / "data.mdb").read_bytes()
    with pytest.raises(Busy):
        _make_anew(root)
    assert (root / "meta" / "data.mdb").read_bytes() == data
    ours.send(b"go on")
    child.join()
    assert child.exitcode == 0
    _make_anew(root)
    with open_store(root) as store:
        assert "docker.io/test/meanwhile:1" in {
            name for one in store.images() for name in one.names
        }
        with pytest.raises(FailedPrecondition):
            _make_anew(root)


def _repair_until_stopped(root: str, at: int) -> None:
    with stopping(at):
        repair_store(root)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder whose syncs take no time."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_end_of_the_process_at_any_step_of_a_repair_loses_nothing(
    model: Path, memory: Path
) -> None:
    for at in range(0, 2000, 2):  # before each step, which is after the one before
        root = _copy(model, memory / "store")
        _damage_tables(root, "cut")
        child = _children.Process(target=_repair_until_stopped, args=(str(root), at))
        child.start()
        child.join()
        report = repair_store(root)
        assert report.left == ()
        if at % 8 == 0 or child.exitcode == 0:
            _assert_as(model, root)
        else:
            with open_store(root) as store:
                assert_clean(store)
                for image in _IMAGES:
                    assert_holds(store, image)
        shutil.rmtree(root)
        if child.exitcode == 0:
            break
        assert child.exitcode == GONE
    assert at > 10, "a repair has many steps"
