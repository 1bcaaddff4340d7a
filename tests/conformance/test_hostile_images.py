"""Links and names of an image that lead out of it lead nowhere: not in a checkout, a plain lower directory, or a commit."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.snapshots import Snapshots
from layerstore.snapshots.plainfiles import PlainLowers
from tests.support.archive_builders import Image, docker_archive_of
from tests.support.snapshots import unmount_below

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.api import LayerStore
    from layerstore.digest import DiffID

NAME = "test/hostile:1"


def _tar(*entries: tuple[str, str | bytes]) -> bytes:
    """A symbolic link to what is text, a file of what is bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "passwd").write_bytes(b"of the host")
    return folder


@pytest.fixture
def store(tmp_path: Path, outside: Path) -> Iterator[LayerStore]:
    up = "../" * 40 + str(outside).lstrip("/")
    links = _tar(("etc", str(outside)), ("up", up), ("d/out", up), ("own", "own"))
    through = _tar(
        ("etc/passwd", b"image"),
        ("up/new", b"image"),
        ("d/out/passwd", b"image"),
        ("own/loop", b"image"),
        ("../../above", b"image"),
        (f"{outside}/absolute", b"image"),
    )
    archive = tmp_path / "image.tar"
    archive.write_bytes(docker_archive_of([Image.of([links, through], NAME)]))
    with open_store(tmp_path / "store") as opened:
        opened.load(archive)
        yield opened
    unmount_below(tmp_path)


def _stack(store: LayerStore, name: str) -> list[DiffID]:
    return [layer.diff_id for layer in store.inspect(name).layers]


def _check(root: Path, outside: Path) -> None:
    assert (root / "etc/passwd").read_bytes() == b"image"
    assert (root / "above").read_bytes() == b"image"
    assert (root / str(outside).lstrip("/") / "absolute").read_bytes() == b"image"
    assert not (root / "etc").is_symlink(), "what is below a link of a lower layer replaces it"
    assert sorted(path.name for path in outside.iterdir()) == ["passwd"]
    assert (outside / "passwd").read_bytes() == b"of the host"


def test_a_checkout(store: LayerStore, tmp_path: Path, outside: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    store.mount(NAME, target, driver="checkout")
    _check(target, outside)
    store.umount(target)
    assert not list(target.iterdir())
    assert (outside / "passwd").read_bytes() == b"of the host"


def test_a_lower_directory_of_plain_files(store: LayerStore, outside: Path) -> None:
    _check(PlainLowers(store.store).lower(_stack(store, NAME)).root, outside)
    assert store.view(NAME).read_bytes("etc/passwd") == b"image"


@pytest.mark.root
def test_a_commit_keeps_links_as_links(store: LayerStore, outside: Path) -> None:
    snapshots = Snapshots(store.store, PlainLowers(store.store))
    store.fork(NAME, ["key"])
    (spec,) = snapshots.mounts("key")
    option = next(option for option in spec.options if option.startswith("upperdir="))
    upper = Path(option.removeprefix("upperdir="))
    for number, target in enumerate((str(outside), str(outside / "passwd"), "../" * 40 + "etc")):
        (upper / f"link{number}").symlink_to(target)
    store.commit("key", "test/committed:1")
    view = store.view("test/committed:1")
    layer = b"".join(store.iter_layer(_stack(store, "test/committed:1")[-1]))
    assert b"of the host" not in layer
    assert all(view.is_symlink(f"link{number}") for number in range(3))
