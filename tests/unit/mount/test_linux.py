"""Mount calls: what they do to a tmpfs, and which of our errors theirs become."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.errors import Busy, FailedPrecondition, Unsupported
from layerstore.mount.linux import (
    MountFlag,
    clone_mount,
    create_mount,
    set_mount_flags,
    unmount,
)

if TYPE_CHECKING:
    from layerstore.mount.linux import DetachedMount

pytestmark = pytest.mark.root


def tmpfs(*options: tuple[str, str]) -> DetachedMount:
    return create_mount("tmpfs", [("size", "64k"), *options])


def test_a_detached_mount_is_used_by_its_descriptor_and_ends_with_it() -> None:
    with tmpfs(("mode", "0711")) as mount:
        assert os.fstat(mount.fd).st_mode & 0o7777 == 0o711
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=mount.fd))
        assert os.stat("file", dir_fd=mount.fd).st_size == 0
    assert mount.fd == -1
    mount.close()


def test_attach_shows_and_unmount_hides(tmp_path: Path) -> None:
    with tmpfs() as mount:
        mount.attach(tmp_path)
    try:
        assert tmp_path.is_mount()
        (tmp_path / "inside").touch()
    finally:
        unmount(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_mount_in_use_is_busy_unless_lazy(tmp_path: Path) -> None:
    with tmpfs() as mount:
        mount.attach(tmp_path)
    with (tmp_path / "file").open("wb"):
        try:
            with pytest.raises(Busy, match="unmount"):
                unmount(tmp_path)
        finally:
            unmount(tmp_path, lazy=True)
    assert not tmp_path.is_mount()


def test_flags_can_be_set_and_taken_back(tmp_path: Path) -> None:
    with tmpfs() as mount:
        mount.set_flags(MountFlag.READ_ONLY | MountFlag.NO_EXEC)
        mount.attach(tmp_path)
    try:
        flags = os.statvfs(tmp_path).f_flag
        assert flags & os.ST_RDONLY
        assert flags & os.ST_NOEXEC
        set_mount_flags(tmp_path, MountFlag.NO_SUID, MountFlag.READ_ONLY)
        (tmp_path / "file").touch()
        assert os.statvfs(tmp_path).f_flag & os.ST_NOSUID
    finally:
        unmount(tmp_path)


def test_a_clone_shows_the_same_files(tmp_path: Path) -> None:
    with tmpfs() as mount:
        mount.attach(tmp_path)
    try:
        (tmp_path / "file").touch()
        with clone_mount(tmp_path) as copy:
            assert os.stat("file", dir_fd=copy.fd).st_ino == (tmp_path / "file").stat().st_ino
    finally:
        unmount(tmp_path)


def test_a_filesystem_that_is_not_there_is_unsupported() -> None:
    with pytest.raises(Unsupported, match=r"nosuchfs.*ENODEV"):
        create_mount("nosuchfs", [])


def test_an_option_that_is_wrong_is_said_in_the_words_of_the_kernel() -> None:
    with pytest.raises(Unsupported, match="Unknown parameter 'nosuchoption'"):
        create_mount("tmpfs", ["nosuchoption"])


def test_a_missing_source_is_said_by_name(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="ENOENT"):
        create_mount("erofs", [("source", tmp_path / "missing"), "ro"])


def test_what_is_no_mount_cannot_be_unmounted(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="nothing is mounted"):
        unmount(tmp_path)
    with pytest.raises(FailedPrecondition, match="missing"):
        unmount(tmp_path / "missing")


def test_no_descriptors_are_left_behind() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for options in ([], ["nosuchoption"]):
        with suppress(Unsupported):
            create_mount("tmpfs", options).close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
