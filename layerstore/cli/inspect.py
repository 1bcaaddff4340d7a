"""`layerstore inspect`: images in detail, and what each layer shares with the rest of the store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from layerstore.cli.failures import Failures
from layerstore.cli.output import as_json, format_option, print_json, print_table, print_text
from layerstore.cli.wording import (
    age_text,
    count_text,
    familiar_name,
    one_line,
    short_id,
    size_text,
)

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings
    from layerstore.images.listing import ImageDetails

__all__ = ["inspect_verb"]


@click.command("inspect", short_help="Show images in detail.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--platform", metavar="OS/ARCH", help="Of an index, show this platform.")
@format_option("json", "table", "text", default="json")
@click.pass_obj
def inspect_verb(
    settings: Settings, names: tuple[str, ...], platform: str | None, form: str
) -> None:
    """Show images and their layers: size, what is stored, what is shared. `text` is the same as `table`."""
    failures = Failures(is_debugging=settings.debug)
    found = []
    with settings.open_for_reading() as store:
        for name in names:
            with failures.noted(name):
                found.append(store.inspect(name, platform=platform))
    if form == "json":
        print_json(found)
    else:
        for position, image in enumerate(found):
            if position:
                print_text("")
            _print_image(image)
    failures.leave()


def _print_image(image: ImageDetails) -> None:
    summary = image.summary
    created = f"{summary.created} ({age_text(summary.created)})" if summary.created else "N/A"
    shown = {
        "Names": ", ".join(map(familiar_name, summary.names)) or "<none>",
        "ID": summary.id,
        "Digest": summary.digest,
        "Platform": summary.platform,
        "Created": created,
        "Author": image.author,
        "Size": f"{size_text(summary.size)} in {count_text(summary.layers, 'layer')}",
        "Stored": _stored_text(image),
        **{key: json.dumps(as_json(value)) for key, value in image.runtime.items() if value},
    }
    width = max(map(len, shown)) + 3
    for key, text in shown.items():
        if text:
            print_text(f"{key.ljust(width)}{one_line(text)}")
    print_text("")
    print_table(
        ["LAYER", "SIZE", "ENTRIES", "STORED", "SHARED", "SHARED WITH"],
        [
            [
                short_id(layer.diff_id),
                size_text(layer.size),
                str(layer.entries),
                size_text(layer.stored),
                _share_text(layer.shared, layer.stored),
                count_text(layer.shared_with, "layer") if layer.shared_with else "-",
            ]
            for layer in image.layers
        ],
    )
    print_text("")
    print_table(
        ["BLOB", "SIZE", "WRAPPING", "STORED", "ENCODER"],
        [
            [
                short_id(layer.blob),
                size_text(layer.blob_size),
                layer.wrapping,
                size_text(layer.blob_stored),
                layer.model or layer.reason or "-",
            ]
            for layer in image.layers
        ],
    )


def _stored_text(image: ImageDetails) -> str:
    stored = sum(layer.stored for layer in image.layers)
    shared = sum(layer.shared for layer in image.layers)
    return f"{size_text(stored)}, of it shared with other layers: {_share_text(shared, stored)}"


def _share_text(shared: int, stored: int) -> str:
    return f"{size_text(shared)} ({100 * shared // stored} %)" if shared else "-"
