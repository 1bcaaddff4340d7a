"""`layerstore tag` and `layerstore rmi`: the names of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from layerstore.cli.failures import Failures
from layerstore.cli.output import format_option, print_json, print_note, print_text
from layerstore.cli.wording import count_text, familiar_name, size_text
from layerstore.errors import NotFound

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings
    from layerstore.images.removal import RemovalForecast

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
@click.option(
    "--dry-run", is_flag=True, help="Only say what would go, and what `prune` then frees."
)
@format_option()
@click.pass_obj
def rmi_verb(
    settings: Settings, names: tuple[str, ...], force: bool, dry_run: bool, form: str
) -> None:
    """Forget names (or IDs); an image goes with its last name."""
    if dry_run:
        with settings.open_for_reading() as store:
            forecast = store.removal(*names, force=force)
        if form == "json":
            print_json(forecast)
        else:
            _print_forecast(forecast)
        return
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


def _print_forecast(forecast: RemovalForecast) -> None:
    for full in forecast.untagged:
        print_text(f"Would be untagged: {familiar_name(full)}")
    for image in forecast.deleted:
        print_text(f"Would be deleted: {image.digest}, {size_text(image.freed)} alone")
    print_text(f"{count_text(forecast.layers, 'layer')}, {count_text(forecast.chunks, 'chunk')}")
    together = f", of it {size_text(forecast.shared)} only together" if forecast.shared else ""
    print_text(f"Would be freed by prune: {size_text(forecast.freed)}{together}")
    if forecast.garbage:
        print_text(f"Freed by prune in any case: {size_text(forecast.garbage)}")
