"""What verbs print: lines and tables for people, one JSON document for programs.

Results go to standard output; progress, notes and errors to standard error, so that pipes carry results only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerstore.cli.wording import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["as_json", "format_option", "print_json", "print_note", "print_table", "print_text"]

_GAP = "   "


def format_option(*choices: str, default: str = "text") -> Callable[[Any], Any]:
    """The `--format` of a verb: `text` for people or `json` for programs, unless given otherwise."""
    names = choices or ("text", "json")
    return click.option(
        "--format",
        "form",
        type=click.Choice(names),
        default=default,
        show_default=True,
        help="How to print the result.",
    )


def print_text(text: str) -> None:
    """A line (or several) of the result."""
    click.echo(printable(text))


def print_note(text: str) -> None:
    """Something to know that is not the result: a warning, an error of one of several names."""
    click.echo(printable(f"layerstore: {text}"), err=True)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, left aligned; nothing is cut, whatever the terminal's width."""
    cells = [list(headings), *([one_line(printable(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo(_GAP.join(padded).rstrip())


def print_json(value: object, *, indent: int | None = 2) -> None:
    """The one document of a verb. Everything outside ASCII is escaped, so no locale can break it."""
    click.echo(json.dumps(as_json(value), indent=indent))


def as_json(value: object) -> Any:
    """Dataclasses and mappings as objects, sequences as lists, enums as their values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: as_json(getattr(value, name)) for name in names}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value
