"""`layerstore verify`: is every byte still what was stored?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from layerstore.cli.exits import DAMAGED
from layerstore.cli.output import as_json, format_option, print_json, print_text
from layerstore.cli.progress import shown_progress
from layerstore.cli.wording import count_text, familiar_name, size_text

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings
    from layerstore.images.checking import ImageDamage, StoreReport

__all__ = ["verify_verb"]


@click.command("verify", short_help="Check every byte of the store.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@format_option()
@click.pass_context
def verify_verb(context: click.Context, quiet: bool, form: str) -> None:
    """Read and re-hash everything in the store, and name what is damaged. Nothing is changed.

    The exit code is 7 if anything is damaged.
    """
    settings: Settings = context.obj
    with settings.open_for_reading() as store, shown_progress(quiet=quiet) as progress:
        report = store.verify(progress=progress)
    if form == "json":
        print_json(_document(report))
    else:
        _print_report(report)
    if report.damages:
        context.exit(DAMAGED)


def _document(report: StoreReport) -> dict[str, object]:
    """The report without saying each damage twice."""
    checked = report.checked
    return {
        "layers": checked.layers,
        "blobs": checked.blobs,
        "chunks": checked.chunks,
        "bytes": checked.bytes,
        "damages": [
            {**as_json(found.damage), "images": list(found.images)} for found in report.damages
        ],
    }


def _print_report(report: StoreReport) -> None:
    checked = report.checked
    counts = (
        f"{count_text(checked.layers, 'layer')}, {count_text(checked.blobs, 'blob')}, "
        f"{count_text(checked.chunks, 'chunk')}, {size_text(checked.bytes)}"
    )
    if not report.damages:
        print_text(f"{counts}: everything is whole")
        return
    print_text(f"{counts}: {count_text(len(report.damages), 'damage')}")
    for found in report.damages:
        _print_damage(found)


def _print_damage(found: ImageDamage) -> None:
    damage = found.damage
    print_text(f"{f'{damage.what} {damage.name}'.rstrip()}: {damage.problem}")
    if found.images:
        print_text(f"    images: {', '.join(map(familiar_name, found.images))}")
    if damage.chunks:
        print_text(f"    chunks: {', '.join(map(str, damage.chunks))}")
    for path in damage.paths:
        print_text(f"    {path}")
