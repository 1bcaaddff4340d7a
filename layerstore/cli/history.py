"""`layerstore history`: how an image was built, newest step first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from layerstore.cli.output import format_option, print_json, print_table, print_text
from layerstore.cli.wording import age_text, one_line, short_id, size_text

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings

__all__ = ["history_verb"]

_COMMAND_WIDTH = 45  # characters of CREATED BY, as in Docker's table


@click.command("history", short_help="Show how an image was built.")
@click.argument("name")
@click.option("--no-trunc", "whole", is_flag=True, help="Print commands and diff IDs in full.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the diff IDs of layers.")
@click.option("--platform", metavar="OS/ARCH", help="Of an index, show this platform.")
@format_option()
@click.pass_obj
def history_verb(
    settings: Settings, name: str, whole: bool, quiet: bool, platform: str | None, form: str
) -> None:
    """Show the build steps of an image, newest first. A step that made no layer has `<none>` for one."""
    with settings.open_for_reading() as store:
        steps = store.history(name, platform=platform)
    if form == "json":
        print_json(steps)
    elif quiet:
        for step in steps:
            if step.diff_id is not None:
                print_text(step.diff_id if whole else short_id(step.diff_id))
    else:
        rows = []
        for step in steps:
            layer = "<none>" if step.diff_id is None else step.diff_id
            rows.append(
                [
                    layer if whole else short_id(layer),
                    age_text(step.created),
                    one_line(step.created_by, None if whole else _COMMAND_WIDTH),
                    size_text(step.size),
                    step.comment,
                ]
            )
        print_table(["LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"], rows)
