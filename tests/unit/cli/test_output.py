from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from layerstore.cli.output import as_json, print_json, print_note, print_table, print_text

if TYPE_CHECKING:
    import pytest


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Inner:
    size: int


@dataclass(frozen=True, slots=True)
class Outer:
    inner: Inner
    colours: tuple[Colour, ...]
    extra: MappingProxyType[str, list[Inner]]
    path: Path
    nothing: None = None


def test_dataclasses_are_objects_all_the_way_down(capsys: pytest.CaptureFixture[str]) -> None:
    value = Outer(Inner(3), (Colour.RED,), MappingProxyType({"k": [Inner(4)]}), Path("/x"))
    print_json(value)
    assert json.loads(capsys.readouterr().out) == {
        "inner": {"size": 3},
        "colours": ["red"],
        "extra": {"k": [{"size": 4}]},
        "path": "/x",
        "nothing": None,
    }
    assert type(as_json(Colour.RED)) is str


def test_json_survives_any_locale(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(["ü\x1b\udcff"])
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == ["ü\x1b\udcff"]


def test_columns_are_aligned_and_nothing_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["A", "LONG"], [["x" * 200, "1"], ["y", ""]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["A" + " " * 202 + "LONG", "x" * 200 + "   1", "y"]


def test_a_cell_stays_one_line_and_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["A"], [["one\ntwo\x1b[2J"]])
    assert capsys.readouterr().out == "A\none two\\x1b[2J\n"


def test_results_and_notes_go_different_ways(capsys: pytest.CaptureFixture[str]) -> None:
    print_text("result\x07")
    print_note("careful\x07")
    out, err = capsys.readouterr()
    assert out == "result\\x07\n"
    assert err == "layerstore: careful\\x07\n"
