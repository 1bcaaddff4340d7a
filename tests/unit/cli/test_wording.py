from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.cli.wording import (
    age_text,
    count_text,
    familiar_name,
    one_line,
    printable,
    short_id,
    size_text,
    split_name,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (30_249_000, "30.2 MB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (126_656_512, "127 MB"),
        (3 * 10**21, "3000 EB"),
    ],
)
def test_sizes_have_three_digits(size: int, text: str) -> None:
    assert size_text(size) == text


@given(st.integers(0, 10**18))
def test_a_size_is_told_to_half_a_percent(size: int) -> None:
    number, unit = size_text(size).split()
    factor = 1000 ** ("B", "kB", "MB", "GB", "TB", "PB", "EB").index(unit)
    assert abs(float(number) * factor - size) <= size * 0.005 + 0.5


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (timedelta(seconds=1), "a moment ago"),
        (timedelta(seconds=59), "59 seconds ago"),
        (timedelta(minutes=5), "5 minutes ago"),
        (timedelta(hours=47), "47 hours ago"),
        (timedelta(days=3), "3 days ago"),
        (timedelta(days=22), "3 weeks ago"),
        (timedelta(days=90), "3 months ago"),
        (timedelta(days=800), "2 years ago"),
        (timedelta(seconds=-5), "in the future"),
    ],
)
def test_ages_are_in_one_unit(age: timedelta, text: str) -> None:
    assert age_text((NOW - age).isoformat(), NOW) == text


@pytest.mark.parametrize(
    ("created", "text"),
    [
        ("2026-03-01T11:00:00.123456789Z", "59 minutes ago"),
        ("2026-03-01T11:00:00", "60 minutes ago"),
        ("0001-01-01T00:00:00Z", "N/A"),
        ("", "N/A"),
        ("yesterday", "yesterday"),
    ],
)
def test_times_of_any_builder_are_read(created: str, text: str) -> None:
    assert age_text(created, NOW) == text


@given(st.text())
def test_text_from_outside_cannot_steer_a_terminal(text: str) -> None:
    assert all(char.isprintable() or char in "\n\t" for char in printable(text))


def test_printable_text_shows_what_it_hides() -> None:
    assert printable("a\x1b[31m\u202eb\udcff\n") == "a\\x1b[31m\\u202eb\\udcff\n"


@given(st.text(), st.integers(1, 20))
def test_one_line_is_one_short_line(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert len(line.splitlines()) <= 1


@pytest.mark.parametrize(
    ("name", "repository", "tag"),
    [
        ("docker.io/library/python:3.12", "python", "3.12"),
        ("localhost:5000/a/b:x", "localhost:5000/a/b", "x"),
        (f"docker.io/a/b@sha256:{'0' * 64}", "a/b", "<none>"),
        (f"docker.io/a/b:t@sha256:{'0' * 64}", "a/b", "t"),
    ],
)
def test_names_are_split_for_the_table(name: str, repository: str, tag: str) -> None:
    assert split_name(name) == (repository, tag)


def test_a_name_that_is_none_is_shown_as_it_is() -> None:
    assert familiar_name("docker.io/library/a:1") == "a:1"
    assert familiar_name(f"sha256:{'0' * 64}") == f"sha256:{'0' * 64}"


def test_counts_and_ids() -> None:
    assert [count_text(n, "layer") for n in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]
    assert count_text(2, "entry", "entries") == "2 entries"
    assert short_id("sha256:" + "0123456789abcdef" * 4) == "0123456789ab"
