"""Paths and entries of images as text: one line each, whatever the image's maker wrote."""

from __future__ import annotations

import os

import pytest

from layerstore.cli.paths import InsideEntry, align, from_root, long_columns, path_text, time_text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"two  spaces ", "two  spaces "),
        (b"a\nb\tc", "a\\nb\\tc"),
        (b"\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        (b"\xff\xfe", "\\udcff\\udcfe"),
        ("gr\u00fc\u00dfe \u202egpj".encode(), "gr\u00fc\u00dfe \\u202egpj"),
    ],
)
def test_no_name_makes_a_line_or_commands_the_terminal(name: bytes, text: str) -> None:
    assert path_text(os.fsdecode(name)) == text


@pytest.mark.parametrize(
    ("mtime_ns", "text"),
    [
        (0, "1970-01-01 00:00:00.000000000Z"),
        (1_700_000_000_000_000_007, "2023-11-14 22:13:20.000000007Z"),
        (-250_000_000, "1969-12-31 23:59:59.750000000Z"),
        ((1 << 40) * 10**9 + 5, "@1099511627776.000000005"),
    ],
)
def test_times_are_utc_and_none_is_beyond_words(mtime_ns: int, text: str) -> None:
    assert time_text(mtime_ns) == text


@pytest.mark.parametrize("path", ["etc/x", "/etc/x", "//etc/x//"])
def test_paths_begin_at_the_root(path: str) -> None:
    assert from_root(path) == "/etc/x"
    assert from_root("/") == "/"


def test_long_columns_are_those_of_ls() -> None:
    link = InsideEntry("/bin/sh", "symlink", 0o777, 1, 2, 4, 3, 0, "da\nsh", None)
    assert long_columns(link, "sh") == [
        *("lrwxrwxrwx", "3", "1", "2", "4", "1970-01-01 00:00", "sh -> da\\nsh")
    ]
    disk = InsideEntry("/sda", "block", 0o4660, 0, 6, 0, 1, 0, None, (8, 1))
    assert long_columns(disk, "sda")[0] == "brwSrw----"
    assert long_columns(disk, "sda")[4] == "8, 1"


def test_columns_are_aligned_and_names_keep_their_spaces() -> None:
    lines = list(align([["1", "20", " a "], ["100", "3", "b  c"]]))
    assert lines == ["  1  20   a ", "100   3  b  c"]
    assert list(align([])) == []
