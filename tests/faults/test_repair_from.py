"""Damaged chunks get their bytes again from other copies of the images, and nothing else is touched."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from layerstore.api import open_store, repair_store
from layerstore.errors import Busy, MalformedInput
from layerstore.formats.frame import FrameEncoder
from layerstore.store.gc import collecting_alone
from layerstore.store.mountstate import MountRecord, MountTable
from tests.faults.injection import GONE, stopping
from tests.support.archive_builders import oci_layout_of, write_folder
from tests.support.stores import (
    assert_clean,
    assert_holds,
    assert_tight,
    sample_images,
    write_archive,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.api import LayerStore

_IMAGES = sample_images(70, count=2, layer_size=80_000)
_KINDS = ["docker", "layout", "store"]

_MEMORY = Path("/dev/shm")
_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["layerstore.images.repair", "tests.faults.injection"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store, and the images in every form that repair can read."""
    folder = tmp_path_factory.mktemp("world")
    for number, image in enumerate(_IMAGES):
        write_archive(folder, image).rename(folder / f"docker-{number}")
        name = {"io.containerd.image.name": image.tags[0]}
        write_folder(folder / f"layout-{number}", oci_layout_of([(image, name)]))
    for form in ("docker", "layout"):
        with open_store(folder / f"model-{form}") as store:
            for number in (0, 1):
                store.load(folder / f"{form}-{number}")
    with open_store(folder / "store") as store:
        for number in (1, 0):  # other numbers there than here
            store.load(folder / f"docker-{number}")
    return folder


def _sources(world: Path, kind: str) -> list[Path]:
    return [world / "store"] if kind == "store" else [world / f"{kind}-{n}" for n in range(2)]


def _model(world: Path, kind: str) -> Path:
    """A store of what the source has: documents and compressed layers are of the one form or the other."""
    return world / ("model-layout" if kind == "layout" else "model-docker")


@pytest.fixture
def root(world: Path, tmp_path: Path) -> Path:
    return _copy(world, tmp_path / "ours")


def _copy(world: Path, root: Path, kind: str = "docker") -> Path:
    subprocess.run(["cp", "-a", "--sparse=always", _model(world, kind), root], check=True)
    return root


def _roles(root: Path) -> dict[str, list[int]]:
    """Chunk numbers by what they are for."""
    roles: dict[str, set[int]] = {"literals": set(), "part": set(), "document": set()}
    with open_store(root, read_only=True) as store, store.store.read() as txn:
        for _, layer in store.store.catalog.layers(txn):
            for stretch in layer.stretches:
                roles["literals"] |= set(stretch.literals)
                roles["part"] |= set(stretch.part)
        for _, blob in store.store.catalog.blobs(txn):
            for stretch in blob.stretches:
                roles["document"] |= set(stretch.literals)
        taken = set().union(*roles.values())
        count = store.store.index.count(txn)
    roles["data"] = set(range(1, count + 1)) - taken
    return {role: sorted(numbers) for role, numbers in roles.items()}


def _damage(root: Path, numbers: list[int]) -> None:
    with open_store(root, read_only=True) as store, store.store.read() as txn:
        places = store.store.index.places(txn, np.array(numbers, "u8"))
    fd = os.open(root / "chunks", os.O_RDWR)
    for place in places:
        at = int(place["address"]) + int(place["encoded"]) // 2
        os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 0x55]), at)
    os.close(fd)


def _assert_healed(root: Path) -> None:
    with open_store(root) as store:
        assert_clean(store)
        for image in _IMAGES:
            assert_holds(store, image)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("role", ["data", "literals", "part", "document"])
def test_chunk_of_any_role_is_healed_from_any_source(
    world: Path, tmp_path: Path, kind: str, role: str
) -> None:
    root = _copy(world, tmp_path / "ours", kind)
    numbers = _roles(root)[role][:3]
    _damage(root, numbers)
    report = repair_store(root, sources=_sources(world, kind))
    assert report.damaged == tuple(numbers)
    assert report.left == ()
    if role == "data":
        assert report.healed == tuple(numbers)
        assert report.stored_again == ()
        assert (root / "chunks").read_bytes() == (_model(world, kind) / "chunks").read_bytes()
    _assert_healed(root)
    with open_store(root) as store:
        store.prune()
        assert_tight(store)
    _assert_healed(root)


@pytest.mark.parametrize("kind", _KINDS)
def test_chunk_file_that_is_lost_is_filled_again(world: Path, tmp_path: Path, kind: str) -> None:
    root = _copy(world, tmp_path / "ours", kind)
    (root / "chunks").unlink()
    report = repair_store(root, sources=_sources(world, kind))
    assert report.left == ()
    _assert_healed(root)


def test_what_no_source_has_is_named_with_images_and_paths(world: Path, root: Path) -> None:
    with open_store(root) as store:
        reached = _own_chunks(store, _IMAGES[1].tags[0], _IMAGES[0].tags[0])
    _damage(root, reached[:1])
    report = repair_store(root, sources=[world / "docker-0"])
    (left,) = report.left
    assert left.images == ("docker.io/" + _IMAGES[1].tags[0],)
    assert left.damage.chunks == tuple(reached[:1])
    assert left.damage.paths
    with open_store(root) as store:
        assert_holds(store, _IMAGES[0])
        assert len(store.images()) == 2  # nothing is deleted
        # A load of the same bytes does not rely on the damaged chunk.
        store.remove(_IMAGES[1].tags[0])
        store.prune()
        store.load(world / "docker-1")
    _assert_healed(root)


def _own_chunks(store: LayerStore, name: str, other: str) -> list[int]:
    """Data chunks that only one of two images needs."""
    found = []
    for image in (name, other):
        diff_id = store.inspect(image).layers[1].diff_id
        with store.store.read() as txn:
            record = store.store.catalog.layer(txn, diff_id)
        assert record is not None
        extents = [store.store.reader.part(one).extents["number"] for one in record.stretches]
        found.append({int(number) for array in extents for number in array if number})
    return sorted(found[0] - found[1])


def test_frame_that_comes_out_longer_goes_elsewhere_but_not_under_a_mount(
    world: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = _roles(root)["data"][:2]
    _damage(root, numbers)
    encoder = FrameEncoder(level=1)
    monkeypatch.setattr("layerstore.store.heal.FrameEncoder", lambda: encoder)
    record = MountRecord("t", "/x", "erofs", (), False, "", (), "", False, 0, "boot", 1)
    with open_store(root) as store, store.store.write() as txn:
        mount = MountTable(store.store.database).add(txn, record)
    report = repair_store(root, sources=_sources(world, "docker"))
    assert set(report.healed) < set(numbers)
    with open_store(root) as store, store.store.write() as txn:
        MountTable(store.store.database).delete(txn, mount)
    report = repair_store(root, sources=_sources(world, "docker"))
    assert report.left == ()
    _assert_healed(root)
    with open_store(root) as store:
        store.prune()
        assert_tight(store)


def test_source_of_other_images_or_with_damage_does_no_harm(
    world: Path, root: Path, tmp_path: Path
) -> None:
    numbers = _roles(root)["data"][:1]
    _damage(root, numbers)
    (other,) = sample_images(71, count=1, layer_size=5000)
    report = repair_store(root, sources=[write_archive(tmp_path, other)])
    assert report.left
    assert report.healed == ()
    broken = bytearray((world / "docker-0").read_bytes())
    broken[len(broken) // 2] ^= 1
    (tmp_path / "broken").write_bytes(broken)
    with suppress(MalformedInput):
        repair_store(root, sources=[tmp_path / "broken"])
    assert repair_store(root, sources=_sources(world, "docker")).left == ()
    _assert_healed(root)


def test_prune_and_repair_keep_out_of_each_others_way(root: Path) -> None:
    with open_store(root) as store:
        with collecting_alone(store.store), pytest.raises(Busy):
            repair_store(root)
        assert repair_store(root).left == ()  # open here, and nothing has to be made anew


def _repair_until_stopped(root: str, sources: list[str], at: int) -> None:
    with stopping(at):
        repair_store(root, sources=sources)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder whose syncs take no time."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_end_of_the_process_at_any_step_of_healing_loses_nothing(world: Path, memory: Path) -> None:
    sources = [str(source) for source in _sources(world, "docker")]
    for at in range(0, 2000, 2):  # before each step, which is after the one before
        root = _copy(world, memory / "ours")
        roles = _roles(root)
        _damage(root, [numbers[0] for numbers in roles.values()])
        child = _children.Process(target=_repair_until_stopped, args=(str(root), sources, at))
        child.start()
        child.join()
        assert repair_store(root, sources=sources).left == ()
        _assert_healed(root)
        shutil.rmtree(root)
        if child.exitcode == 0:
            break
        assert child.exitcode == GONE
    assert at > 10, "a repair has many steps"
