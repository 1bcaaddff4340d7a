"""An error at calls of the operating system, LMDB's among them: a sample. `make faults` tries all calls of all operations."""

from __future__ import annotations

import pytest

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
