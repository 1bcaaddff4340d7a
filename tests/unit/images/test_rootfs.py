"""A folder as an image's root filesystem."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import layerstore

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("mtime_ns", [0, 1_500_000_001, -1_500_000_000, -1, -2_000_000_000])
def test_mtimes_of_a_folder_are_kept_to_the_nanosecond(tmp_path: Path, mtime_ns: int) -> None:
    """Times before 1970 with a fraction were one second early and had the wrong fraction."""
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "file").write_bytes(b"text")
    os.utime(folder / "file", ns=(0, mtime_ns))
    assert (folder / "file").stat().st_mtime_ns == mtime_ns
    with layerstore.open(tmp_path / "store") as store:
        store.import_rootfs(folder, "folder:1")
        assert store.view("folder:1").stat("file").st_mtime_ns == mtime_ns
