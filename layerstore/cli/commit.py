"""`layerstore commit`: a snapshot, or what is mounted in a folder, becomes an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from layerstore.cli.output import format_option, print_json, print_note, print_text
from layerstore.cli.wording import count_text, familiar_name, size_text

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings

__all__ = ["commit_verb"]


@click.command("commit", short_help="Make an image of a snapshot's changes.")
@click.argument("source", metavar="SNAPSHOT|DIR")
@click.argument("name")
@click.option("-a", "--author", default="", help="Author of the image.")
@click.option("-m", "--message", default="", help="Comment for the image's history.")
@click.option(
    "-c",
    "--change",
    "changes",
    multiple=True,
    metavar="INSTRUCTION",
    help="A line of a Dockerfile, such as 'CMD [\"sh\"]' or 'ENV KEY=value'; may be repeated.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only the image's ID.")
@format_option()
@click.pass_obj
def commit_verb(
    settings: Settings,
    source: str,
    name: str,
    author: str,
    message: str,
    changes: tuple[str, ...],
    quiet: bool,
    form: str,
) -> None:
    """Make the image NAME of a snapshot, or of what is mounted writable in a folder; both stay as they are.

    The image has one layer more than the one it came from. Prints its ID.
    """
    from layerstore.images.commit import CommitOptions

    options = CommitOptions(author, message, changes)
    with settings.open_for_writing(create=False) as store:
        report = store.commit(source, name, options)
    if form == "json":
        print_json(report)
        return
    print_text(report.id)
    if report.layer is not None and not quiet:
        layer = report.layer
        print_note(
            f"committed {familiar_name(report.name)}: "
            f"{count_text(layer.entries, 'entry', 'entries')}, {size_text(layer.size)}; "
            f"{size_text(layer.new_bytes)} added"
        )
