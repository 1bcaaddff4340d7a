"""What other users of the machine can see of a store: nothing, whatever the umask of its owner is."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from tests.support.stores import sample_images, write_archive

if TYPE_CHECKING:
    from pathlib import Path


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
