from __future__ import annotations

import inspect

import pytest

from layerstore import errors
from layerstore.errors import DigestMismatch, LayerstoreError, MalformedInput


def classes() -> list[type[Exception]]:
    return [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, Exception)
    ]


def test_every_error_is_public_and_below_the_root() -> None:
    assert {kind.__name__ for kind in classes()} == set(errors.__all__)
    assert all(issubclass(kind, LayerstoreError) for kind in classes())


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    text = (errors.__doc__ or "").split("\n\n")[2]
    drawn: dict[str, list[str]] = {}
    stack: list[str] = []
    for line in text.splitlines():
        name = line.strip("│├└─ ").split()[0].split("(")[0]
        del stack[(len(line) - len(line.lstrip("│├└─ ")) - 1) // 4 :]
        drawn[name] = list(stack)
        stack.append(name)
    for kind in classes():
        bases = [base.__name__ for base in kind.__mro__ if issubclass(base, LayerstoreError)]
        assert drawn[kind.__name__] == bases[:0:-1], kind
    assert set(drawn) == set(errors.__all__)


def test_errors_are_also_what_python_programs_expect() -> None:
    assert issubclass(errors.InvalidArgument, ValueError)
    assert issubclass(errors.NotFound, LookupError)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MalformedInput("bad"), "bad"),
        (MalformedInput("bad", source="a.tar"), "a.tar: bad"),
        (MalformedInput("bad", offset=0), "byte 0: bad"),
        (MalformedInput("bad", source="a", entry="e", offset=7), "a, entry 'e', byte 7: bad"),
    ],
)
def test_bad_input_is_named_as_far_as_it_is_known(error: MalformedInput, text: str) -> None:
    assert str(error) == text


def test_within_adds_a_place_and_never_replaces_one() -> None:
    error = MalformedInput("bad", entry="inner")
    assert error.within(source="outer", entry="other") is error
    assert (error.source, error.entry) == ("outer", "inner")


def test_a_mismatch_says_what_was_wanted() -> None:
    error = DigestMismatch("sha256:aa", "sha256:bb", 5, source="blob")
    assert (error.want, error.got, error.size) == ("sha256:aa", "sha256:bb", 5)
    assert str(error) == "blob: expected sha256:aa, got sha256:bb after 5 bytes"
