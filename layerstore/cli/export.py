"""`layerstore export`: an image's root filesystem as one tar, its layers merged."""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from layerstore.cli.output import format_option, print_json, print_text
from layerstore.cli.progress import shown_progress
from layerstore.cli.wording import size_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore.cli.progress import CountedProgress
    from layerstore.cli.settings import Settings

__all__ = ["export_verb"]

_STDOUT = Path("-")


@click.command("export", short_help="Write an image's root filesystem as a tar.")
@click.argument("image")
@click.option(
    "-o",
    "--output",
    type=click.Path(allow_dash=True, path_type=Path, dir_okay=False),
    default=_STDOUT,
    help="Write to this file, not to standard output.",
)
@click.option("--platform", metavar="OS/ARCH", help="Of an index, this platform.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@format_option()
@click.pass_obj
def export_verb(
    settings: Settings, image: str, output: Path, platform: str | None, quiet: bool, form: str
) -> None:
    """Write the root filesystem of IMAGE as one tar, without layers and history. A file appears only when it is whole.

    `layerstore import` makes an image of it again.
    """
    if output == _STDOUT:
        _check_standard_output(form)
    with settings.open_for_reading() as store:
        blocks = store.export(image, platform=platform)
        with _open_target(output) as target, shown_progress(quiet=quiet) as progress:
            size = _write(blocks, target, image, progress)
    if form == "json":
        print_json({"name": image, "bytes": size})
    elif output != _STDOUT and not quiet:
        print_text(f"Exported to {output}: {size_text(size)}")


def _check_standard_output(form: str) -> None:
    if form == "json":
        raise click.UsageError("standard output takes the tar or the report: give -o FILE")
    if sys.stdout is None or sys.stdout.isatty():
        raise click.UsageError("not writing a tar to a terminal: give -o FILE, or redirect")


def _write(blocks: Iterable[bytes], target: BinaryIO, image: str, progress: CountedProgress) -> int:
    progress.start(image, None)
    outcome, size = "failed", 0
    try:
        for block in blocks:
            target.write(block)
            size += len(block)
            progress.advance(len(block))
        target.flush()
        outcome = "exported"
    finally:
        progress.finish(outcome)
    return size


@contextmanager
def _open_target(output: Path) -> Iterator[BinaryIO]:
    """Standard output, a pipe or device as it is; or a new file that takes its name at the end of the block."""
    if output == _STDOUT:
        yield sys.stdout.buffer
        return
    if output.exists() and not output.is_file():
        with output.open("wb") as stream:
            yield stream
        return
    final = output.resolve()  # what a symbolic link leads to is replaced, not the link
    building = final.with_name(f".{final.name[:200]}.{secrets.token_hex(4)}")
    try:
        stream = building.open("xb")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(output)) from error
    try:
        with stream:
            yield stream
            os.fsync(stream.fileno())
        building.replace(final)
    except BaseException:
        building.unlink(missing_ok=True)
        raise
