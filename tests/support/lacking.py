"""What a test does where the machine lacks something: skip, or fail with LAYERSTORE_REQUIRE_CLIENTS=1.

A CI image that lost a program, or a kernel that lost a filesystem, is noticed by that.
"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["lacking"]

_IS_REQUIRED = os.environ.get("LAYERSTORE_REQUIRE_CLIENTS") == "1"  # before a fixture clears it


def lacking(what: str) -> NoReturn:
    """End the test, as `what` is not there."""
    if _IS_REQUIRED:
        pytest.fail(f"{what}, and LAYERSTORE_REQUIRE_CLIENTS=1", pytrace=False)
    pytest.skip(what)
