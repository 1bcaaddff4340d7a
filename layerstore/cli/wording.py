"""Values in people's words: sizes, ages, IDs, names. And text from outside made safe to show.

Images say of themselves what their makers like: names of files, authors and commands may hold escape sequences that
a terminal obeys. `printable` shows them instead.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from layerstore.errors import InvalidArgument
from layerstore.reference import parse_reference

if TYPE_CHECKING:
    from layerstore.digest import Digest

__all__ = [
    "age_text",
    "count_text",
    "familiar_name",
    "one_line",
    "parse_size",
    "printable",
    "short_id",
    "size_text",
    "split_name",
]

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_SIZE = re.compile(r"(\d{1,15})([KMGTkmgt]?)")
_FRACTION = re.compile(
    r"\.(\d{1,6})\d*"
)  # nanoseconds are normal in configs, datetime stops at six

# (from this many seconds on, unit in seconds, its name): the steps that Docker's lists take
_AGES = (
    (2 * 365 * 86400, 365 * 86400, "years"),
    (60 * 86400, 30 * 86400, "months"),
    (14 * 86400, 7 * 86400, "weeks"),
    (48 * 3600, 86400, "days"),
    (2 * 3600, 3600, "hours"),
    (120, 60, "minutes"),
    (2, 1, "seconds"),
)


def size_text(size: int) -> str:
    """Three digits and a decimal unit: `30.2 MB`."""
    value, unit = float(size), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = 0 if unit == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {_UNITS[unit]}"


def parse_size(text: str) -> int:
    """A size as people type it: `50M`; K, M, G and T are powers of 1024. Raises: InvalidArgument."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"{text!r} is no size: give a number, with K, M, G or T behind it")
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")


def count_text(count: int, noun: str, plural: str = "") -> str:
    """`1 layer`, `2 layers`."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def age_text(created: str, now: datetime | None = None) -> str:
    """How long ago an RFC 3339 time was: `3 weeks ago`; `N/A` without one, the text itself if it is no time."""
    if not created:
        return "N/A"
    try:
        then = datetime.fromisoformat(_FRACTION.sub(r".\1", created))
    except ValueError:
        return created
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    if then.year <= 1:
        return "N/A"  # Go's zero time: the builder did not say
    seconds = int(((now or datetime.now(UTC)) - then).total_seconds())
    if seconds < 0:
        return "in the future"
    for least, unit, name in _AGES:
        if seconds >= least:
            return f"{seconds // unit} {name} ago"
    return "a moment ago"


def short_id(digest: Digest | str) -> str:
    """The first 12 digits, as Docker shows an ID."""
    return digest.removeprefix("sha256:")[:12]


def familiar_name(name: str) -> str:
    """A full reference as people type it: `python:3.12`; anything else as it is."""
    try:
        return parse_reference(name).familiar()
    except InvalidArgument:
        return name


def split_name(name: str) -> tuple[str, str]:
    """(repository in its short form, tag or `<none>`)."""
    reference = parse_reference(name)
    if reference.tag is None:
        return reference.familiar().partition("@")[0], "<none>"
    return reference.familiar().partition("@")[0].rpartition(":")[0], reference.tag


def printable(text: str) -> str:
    """Text whose control characters are written as escapes; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def one_line(text: str, limit: int | None = None) -> str:
    """Text in one line of at most `limit` characters."""
    text = " ".join(text.split())
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"
