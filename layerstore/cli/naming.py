"""`layerstore tag` and `layerstore rmi`: the names of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from layerstore.cli.failures import Failures
from layerstore.cli.output import format_option, print_json, print_note, print_text
from layerstore.cli.wording import familiar_name
from layerstore.errors import NotFound

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings

__all__ = ["rmi_verb", "tag_verb"]


@click.command("tag", short_help="Give an image one more name.")
@click.argument("source")
@click.argument("name")
@format_option()
@click.pass_obj
def tag_verb(settings: Settings, source: str, name: str, form: str) -> None:
    """Give the image SOURCE (a name or an ID) the name NAME, taking it from the image that has it."""
    with settings.open_for_writing(create=False) as store:
        full = store.tag(source, name)
    if form == "json":
        print_json({"name": full})


@click.command("rmi", short_help="Remove names, and images with their last name.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Remove an ID with all its names; do not mind what is missing.",
)
@format_option()
@click.pass_obj
def rmi_verb(settings: Settings, names: tuple[str, ...], force: bool, form: str) -> None:
    """Forget names (or IDs); an image goes with its last name."""
    failures = Failures(is_debugging=settings.debug)
    removed = []
    with settings.open_for_writing(create=False) as store:
        for name in names:
            with failures.noted(name):
                try:
                    report = store.remove(name, force=force)
                except NotFound as error:
                    if not force:
                        raise
                    print_note(str(error))
                    continue
                removed.append(report)
                if form == "text":
                    for full in report.untagged:
                        print_text(f"Untagged: {familiar_name(full)}")
                    for digest in report.deleted:
                        print_text(f"Deleted: {digest}")
    if form == "json":
        print_json({"removed": removed, "failures": failures.failed})
    failures.leave()
