"""Bytes on disk that changed by themselves: reads never give wrong ones, and verify says what is hit."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pytest

from layerstore.api import open_store
from layerstore.digest import digest_of
from layerstore.errors import CorruptStore, LayerstoreError
from tests.support.archive_builders import Image, layer_tar
from tests.support.stores import assert_holds, payload, sample_images, write_archive

if TYPE_CHECKING:
    from pathlib import Path

    from layerstore.api import LayerStore

_FLIPS = 1500  # of about 60,000 bytes: every byte would take minutes, and frames are longer than the step
_DAMAGES = 100

_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["layerstore.api", "tests.support.stores"])


def _tiny_image() -> Image:
    """Two layers with files of one chunk and of several, and with a hole."""
    files = {f"app/{name}.txt": payload(i, 3000 + 500 * i) for i, name in enumerate("abcdef")}
    lower = layer_tar({**files, "app/big.bin": payload(50, 60_000)})
    upper = layer_tar({"app/zeros": bytes(40_000), "app/a.txt": payload(60, 5000)})
    return Image.of([lower, upper], "test/tiny:1")


def _paths_by_chunk(store: LayerStore) -> dict[int, set[tuple[str, str]]]:
    """Chunk number -> (layer, path) of the files that need it; recomputed from the parts, row by row."""
    found: dict[int, set[tuple[str, str]]] = {}
    with store.store.read() as txn:
        layers = list(store.store.catalog.layers(txn))
    for diff_id, record in layers:
        for stretch in record.stretches:
            if not stretch.part:
                continue
            part = store.store.reader.part(stretch)
            extents = iter(part.extents.tolist())
            for entry in part.entries:
                left = entry.stored
                while left:
                    number, length = next(extents)
                    found.setdefault(number, set()).add((diff_id, entry.path.decode()))
                    left -= length
    return found


@pytest.mark.slow
def test_flipped_byte_anywhere_is_never_read_and_always_named(tmp_path: Path) -> None:
    image = _tiny_image()
    with open_store(tmp_path / "store") as store:
        store.load(write_archive(tmp_path, image))
        with store.store.read() as txn:
            runs = [(first, run) for first, run in store.store.index.runs(txn)]
        places = np.concatenate([run for _, run in runs])
        numbers = np.concatenate([np.arange(first, first + len(run)) for first, run in runs])
        used = int((places["address"] + places["encoded"]).max())
        paths = _paths_by_chunk(store)
        reachable = _reachable(store, paths)
        fd = os.open(tmp_path / "store" / "chunks", os.O_RDWR)
        rng = random.Random(2)
        offsets = sorted({*range(0, used, max(used // _FLIPS, 1)), used - 1})
        for offset in offsets:
            before = os.pread(fd, 1, offset)
            os.pwrite(fd, bytes([before[0] ^ rng.randrange(1, 256)]), offset)
            row = np.flatnonzero(
                (places["address"] <= offset) & (offset < places["address"] + places["encoded"])
            )
            hit = {int(number) for number in numbers[row]}
            for layer in image.layers:
                _read_all_or_raise(store, layer)
            report = store.verify()
            named = {number for damage in report.damages for number in damage.damage.chunks}
            assert named == hit & reachable, f"byte {offset}"
            for damage in report.damages:
                assert damage.images == ("docker.io/test/tiny:1",)
            files = {
                (damage.damage.name, path)
                for damage in report.damages
                for path in damage.damage.paths
                if damage.damage.what == "layer" and not path.startswith("(")
            }
            assert files == {name for number in hit for name in paths.get(number, ())}
            os.pwrite(fd, before, offset)
        os.close(fd)
        assert store.verify().damages == ()
        assert_holds(store, image)


def _reachable(store: LayerStore, paths: dict[int, set[tuple[str, str]]]) -> set[int]:
    reachable = set(paths)
    with store.store.read() as txn:
        streams = [record.stretches for _, record in store.store.catalog.layers(txn)]
        streams += [record.stretches for _, record in store.store.catalog.blobs(txn)]
    for stretches in streams:
        for stretch in stretches:
            reachable |= {*stretch.literals, *stretch.part}
    return reachable


def _read_all_or_raise(store: LayerStore, layer: bytes) -> None:
    got = b""
    try:
        for block in store.iter_layer(digest_of(layer)):
            got += block
    except CorruptStore:
        assert layer.startswith(got), "what came before the error was right"
    else:
        assert got == layer


def test_damage_in_unused_space_does_no_harm(tmp_path: Path) -> None:
    image = _tiny_image()
    with open_store(tmp_path / "store") as store:
        store.load(write_archive(tmp_path, image))
        with store.store.read() as txn:
            free = list(store.store.chunkfile.free_extents(txn))
        fd = os.open(tmp_path / "store" / "chunks", os.O_RDWR)
        for extent in free:
            os.pwrite(fd, os.urandom(8192), extent.start)
            os.pwrite(fd, os.urandom(8192), extent.end - 8192)
        os.close(fd)
        assert store.verify().damages == ()
        assert_holds(store, image)
        (other,) = sample_images(21, count=1)
        store.load(write_archive(tmp_path, other))  # writes over it
        assert store.verify().damages == ()
        assert_holds(store, other)


def test_chunk_file_cut_short_is_damage_and_not_a_crash(tmp_path: Path) -> None:
    image = _tiny_image()
    archive = write_archive(tmp_path, image)
    with open_store(tmp_path / "store") as store:
        store.load(archive)
    os.truncate(tmp_path / "store" / "chunks", 5000)
    with open_store(tmp_path / "store") as store:
        damages = store.verify().damages
        assert {damage.damage.what for damage in damages} >= {"layer", "blob"}
        blocks = (store.iter_layer(digest_of(layer)) for layer in image.layers)
        with pytest.raises(CorruptStore):
            b"".join(chain.from_iterable(blocks))


def test_missing_chunk_file_or_tables_are_a_corrupt_store(tmp_path: Path) -> None:
    for name in ("chunks", "meta"):
        root = tmp_path / f"without-{name}"
        with open_store(root):
            pass
        (root / name).rename(tmp_path / name)
        for read_only in (True, False):
            with pytest.raises(CorruptStore, match=name):
                open_store(root, read_only=read_only)


def _use(root: str, digests: tuple[str, ...]) -> None:
    """Read everything of a store whose tables may be damaged; the exit code says how it went."""
    try:
        with open_store(root) as store:
            damaged = bool(store.verify().damages)
            for summary in store.images():
                store.inspect(summary.digest)
                store.history(summary.digest)
            for digest in digests:
                data = b"".join(store.iter_layer(digest))
                if digest_of(data) != digest:
                    os._exit(1)  # wrong bytes: the one thing that must never be
            os._exit(4 if damaged else 0)
    except LayerstoreError:
        os._exit(2)
    except OSError:
        os._exit(3)


def _outcome(root: Path, image: Image) -> int:
    digests = tuple(digest_of(layer) for layer in image.layers)
    child = _children.Process(target=_use, args=(str(root), digests))
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flip", "zero"])
def test_damaged_tables_end_in_an_error_and_never_in_wrong_bytes(tmp_path: Path, kind: str) -> None:
    image = _tiny_image()
    whole = tmp_path / "whole"
    with open_store(whole) as store:
        store.load(write_archive(tmp_path, image))
    assert _outcome(whole, image) == 0
    data = (whole / "meta" / "data.mdb").read_bytes()
    written = np.flatnonzero(np.frombuffer(data, "u1"))
    rng = random.Random(3)
    outcomes: dict[int, int] = {}
    for _ in range(_DAMAGES):
        root = tmp_path / "damaged"
        shutil.copytree(whole, root, ignore=shutil.ignore_patterns("chunks"))
        os.link(whole / "chunks", root / "chunks")
        changed = bytearray(data)
        at = int(rng.choice(written))
        if kind == "flip":
            changed[at] ^= 1 << rng.randrange(8)
        else:
            changed[at : at + 64] = bytes(len(changed[at : at + 64]))
        (root / "meta" / "data.mdb").write_bytes(changed)
        outcome = _outcome(root, image)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        shutil.rmtree(root)
    assert 1 not in outcomes, "wrong bytes, or an exception that is not ours"
    assert all(outcome >= 0 for outcome in outcomes), "LMDB's own checks came before a signal"
    assert outcomes[2] > 10, "most damage to pages in use is noticed"


@pytest.mark.slow
def test_tables_cut_short_are_never_read_as_something_else(tmp_path: Path) -> None:
    image = _tiny_image()
    root = tmp_path / "store"
    with open_store(root) as store:
        store.load(write_archive(tmp_path, image))
    data = (root / "meta" / "data.mdb").read_bytes()
    outcomes = set()
    for size in range(0, len(data), 4096):
        (root / "meta" / "data.mdb").write_bytes(data[:size])
        outcomes.add(_outcome(root, image))
    # Never SIGBUS, which is a page of LMDB's map behind the file's end; an empty file is a store of nothing.
    assert outcomes <= {0, 2, 4}
    assert 2 in outcomes
