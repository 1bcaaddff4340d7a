from __future__ import annotations

import errno
import os
import re

import pytest

from layerstore import errors
from layerstore.cli.exits import BUG, EXIT_CODES, USAGE, exit_code, message_of


def _tree(root: type[errors.LayerstoreError]) -> set[type[errors.LayerstoreError]]:
    found = {root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def test_every_error_class_has_a_row() -> None:
    assert set(EXIT_CODES) == {
        kind for kind in _tree(errors.LayerstoreError) if kind.__module__ == errors.__name__
    }


def test_the_codes_are_those_that_the_error_tree_promises() -> None:
    rows = re.findall(r"── (\w+)(?:\(\w+\))? .* (\d+)$", errors.__doc__ or "", re.MULTILINE)
    assert len(rows) == len(EXIT_CODES) - 1  # the root has no code in the picture
    assert {name: int(code) for name, code in rows} == {
        kind.__name__: code
        for kind, code in EXIT_CODES.items()
        if kind is not errors.LayerstoreError
    }


def test_an_error_of_somebody_elses_class_has_the_code_of_its_parent() -> None:
    class Stranger(errors.Busy):
        pass

    assert exit_code(Stranger("x")) == EXIT_CODES[errors.Busy]


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOENT, USAGE), (errno.EACCES, USAGE), (errno.ENOSPC, 10), (errno.EIO, 74)],
)
def test_an_error_of_the_system_is_no_bug(number: int, code: int) -> None:
    error = OSError(number, os.strerror(number), "some/file")
    assert exit_code(error) == code
    assert message_of(error) == f"some/file: {os.strerror(number)}"


def test_what_nobody_raised_on_purpose_is_a_bug_and_says_so() -> None:
    assert exit_code(KeyError("x")) == BUG
    assert "this is a bug" in message_of(KeyError("x"))
    assert message_of(AssertionError()).startswith("AssertionError;")


def test_malformed_input_says_where() -> None:
    error = errors.MalformedInput("no tar", source="x.tar", entry="a/b", offset=512)
    assert message_of(error) == "x.tar, entry 'a/b', byte 512: no tar"
