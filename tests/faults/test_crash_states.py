"""The disks that a crash may leave, a sample of each operation's: `make crash-states` checks them all.

See `crash/states.py` for the model, and docs/durability.md for what the full run has found.
"""

from __future__ import annotations

import stat

import pytest

from tests.faults.crash.explore import explore
from tests.faults.crash.operations import OPERATIONS
from tests.faults.crash.program import BUGS
from tests.faults.crash.recording import (
    Entry,
    Inode,
    Link,
    Recording,
    Rename,
    Resize,
    Sync,
    SyncAll,
    Write,
)
from tests.faults.crash.states import unsynced

_STATES = 24  # of each operation

needs_gcc = pytest.mark.client("gcc")  # the recorder is compiled


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_disk_that_a_crash_may_leave_breaks_an_invariant(name: str) -> None:
    found = explore(OPERATIONS[name], states=_STATES)
    assert found.violations == ()
    assert found.checked == _STATES


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug != "none"])
def test_planted_bug_is_found(bug: str) -> None:
    assert explore(OPERATIONS["load"], bug=bug, states=_STATES).violations


_ROOT, _FILE, _OTHER = Inode(0), Inode(1), Inode(2)
_ENTRIES = {
    _ROOT: Entry(stat.S_IFDIR, names=(("file", _FILE),)),
    _FILE: Entry(stat.S_IFREG),
    _OTHER: Entry(stat.S_IFREG),
}


def _unsynced(*steps: object) -> list[int]:
    return unsynced(Recording(_ROOT, _ENTRIES, steps), len(steps))  # type: ignore[arg-type]


def test_write_is_durable_after_a_sync_of_its_file_and_of_no_other() -> None:
    write = Write(_FILE, 0, b"x", False)
    assert _unsynced(write) == [0]
    assert _unsynced(write, Sync(_OTHER), Sync(_ROOT)) == [0]
    assert _unsynced(write, Sync(_FILE)) == []
    assert _unsynced(Sync(_FILE), write) == [1]
    assert _unsynced(Resize(_FILE, 5), write, Sync(_FILE)) == []


def test_write_through_a_synchronous_descriptor_is_durable_alone() -> None:
    write = Write(_FILE, 0, b"x", False)
    assert _unsynced(write, Write(_FILE, 9, b"y", True)) == [0]


def test_name_is_durable_after_a_sync_of_its_directory_and_not_of_its_file() -> None:
    names = (Link(_ROOT, "new", _OTHER), Rename(_ROOT, "new", _ROOT, "file", _OTHER))
    assert _unsynced(*names, Sync(_OTHER)) == [0, 1]
    assert _unsynced(*names, Sync(_ROOT)) == []
    assert _unsynced(*names, SyncAll()) == []
