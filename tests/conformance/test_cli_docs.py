"""docs/cli.md and the command say the same."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from layerstore.cli.exits import EXIT_CODES
from layerstore.cli.verbs import VERBS, cli

DOCS = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
COMMON = {"--format"}


def _section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section {heading}"
    return found[1]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_and_all_its_options(verb: str) -> None:
    section = _section(verb)
    assert f"    $ layerstore {verb}" in section
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    for option in command.params:
        if isinstance(option, click.Option) and not COMMON & set(option.opts):
            assert any(f"{name}" in section for name in option.opts), option.opts


def test_every_exit_code_has_a_row() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| (.*) \|$", _section("Exit codes"), re.MULTILINE)
    meanings = {code.strip(): text for codes, text in rows for code in codes.split(",")}
    for kind, code in EXIT_CODES.items():
        assert str(code) in meanings
        if kind.__name__ != "LayerstoreError":
            assert f"`{kind.__name__}`" in meanings[str(code)]
    assert meanings.keys() >= {"0", "70", "74", "129", "130", "141", "143"}


def test_every_verb_has_a_json_shape() -> None:
    documented = re.findall(r"^\| (\w+) \| `", _section("JSON"), re.MULTILINE)
    assert documented == list(VERBS)
