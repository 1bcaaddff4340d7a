"""Stores that earlier versions made: this one opens, reads, verifies and extends them. See tests/data/golden/make.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from layerstore.api import open_store
from layerstore.digest import digest_of
from tests.support.archive_builders import Image, layer_tar
from tests.support.stores import assert_holds, payload, write_archive

if TYPE_CHECKING:
    from layerstore.api import LayerStore

_GOLDEN = Path(__file__).parents[1] / "data" / "golden"
_STORES = sorted(path.name.removesuffix(".json") for path in _GOLDEN.glob("*.json"))


@pytest.fixture(params=_STORES)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A golden store, unpacked, and what is in it."""
    root = tmp_path / "store"
    root.mkdir(mode=0o700)
    packed = _GOLDEN / f"{request.param}.tar.zst"
    subprocess.run(["tar", "--zstd", "-C", root, "-xf", packed], check=True)
    facts: dict[str, Any] = json.loads((_GOLDEN / f"{request.param}.json").read_text())
    return root, facts


def test_there_is_a_golden_store() -> None:
    assert "store-1" in _STORES


def _assert_golden(store: LayerStore, facts: dict[str, Any]) -> None:
    found = {name: summary.id for summary in store.images() for name in summary.names}
    assert found.items() >= facts["images"].items()
    for diff_id in facts["layers"]:
        assert digest_of(b"".join(store.iter_layer(diff_id))) == diff_id
    manifest = facts["kept_manifest"]
    document = b"".join(store.iter_blob(manifest))
    assert digest_of(document) == manifest
    for layer in json.loads(document)["layers"]:
        blob = b"".join(store.iter_blob(layer["digest"]))
        assert blob.startswith(b"\x1f\x8b")
        assert digest_of(blob) == layer["digest"]
    kinds = {info.name: str(info.kind) for info in store.snapshots.walk()}
    assert kinds == facts["snapshots"]
    assert store.snapshots.stat("done").labels == {"label": "kept"}
    assert store.view("golden/app:1").read_bytes("usr/lib/big.so") == payload(1, 150_000)
    assert store.verify().damages == ()


def test_golden_store_opens_for_reading_and_stays_as_it_is(
    golden: tuple[Path, dict[str, Any]],
) -> None:
    root, facts = golden
    before = {name: (root / name).read_bytes() for name in ("FORMAT", "meta/data.mdb")}
    with open_store(root, create=False, read_only=True) as store:
        _assert_golden(store, facts)
    assert before == {name: (root / name).read_bytes() for name in before}


def test_golden_store_is_written_to_and_shares_its_chunks(
    golden: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    root, facts = golden
    # The same file in another layer: cutting and hashing are as they were, or nothing would be shared.
    again = Image.of([layer_tar({"moved/big.so": payload(1, 150_000)})], "golden/again:1")
    other = Image.of([layer_tar({"new": payload(99, 50_000)})], "golden/new:1")
    with open_store(root, create=False) as store:
        report = store.load(write_archive(tmp_path, again))
        assert report.new_bytes < 4096
        store.load(write_archive(tmp_path, other))
        store.tag("golden/app:1", "golden/tagged:1")
        store.remove("golden/base:1")
        store.snapshots.commit("done too", "active")
    del facts["images"]["docker.io/golden/base:1"]
    facts["snapshots"] = {"done": "committed", "done too": "committed"}
    with open_store(root, create=False) as store:
        _assert_golden(store, facts)
        assert_holds(store, again)
        assert_holds(store, other)
