"""`layerstore verify`: is every byte still what was stored?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from layerstore.cli.exits import DAMAGED
from layerstore.cli.output import as_json, format_option, print_json, print_note, print_text
from layerstore.cli.progress import shown_progress
from layerstore.cli.wording import count_text, familiar_name, parse_size, size_text

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings
    from layerstore.images.checking import ImageDamage, StoreReport
    from layerstore.store.check import Orphans

__all__ = ["print_damage", "verify_verb"]


@click.command("verify", short_help="Check every byte of the store.")
@click.option(
    "--depth",
    type=click.Choice(("structure", "chunks", "everything")),
    default="everything",
    show_default=True,
    help="structure: the tables. chunks: and every chunk that is needed. everything: and all "
    "others, every layer by its digest, and what of the disk nobody needs.",
)
@click.option("--rate", metavar="SIZE", help="Read no more in a second, as 50M.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Threads.  [default: processors]")
@click.option("--resume", is_flag=True, help="Go on where the last run of this depth stopped.")
@click.option("--blobs", is_flag=True, help="Also make every regenerated compressed layer again.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@format_option()
@click.pass_context
def verify_verb(
    context: click.Context,
    depth: str,
    rate: str | None,
    jobs: int | None,
    resume: bool,
    blobs: bool,
    quiet: bool,
    form: str,
) -> None:
    """Read and re-hash what is in the store, and name what is damaged. Nothing is changed.

    The exit code is 7 if anything is damaged.
    """
    settings: Settings = context.obj
    limit = None if rate is None else parse_size(rate)
    with settings.open_for_reading() as store, shown_progress(quiet=quiet) as progress:
        report = store.verify(
            depth=depth, rate=limit, jobs=jobs, resume=resume, blobs=blobs, progress=progress
        )
    if form == "json":
        print_json(_document(report))
    else:
        _print_report(report)
    if report.damages:
        context.exit(DAMAGED)


def _document(report: StoreReport) -> dict[str, object]:
    """The report without saying each damage twice."""
    document: dict[str, object] = as_json(report.checked)
    document["damages"] = [
        {**as_json(found.damage), "images": list(found.images)} for found in report.damages
    ]
    return document


def _print_report(report: StoreReport) -> None:
    checked = report.checked
    for note in checked.notes:
        print_note(note)
    counts = f"{count_text(checked.layers, 'layer')}, {count_text(checked.blobs, 'blob')}"
    if checked.chunks:
        counts += f", {count_text(checked.chunks, 'chunk')}, {size_text(checked.bytes)}"
    if checked.orphans is not None:
        _print_orphans(checked.orphans)
    if checked.unlisted:
        print_note(
            f"{count_text(checked.unlisted, 'chunk')} not found by ID: the same bytes would be "
            "stored again; `layerstore repair` lists them"
        )
    if not report.damages:
        print_text(f"{counts}: everything is whole")
        return
    print_text(f"{counts}: {count_text(len(report.damages), 'damage')}")
    for found in report.damages:
        print_damage(found)


def _print_orphans(orphans: Orphans) -> None:
    if orphans.layers or orphans.blobs or orphans.chunks or orphans.space:
        print_text(
            f"for `layerstore prune`: {count_text(orphans.layers, 'layer')}, "
            f"{count_text(orphans.blobs, 'blob')}, {count_text(orphans.chunks, 'chunk')} of "
            f"{size_text(orphans.chunk_bytes)}, {size_text(orphans.space)} of nobody"
        )


def print_damage(found: ImageDamage) -> None:
    """What is wrong, and whom it hits."""
    damage = found.damage
    print_text(f"{f'{damage.what} {damage.name}'.rstrip()}: {damage.problem}")
    if found.images:
        print_text(f"    images: {', '.join(map(familiar_name, found.images))}")
    if damage.chunks:
        print_text(f"    chunks: {', '.join(map(str, damage.chunks))}")
    for path in damage.paths:
        print_text(f"    {path}")
