from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from layerstore.cli.verbs import VERBS, cli

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("_clean_environment")


@pytest.fixture
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAYERSTORE_ROOT", raising=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["load", "-", "-"],
        ["load", "--format", "xml", "x"],
        ["save"],
        ["save", "a", "--as", "zip"],
        ["save", "a", "--as", "folder"],
        ["save", "a", "--format", "json"],
        ["import", "x"],
        ["inspect"],
        ["inspect", "a", "--format", "yaml"],
        ["history"],
        ["ls"],
        ["ls", "a", "b", "c"],
        ["cat", "a"],
        ["stat", "a"],
        ["export"],
        ["export", "a", "--format", "json"],
        ["diff", "a"],
        ["tag", "a"],
        ["rmi"],
        ["images", "a", "b"],
        ["run", "--no-such", "a", "ls", "-l"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_exits_2_and_touches_nothing(
    arguments: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "store"
    result = CliRunner().invoke(cli, ["--root", str(root), *arguments])
    assert result.exit_code == 2, result.output
    assert "Usage:" in result.stderr
    assert result.stdout == ""
    assert not root.exists()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_helps(verb: str) -> None:
    result = CliRunner().invoke(cli, [verb, "--help"])
    assert result.exit_code == 0, result.output
    assert f"Usage: cli {verb}" in result.stdout
    assert "--format" in result.stdout or verb == "serve"  # a service prints no result


def test_help_lists_every_verb_with_what_it_is_for() -> None:
    lines = CliRunner().invoke(cli, ["--help"]).stdout.splitlines()
    shown = dict(line.split(maxsplit=1) for line in lines[lines.index("Commands:") + 1 :])
    assert list(shown) == list(VERBS)
    assert all(text.endswith(".") for text in shown.values())


def test_the_environment_names_the_store_and_the_option_wins(tmp_path: Path) -> None:
    runner = CliRunner(env={"LAYERSTORE_ROOT": str(tmp_path / "a")})
    assert f"no store at {tmp_path / 'a'};" in str(runner.invoke(cli, ["images"]).exception)
    line = ["--root", str(tmp_path / "b"), "images"]
    assert f"no store at {tmp_path / 'b'};" in str(runner.invoke(cli, line).exception)
