"""`layerstore repair`: make good what is damaged, and say what is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from layerstore.cli.exits import DAMAGED
from layerstore.cli.output import as_json, format_option, print_json, print_text
from layerstore.cli.progress import shown_progress
from layerstore.cli.verify import print_damage
from layerstore.cli.wording import count_text

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings
    from layerstore.images.repair import RepairReport

__all__ = ["repair_verb"]


@click.command("repair", short_help="Make good what is damaged.")
@click.option(
    "--from",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="SOURCE",
    help="Where damaged chunks get their bytes: an archive or layout of images, or another store's folder.",
)
@click.option(
    "--accept-loss",
    is_flag=True,
    help="Make the tables anew also from a journal that is known to lack something.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@format_option()
@click.pass_context
def repair_verb(
    context: click.Context, sources: tuple[Path, ...], accept_loss: bool, quiet: bool, form: str
) -> None:
    """Make lost or damaged tables anew, heal damaged chunks, and name what stays damaged. Deletes nothing.

    The exit code is 7 if anything stays damaged.
    """
    from layerstore.api import repair_store
    from layerstore.limits import parse_limits

    settings: Settings = context.obj
    with shown_progress(quiet=quiet) as progress:
        report = repair_store(
            settings.root,
            sources=sources,
            accept_loss=accept_loss,
            limits=parse_limits(settings.limits),
            progress=progress,
        )
    if form == "json":
        print_json(_document(report))
    else:
        _print_report(report)
    if report.left:
        context.exit(DAMAGED)


def _document(report: RepairReport) -> dict[str, object]:
    document: dict[str, object] = as_json(report)
    document["left"] = [
        {**as_json(found.damage), "images": list(found.images)} for found in report.left
    ]
    return document


def _print_report(report: RepairReport) -> None:
    if report.format_written:
        print_text("FORMAT: written again")
    if report.tables is not None:
        print_text(f"tables: made anew, {count_text(report.tables.chunks, 'chunk')}")
        if report.tables.kept is not None:
            print_text(f"    the old ones: {report.tables.kept}")
        if report.tables.gaps or report.tables.is_current is False:
            print_text("    the journal lacked something: what was committed last may be gone")
        elif report.tables.is_current is None:
            print_text("    the old ones could not say whether the journal is as new as they were")
    if report.journal_renewed:
        print_text("journal: begun anew")
    if report.listed:
        print_text(f"{count_text(report.listed, 'chunk')}: found by ID again")
    if report.damaged:
        healed = f", {len(report.healed)} healed" if report.healed else ""
        print_text(f"{count_text(len(report.damaged), 'chunk')} damaged{healed}")
    for digest in report.stored_again:
        print_text(f"stored again: {digest}")
    for found in report.left:
        print_damage(found)
    if not report.left:
        print_text("everything is whole")
