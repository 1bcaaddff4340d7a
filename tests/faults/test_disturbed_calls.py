"""An error at calls of the operating system, LMDB's among them: a sample. `python -m tests.faults.crash.disturb` tries all."""

from __future__ import annotations

import shutil

import pytest

from tests.faults.crash.disturb import FAULTS, Fault, disturb
from tests.faults.crash.operations import OPERATIONS

_CALLS = 3  # of each kind


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="the shim is compiled")
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_error_at_a_call_is_typed_and_loses_nothing(fault: Fault) -> None:
    found = disturb(OPERATIONS["load"], fault, calls=_CALLS)
    assert found.problems == ()
    assert found.tried, "a load makes such calls"
