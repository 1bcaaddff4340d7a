"""`layerstore optimize`: compressed layers that are kept become small recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from layerstore.cli.output import format_option, print_json, print_text
from layerstore.cli.progress import shown_progress
from layerstore.cli.wording import count_text, size_text

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings
    from layerstore.images.optimize import OptimizeReport

__all__ = ["optimize_verb"]


@click.command("optimize", short_help="Turn kept compressed layers into small recipes.")
@click.option("--again", is_flag=True, help="Also try those that an earlier run could not convert.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
@format_option()
@click.pass_obj
def optimize_verb(settings: Settings, again: bool, quiet: bool, form: str) -> None:
    """Turn compressed layers that are kept into recipes, from which their exact bytes are made again.

    Each is dropped only after it was made again from what is stored, and its digest was right. `prune` then frees its space.
    """
    with (
        settings.open_for_writing(create=False) as store,
        shown_progress(quiet=quiet) as progress,
    ):
        report = store.optimize(again=again, progress=progress)
    if form == "json":
        print_json(
            {
                "blobs": report.conversions,
                "bytes": report.bytes,
                "recipe_bytes": report.recipe_bytes,
                "reasons": dict(report.reasons),
            }
        )
    elif not quiet:
        _print_report(report)


def _print_report(report: OptimizeReport) -> None:
    done = [blob for blob in report.conversions if not blob.reason]
    print_text(
        f"{count_text(len(done), 'layer')} of {size_text(report.bytes)} regenerated "
        f"from recipes of {size_text(report.recipe_bytes)}"
    )
    for reason, count in sorted(report.reasons.items()):
        print_text(f"{count_text(count, 'layer')} kept: {reason}")
    if done:
        print_text("`layerstore prune` frees the space of what is no longer kept")
