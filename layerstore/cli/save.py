"""`layerstore save`: images to an archive or an OCI layout folder that other tools load."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from layerstore.cli.output import format_option, print_json, print_note, print_text
from layerstore.cli.progress import shown_progress
from layerstore.cli.wording import count_text, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.cli.settings import Settings

__all__ = ["save_verb"]

_STDOUT = Path("-")


@click.command("save", short_help="Save images to an archive or a layout folder.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "-o",
    "--output",
    type=click.Path(allow_dash=True, path_type=Path),
    default=_STDOUT,
    help="Write to this file or folder, not to standard output.",
)
@click.option(
    "--as",
    "kind",
    type=click.Choice(["docker", "oci", "folder"]),
    default="docker",
    show_default=True,
    help="A tar for `docker load` and OCI tools, a tar with an OCI layout only, or a layout folder.",
)
@click.option("--zstd", is_flag=True, help="Compress layers that cannot go out as they came in.")
@click.option("--platform", metavar="OS/ARCH", help="Of an index, save only this platform.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@format_option()
@click.pass_obj
def save_verb(
    settings: Settings,
    names: tuple[str, ...],
    output: Path,
    kind: str,
    zstd: bool,
    platform: str | None,
    quiet: bool,
    form: str,
) -> None:
    """Save images to a tar or an OCI layout folder. A file appears only when it is whole."""
    if output == _STDOUT:
        _check_standard_output(kind, form)
    from layerstore.images.save import ArchiveKind

    with (
        settings.open_for_reading() as store,
        _open_target(output) as target,
        shown_progress(quiet=quiet) as progress,
    ):
        report = store.save(
            names,
            target,
            kind=ArchiveKind(kind),
            zstd=zstd,
            platform=platform,
            progress=progress,
        )
    if form == "json":
        print_json(report)
    elif output != _STDOUT and not quiet:
        what = f"{count_text(len(report.images), 'image')}, {count_text(report.blobs, 'blob')}"
        print_text(f"Saved to {output}: {what}, {size_text(report.bytes)}")
    for image in report.images:
        if not image.exact and not quiet:
            print_note(
                f"{image.name} is saved with the manifest digest {image.digest}, not the one it came with: "
                "its compressed layers were dropped"
            )


def _check_standard_output(kind: str, form: str) -> None:
    if kind == "folder":
        raise click.UsageError("a folder needs a path: give -o DIR")
    if form == "json":
        raise click.UsageError("standard output takes the archive or the report: give -o FILE")
    if sys.stdout is None or sys.stdout.isatty():
        raise click.UsageError("not writing an archive to a terminal: give -o FILE, or redirect")


@contextmanager
def _open_target(output: Path) -> Iterator[Path | BinaryIO]:
    """A path that will be replaced; or an open stream for standard output, a pipe, a device."""
    if output == _STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif output.exists() and not output.is_file() and not output.is_dir():
        with output.open("wb") as stream:
            yield stream
    else:
        yield output
