"""What other users of the machine can see of a store: nothing, whatever the umask of its owner is."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store, repair_store
from layerstore.errors import FailedPrecondition
from tests.support.stores import sample_images, write_archive

if TYPE_CHECKING:
    from pathlib import Path

OTHER = 65534  # a user who is not us


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_folders_are_for_the_owner_alone_and_so_are_files(tmp_path: Path, umask: int) -> None:
    (image,) = sample_images(95, count=1, layer_size=50_000)
    archive = write_archive(tmp_path, image)
    before = os.umask(umask)
    try:
        with open_store(tmp_path / "new" / "store") as store:
            store.load(archive)
            store.remove(image.tags[0])
            store.prune()
            modes = {
                str(path.relative_to(tmp_path)): (path.is_dir(), stat.S_IMODE(path.lstat().st_mode))
                for path in (tmp_path / "new" / "store", *(tmp_path / "new" / "store").rglob("*"))
            }
    finally:
        os.umask(before)
    assert len(modes) > 5
    for name, (is_folder, mode) in modes.items():
        assert mode == (0o700 if is_folder else 0o600), name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with an image in it."""
    (image,) = sample_images(96, count=1, layer_size=50_000)
    with open_store(tmp_path / "store") as store:
        store.load(write_archive(tmp_path, image))
    return tmp_path / "store"


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_an_empty_folder_that_was_there_becomes_the_owners_alone(tmp_path: Path, mode: int) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(mode)
    with open_store(tmp_path / "store"):
        assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


@pytest.mark.parametrize("bit", [stat.S_IWGRP, stat.S_IWOTH])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_store_that_others_may_write_to_is_refused(
    root: Path, bit: int, *, read_only: bool
) -> None:
    root.chmod(0o700 | bit)
    with pytest.raises(FailedPrecondition, match="chmod 700"):
        open_store(root, create=False, read_only=read_only)


@pytest.mark.parametrize(
    "name", ["chunks", "journal", "meta", "tmp", "meta/data.mdb", "meta/lock.mdb"]
)
def test_symbolic_links_in_a_store_are_refused(root: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (root / name).rename(outside)
    (root / name).symlink_to(outside)
    before = outside.stat()
    for use in (open_store, repair_store):
        with pytest.raises(FailedPrecondition, match="symbolic link"):
            use(root)
    assert outside.stat() == before


def test_an_own_link_may_lead_to_a_store(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    with open_store(tmp_path / "link", create=False) as store:
        assert store.images()


@pytest.mark.root
@pytest.mark.parametrize("create", [False, True])
def test_a_store_or_a_link_of_another_user_is_refused(
    root: Path, tmp_path: Path, *, create: bool
) -> None:
    link = tmp_path / "link"
    link.symlink_to(root)
    os.chown(link, OTHER, OTHER, follow_symlinks=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in (empty, root):
        os.chown(path, OTHER, OTHER)
    for path in (link, root, *([empty] if create else [])):
        with pytest.raises(FailedPrecondition, match=f"belongs to user {OTHER}"):
            open_store(path, create=create)
    assert list(empty.iterdir()) == []


@pytest.mark.root
def test_another_user_sees_and_changes_nothing(root: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    program = (
        "import os, sys\n"
        f"os.setgid({OTHER}); os.setuid({OTHER})\n"
        "for use in (os.listdir, lambda path: open(path + '/FORMAT'), lambda path: open(path + '/new', 'w')):\n"
        "    try:\n"
        "        use(sys.argv[1])\n"
        "    except PermissionError:\n"
        "        continue\n"
        "    sys.exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", program, root], check=True)
