"""An error at calls of the operating system, LMDB's among them: a sample. `make faults` tries all calls of all operations."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from layerstore.errors import StoreFull
from layerstore.store.layout import Layout
from layerstore.store.snapstate import SnapshotDirectories
from tests.faults.crash.disturb import DISTURBED, FAULTS, disturb
from tests.faults.crash.operations import OPERATIONS

_SHARE = 3  # each operation meets every third fault, each fault every third operation
_CALLS = 2  # of each kind


@pytest.mark.slow
@pytest.mark.client("gcc")  # the shim is compiled
@pytest.mark.parametrize("name", DISTURBED)
def test_error_at_a_call_is_typed_and_loses_nothing(name: str) -> None:
    faults = FAULTS[DISTURBED.index(name) % _SHARE :: _SHARE]
    found = disturb(OPERATIONS[name], faults, calls=_CALLS)
    problems = {str(fault): one.problems for fault, one in zip(faults, found, strict=True)}
    assert not any(problems.values()), problems
    assert sum(one.tried for one in found) > len(faults)


def test_a_full_disk_that_has_no_room_for_a_new_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by `make faults`: call 26 of `snapshot remove, prune`."""
    directories = SnapshotDirectories(Layout(tmp_path))
    directories.make(1)

    def full(path: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path, None, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(StoreFull):
            directories.disown(1)
    assert directories.disown(1) is not None
