"""FORMAT: what a version may open, what it may only read, and what is no FORMAT file."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from layerstore.api import open_store, repair_store
from layerstore.errors import CorruptStore, FailedPrecondition, NotFound, Unsupported
from layerstore.store.layout import Layout
from tests.support.stores import assert_holds, sample_images, write_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from layerstore.api import LayerStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with open_store(tmp_path / "store"):
        pass
    return tmp_path / "store"


def _change(root: Path, **members: object) -> None:
    document = json.loads((root / "FORMAT").read_text())
    del document["blake3"]
    (root / "FORMAT").write_text(json.dumps(document | members))


@pytest.mark.parametrize("read_only", [True, False])
def test_unknown_incompatible_feature_forbids_opening_and_is_named(
    root: Path, read_only: bool
) -> None:
    known = json.loads((root / "FORMAT").read_text())["incompatible"]
    _change(root, incompatible=[*known, "frames-lzma", "more"])
    with pytest.raises(Unsupported, match=r"features frames-lzma, more.*upgrade"):
        open_store(root, read_only=read_only)


@pytest.mark.parametrize("read_only", [True, False])
def test_another_version_is_refused_whatever_else_its_file_says(
    root: Path, read_only: bool
) -> None:
    (root / "FORMAT").write_text('{"magic": "layerstore", "version": 2}')
    with pytest.raises(Unsupported, match=r"format 2.*knows only 1.*upgrade"):
        open_store(root, read_only=read_only)


_WRITES: dict[str, Callable[[LayerStore, Path], Any]] = {
    "load": lambda store, archive: store.load(archive),
    "import": lambda store, archive: store.import_rootfs(archive, "test/new:1"),
    "tag": lambda store, _: store.tag("test/3:0", "test/new:1"),
    "rmi": lambda store, _: store.remove("test/3:0"),
    "prepare": lambda store, _: store.snapshots.prepare("key"),
    "cleanup": lambda store, _: store.snapshots.cleanup(),
    "mount": lambda store, archive: store.mount("test/3:0", archive.parent / "mounted"),
}


@pytest.mark.parametrize("write", _WRITES)
def test_unknown_read_only_compatible_feature_forbids_each_write_and_no_read(
    root: Path, tmp_path: Path, write: str
) -> None:
    image, other = sample_images(3, count=2, layer_size=20_000)
    with open_store(root) as store:
        store.load(write_archive(tmp_path, image))
    _change(root, read_only_compatible=["sums-1"])
    (tmp_path / "mounted").mkdir()
    before = (root / "meta" / "data.mdb").read_bytes()
    with open_store(root) as store:
        assert_holds(store, image)
        assert store.verify().damages == ()
        with pytest.raises(
            Unsupported, match=r"sums-1.*can read the store, but not write.*upgrade"
        ):
            _WRITES[write](store, write_archive(tmp_path, other))
    assert (root / "meta" / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("write", _WRITES)
def test_store_open_for_reading_refuses_each_write(root: Path, tmp_path: Path, write: str) -> None:
    image, other = sample_images(3, count=2, layer_size=20_000)
    with open_store(root) as store:
        store.load(write_archive(tmp_path, image))
    (tmp_path / "mounted").mkdir()
    with open_store(root, read_only=True) as store, pytest.raises(FailedPrecondition):
        _WRITES[write](store, write_archive(tmp_path, other))


def test_unknown_compatible_feature_means_nothing(root: Path, tmp_path: Path) -> None:
    (image,) = sample_images(3, count=1, layer_size=20_000)
    _change(root, compatible=["hints-1"])
    with open_store(root) as store:
        store.load(write_archive(tmp_path, image))
        assert_holds(store, image)


_WHOLE = {
    "magic": "layerstore",
    "version": 1,
    "incompatible": [],
    "read_only_compatible": [],
    "compatible": [],
}
_GARBAGE = {
    "empty": b"",
    "binary": bytes(range(256)),
    "no object": b"[1]",
    "no json": b"{",
    "too long": b" " * 70_000 + json.dumps(_WHOLE).encode(),
    "too deep": b"[" * 60_000,
    "endless number": b'{"version": %s}' % (b"9" * 5000),
    "infinite version": b'{"magic": "layerstore", "version": Infinity}',
    "text for a version": json.dumps(_WHOLE | {"version": "1"}).encode(),
    "true for a version": json.dumps(_WHOLE | {"version": True}).encode(),
    "another magic": json.dumps(_WHOLE | {"magic": "x"}).encode(),
    "features that are text": json.dumps(_WHOLE | {"incompatible": "abc"}).encode(),
    "features that are numbers": json.dumps(_WHOLE | {"read_only_compatible": [1]}).encode(),
    "features that are lists": json.dumps(_WHOLE | {"compatible": [[]]}).encode(),
    "no features": b'{"magic": "layerstore", "version": 1}',
}


@pytest.mark.parametrize("name", _GARBAGE)
def test_garbage_is_a_corrupt_store_and_stays(root: Path, name: str) -> None:
    (root / "FORMAT").write_bytes(_GARBAGE[name])
    with pytest.raises(CorruptStore, match="FORMAT"):
        open_store(root)
    assert (root / "FORMAT").read_bytes() == _GARBAGE[name]


@pytest.mark.parametrize(("old", "new"), [("1", "3"), ("parts-1", "parts-9"), ("gc-1", "gg-1")])
def test_a_change_that_would_be_another_version_is_damage_and_is_repaired(
    root: Path, old: str, new: str
) -> None:
    whole = (root / "FORMAT").read_text()
    (root / "FORMAT").write_text(whole.replace(old, new, 1))
    with pytest.raises(CorruptStore, match="checksum"):
        open_store(root)
    assert repair_store(root).format_written
    assert json.loads((root / "FORMAT").read_text())["version"] == 1
    open_store(root, create=False).close()


def test_a_file_from_before_there_was_a_checksum_gets_one_with_its_next_feature(root: Path) -> None:
    _change(root)
    Layout(root).add_incompatible("blob-recipes-1")
    document = json.loads((root / "FORMAT").read_text())
    assert len(document["blake3"]) == 64
    assert Layout(root).check() == frozenset()


@pytest.mark.parametrize("kind", ["directory", "pipe", "link"])
def test_format_that_is_no_plain_file_is_neither_followed_nor_waited_for(
    root: Path, kind: str
) -> None:
    path = root / "FORMAT"
    path.rename(root / "elsewhere")
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case _:
            path.symlink_to("elsewhere")
    with pytest.raises(CorruptStore, match="no plain file"):
        open_store(root)


def test_known_features_leave_nothing_unknown(root: Path, tmp_path: Path) -> None:
    assert Layout(root).check() == frozenset()
    with pytest.raises(NotFound):
        Layout(tmp_path / "nowhere").check()
