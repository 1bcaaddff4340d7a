"""`layerstore import`: a root filesystem becomes an image of one layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from layerstore.cli.inputs import open_source
from layerstore.cli.output import format_option, print_json, print_note, print_text
from layerstore.cli.progress import shown_progress
from layerstore.cli.wording import count_text, familiar_name, size_text

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings

__all__ = ["import_verb"]


@click.command("import", short_help="Make an image from a root filesystem.")
@click.argument("source", type=click.Path(allow_dash=True, path_type=Path), metavar="FILE|DIR|-")
@click.argument("name")
@click.option(
    "-c",
    "--change",
    "changes",
    multiple=True,
    metavar="INSTRUCTION",
    help="A line of a Dockerfile, such as 'CMD [\"sh\"]' or 'ENV KEY=value'; may be repeated.",
)
@click.option("-m", "--message", default="", help="Comment for the image's history.")
@click.option(
    "--platform", metavar="OS/ARCH", help="What the image is for; this machine's if not given."
)
@click.option("-q", "--quiet", is_flag=True, help="Print only the image's ID.")
@format_option()
@click.pass_obj
def import_verb(
    settings: Settings,
    source: Path,
    name: str,
    changes: tuple[str, ...],
    message: str,
    platform: str | None,
    quiet: bool,
    form: str,
) -> None:
    """Make an image of one layer from a tar (plain or compressed), a folder, or standard input.

    Prints the ID of the image.
    """
    opened = open_source(source)
    from layerstore.images.rootfs import ImportOptions

    options = ImportOptions(changes, message, platform)
    with (
        settings.open_for_writing(create=True) as store,
        shown_progress(quiet=quiet) as progress,
    ):
        report = store.import_rootfs(opened, name, options, progress=progress)
    if form == "json":
        print_json(report)
        return
    print_text(report.id)
    if not quiet:
        layer = report.layer
        print_note(
            f"imported {familiar_name(report.name)}: {count_text(layer.entries, 'entry', 'entries')}, "
            f"{size_text(layer.size)}; {size_text(layer.new_bytes)} added"
        )
