"""`layerstore load`: images out of archives and layouts. Each archive by itself: a bad one leaves the others alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from layerstore.cli.failures import Failures
from layerstore.cli.inputs import STDIN, label_of, open_source
from layerstore.cli.output import format_option, print_json, print_note, print_text
from layerstore.cli.progress import shown_progress
from layerstore.cli.wording import count_text, familiar_name, size_text
from layerstore.images.load import BlobPolicy

if TYPE_CHECKING:
    from layerstore.api import LayerStore
    from layerstore.cli.inputs import Source
    from layerstore.cli.settings import Settings
    from layerstore.images.load import LayerReport, LoadedImage

__all__ = ["load_verb"]

_PATH = click.Path(allow_dash=True, path_type=Path)


@dataclass(frozen=True, slots=True)
class _Request:
    """How to load each of the archives."""

    blobs: BlobPolicy
    platform: str | None
    name: str | None
    quiet: bool
    is_text: bool


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What one archive brought: an object of the JSON document.

    Attributes:
        source: the path as it was given, or `standard input`.
        read_bytes: of layers, as they lie in the archive; known layers are not read.
        new_bytes: written to the store, metadata included.
    """

    source: str
    images: tuple[LoadedImage, ...]
    read_bytes: int
    new_chunks: int
    new_bytes: int
    warnings: tuple[str, ...]


@click.command("load", short_help="Load images from archives or OCI layouts.")
@click.option(
    "-i", "--input", "first", type=_PATH, help="Read this archive, as `docker load` does."
)
@click.argument("paths", nargs=-1, type=_PATH, metavar="[FILE|DIR|-]...")
@click.option(
    "--defer",
    "blobs",
    flag_value=BlobPolicy.DEFER.value,
    help="Keep compressed layers as they are, for `optimize` to convert: quicker.",
)
@click.option(
    "--drop-blobs",
    "blobs",
    flag_value=BlobPolicy.DROP.value,
    help="Keep only the tars inside: manifests lose their digest.",
)
@click.option("--platform", metavar="OS/ARCH", help="Of an index, load only this platform.")
@click.option("--name", help="Name the one image so, whatever the archive calls it.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the names of what was loaded.")
@format_option()
@click.pass_obj
def load_verb(
    settings: Settings,
    first: Path | None,
    paths: tuple[Path, ...],
    blobs: str | None,
    platform: str | None,
    name: str | None,
    quiet: bool,
    form: str,
) -> None:
    """Load images from docker-archives and OCI layouts: files, folders, or standard input.

    Archives may be compressed. What an archive is shows in its content, not in its name.
    """
    sources = [*([first] if first else []), *paths] or [STDIN]
    if sources.count(STDIN) > 1:
        raise click.UsageError("standard input can be read once only")
    request = _Request(BlobPolicy(blobs or BlobPolicy.EXACT), platform, name, quiet, form == "text")
    failures = Failures(is_debugging=settings.debug)
    readable = []
    for path in sources:
        with failures.noted(label_of(path)):
            readable.append((label_of(path), open_source(path)))
    loaded = []
    if readable:  # a mistyped path does not make a store
        with settings.open_for_writing(create=True) as store:
            for label, source in readable:
                with failures.noted(label):
                    loaded.append(_load(store, label, source, request))
    if form == "json":
        print_json({"archives": loaded, "failures": failures.failed})
    failures.leave()


def _load(store: LayerStore, label: str, source: Source, request: _Request) -> _Loaded:
    with shown_progress(quiet=request.quiet) as progress:
        report = store.load(
            source,
            blobs=request.blobs,
            platform=request.platform,
            name=request.name,
            progress=progress,
        )
    loaded = _Loaded(
        label,
        report.images,
        progress.bytes,
        report.new_chunks,
        report.new_bytes,
        report.warnings,
    )
    for warning in report.warnings:
        print_note(f"{label}: {warning}")
    if request.is_text:
        _print_images(loaded, quiet=request.quiet)
    if not request.quiet and not all(image.exact for image in report.images):
        print_note(
            "compressed layers were dropped: `save` writes manifests with other digests; "
            "load without --drop-blobs to have them exact"
        )
    return loaded


def _print_images(loaded: _Loaded, *, quiet: bool) -> None:
    for image in loaded.images:
        for name in image.names:
            print_text(f"Loaded image: {familiar_name(name)}")
        if not image.names:
            print_text(f"Loaded image ID: {image.id}")
    if not quiet:
        read, added = size_text(loaded.read_bytes), size_text(loaded.new_bytes)
        print_text(f"{_layers_text(loaded.images)}; {read} read, {added} added")


def _layers_text(images: tuple[LoadedImage, ...]) -> str:
    """Each layer once, as it was met first: what is new in one image is known in the next."""
    layers: dict[str, LayerReport] = {}
    for image in images:
        for layer in image.layers:
            layers.setdefault(layer.diff_id, layer)
    new = sum(layer.status == "new" for layer in layers.values())
    return f"{count_text(len(layers), 'layer')}: {new} new, {len(layers) - new} known"
