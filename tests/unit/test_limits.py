"""Each limit lets in what is at it, and refuses what is beyond it by name, with nothing left in the store."""

from __future__ import annotations

import gzip
import io
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from layerstore.api import open_store
from layerstore.errors import InvalidArgument, LimitExceeded, MalformedInput
from layerstore.limits import Limits, parse_limits
from tests.support.archive_builders import (
    Image,
    docker_archive_of,
    image_config,
    layer_tar,
    oci_layout,
    tar_of,
)
from tests.support.stores import assert_clean

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_DEEP = "a/b/c/d/file"
_ONE = layer_tar({"one": b"1", _DEEP: b"2", "x" * 200: b"3"})
_TWO = layer_tar({"two": b"2"})


def _plain(*layers: bytes) -> bytes:
    return docker_archive_of([Image.of(layers, "test/limits:1")])


def _oci(layer: bytes) -> bytes:
    return tar_of(oci_layout([layer], image_config([layer]), "gzip"))


_ZEROS = layer_tar({"zeros": bytes(66 << 20)})  # beyond what may grow whatever the ratio
_RATIO = len(_ZEROS) // len(gzip.compress(_ZEROS, mtime=0))

# name -> an archive, a limit that lets it in, and one that does not
_CASES: Mapping[str, tuple[bytes, int, int]] = {
    "layers": (_plain(_ONE, _TWO), 2, 1),
    "layer_bytes": (_plain(_ONE), len(_ONE), len(_ONE) - 1),
    "entries": (_plain(_ONE), 3, 2),
    "path_bytes": (_plain(_ONE), 200, 199),
    "depth": (_plain(_ONE), 5, 4),
    "document_bytes": (_plain(_ONE), 1000, 100),
    "members": (_plain(_ONE), 6, 5),
    "ratio": (_oci(_ZEROS), _RATIO + 1, _RATIO // 2),
}


@pytest.mark.parametrize("name", _CASES)
def test_limit_lets_in_what_is_at_it_and_refuses_what_is_beyond(tmp_path: Path, name: str) -> None:
    archive, enough, too_low = _CASES[name]
    with open_store(tmp_path / "store", limits=Limits(**{name: too_low})) as store:
        with pytest.raises(LimitExceeded, match=f"raise the limit `{name}`") as caught:
            store.load(io.BytesIO(archive))
        assert (caught.value.limit, caught.value.allowed) == (name, too_low)
        assert caught.value.value > too_low
        assert store.images() == []
        with store.store.read() as txn:
            assert not list(store.store.catalog.images(txn))
        assert_clean(store)
    with open_store(tmp_path / "store", limits=Limits(**{name: enough})) as store:
        assert len(store.load(io.BytesIO(archive)).images) == 1


def test_archive_that_grows_beyond_the_ratio_is_not_spooled_to_its_end(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(200 << 20), 9)
    with (
        open_store(tmp_path, limits=Limits(ratio=100)) as store,
        pytest.raises(LimitExceeded, match="ratio") as caught,
    ):
        store.load(io.BytesIO(bomb))
    assert caught.value.limit == "ratio"
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == []


def test_spooled_archive_beyond_its_limit_is_refused(tmp_path: Path) -> None:
    archive = _plain(_ONE)
    for allowed in (len(archive), len(archive) - 1):
        with open_store(tmp_path, limits=Limits(spool_bytes=allowed)) as store:
            if allowed == len(archive):
                store.load(io.BytesIO(archive))
                continue
            with pytest.raises(LimitExceeded, match="spool_bytes"):
                store.load(io.BytesIO(archive))


def test_limits_hold_for_layers_that_are_known_in_another_wrapping(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.load(io.BytesIO(_plain(_ONE)))
    with (
        open_store(tmp_path, limits=Limits(layer_bytes=len(_ONE) - 1)) as store,
        pytest.raises(LimitExceeded, match="layer_bytes"),
    ):
        store.load(io.BytesIO(_oci(_ONE)))


def test_limits_hold_for_imports(tmp_path: Path) -> None:
    with (
        open_store(tmp_path, limits=Limits(entries=2)) as store,
        pytest.raises(LimitExceeded, match="entries"),
    ):
        store.import_rootfs(io.BytesIO(_ONE), "test/imported:1")


def test_deepest_path_is_named_and_the_root_has_no_depth(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        root = tarfile.TarInfo(".")
        root.type = tarfile.DIRTYPE
        tar.addfile(root)
        tar.addfile(tarfile.TarInfo("deep/er"))
    with open_store(tmp_path, limits=Limits(depth=1)) as store:
        with pytest.raises(LimitExceeded, match="depth of 2") as caught:
            store.import_rootfs(io.BytesIO(out.getvalue()), "test/deep:1")
        assert caught.value.entry == "deep/er"


def test_limit_is_malformed_input_for_whoever_knows_no_limits() -> None:
    assert issubclass(LimitExceeded, MalformedInput)


@pytest.mark.parametrize("value", [0, -1, 1.5, "7", True])
def test_limit_that_is_no_positive_number_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="entries"):
        Limits(entries=value)


def test_texts_are_read_with_units_and_anything_else_is_refused() -> None:
    assert parse_limits([]) == Limits()
    assert parse_limits(["entries=5", "layer_bytes=10G"]) == Limits(entries=5, layer_bytes=10 << 30)
    assert parse_limits(["spool_bytes=2k"]).spool_bytes == 2048
    for bad in ("entries", "entries=", "entries=x", "entries=-1", "entries=0", "size=1", "=1"):
        with pytest.raises(InvalidArgument):
            parse_limits([bad])
