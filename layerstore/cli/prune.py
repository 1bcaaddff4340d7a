"""`layerstore prune`: remove what nobody needs, and give the disk back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from layerstore.cli.output import format_option, print_json, print_text
from layerstore.cli.wording import count_text, familiar_name, size_text
from layerstore.images.prune import PruneOptions

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings
    from layerstore.images.prune import PruneReport

__all__ = ["prune_verb"]

_WARNING = "This will remove all images without a name, and what nothing needs."
_WARNING_ALL = "This will remove all images that nothing uses, and what nothing needs."


@click.command("prune", short_help="Remove what nobody needs, and free its space.")
@click.option(
    "-a",
    "--all",
    "everything",
    is_flag=True,
    help="Also named images that no snapshot, mount or lease uses.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="FILTER",
    help="until=24h, until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]; for images.",
)
@format_option()
@click.pass_obj
def prune_verb(
    settings: Settings,
    everything: bool,
    dry_run: bool,
    force: bool,
    filters: tuple[str, ...],
    form: str,
) -> None:
    """Remove images without a name, and free all that no image, snapshot, mount or lease needs.

    Safe beside all other work on the store. On a terminal it asks before.
    """
    if not (force or dry_run) and sys.stdin.isatty():
        click.confirm(f"{_WARNING_ALL if everything else _WARNING} Continue?", abort=True, err=True)
    options = PruneOptions(everything, filters, dry_run)
    opened = settings.open_for_reading() if dry_run else settings.open_for_writing(create=False)
    with opened as store:
        report = store.prune(options)
    if form == "json":
        print_json(_document(report))
    else:
        _print_report(report)


def _document(report: PruneReport) -> dict[str, object]:
    garbage = report.garbage
    return {
        "untagged": list(report.untagged),
        "deleted": list(report.deleted),
        "layers": garbage.layers,
        "blobs": garbage.blobs,
        "chunks": garbage.chunks,
        "waiting": garbage.waiting,
        "bytes": report.bytes,
        "cache_bytes": report.cache_bytes,
        "longest_lock_s": round(garbage.longest_lock_s, 6),
        "dry_run": report.dry_run,
    }


def _print_report(report: PruneReport) -> None:
    would = "Would be " if report.dry_run else ""
    for name in report.untagged:
        print_text(f"{would + 'untagged' if would else 'Untagged'}: {familiar_name(name)}")
    for digest in report.deleted:
        print_text(f"{would + 'deleted' if would else 'Deleted'}: {digest}")
    garbage = report.garbage
    print_text(f"{count_text(garbage.layers, 'layer')}, {count_text(garbage.chunks, 'chunk')}")
    if garbage.waiting:
        print_text(
            f"{count_text(garbage.waiting, 'chunk')} left to the next run: a load may need them"
        )
    print_text(f"Total reclaimed space: {size_text(report.bytes)}{' (estimated)' if would else ''}")
