"""`layerstore df`: where the bytes of the store are, to the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from layerstore.cli.output import format_option, print_json, print_table, print_text
from layerstore.cli.wording import count_text, familiar_name, short_id, size_text

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings
    from layerstore.images.accounting import DiskUsage

__all__ = ["df_verb"]


@click.command("df", short_help="Show what takes the disk, and what sharing saves.")
@click.option(
    "-v", "--verbose", is_flag=True, help="A line for each image, and for each kind of blobs, too."
)
@format_option()
@click.pass_obj
def df_verb(settings: Settings, verbose: bool, form: str) -> None:
    """Account for every byte of the store: from the images unpacked one by one down to what `du` says.

    With -v, of each image: UNPACKED and as registry BLOBS; STORED, as if it were alone; ALONE, which nothing else needs; its
    fair SHARE, every chunk divided by the images that hold it; and what removing it (and `prune`) has FREED. Then of all layer
    blobs, by encoder or why they are kept: their SIZE, what is STORED of them beside the tars, and bytes of RECIPES. JSON has all.
    """
    with settings.open_for_reading() as store:
        usage = store.usage()
    if form == "json":
        print_json(usage)
        return
    if verbose:
        _print_images(usage)
        print_text("")
        _print_blobs(usage)
        print_text("")
    _print_totals(usage)


def _print_images(usage: DiskUsage) -> None:
    rows = [
        [
            familiar_name(image.names[0]) if image.names else "<none>",
            short_id(image.id),
            *map(
                size_text,
                (
                    image.unpacked,
                    image.blobs,
                    image.stored,
                    image.alone,
                    image.share,
                    image.freed,
                ),
            ),
        ]
        for image in usage.images
    ]
    headings = ["IMAGE", "IMAGE ID", "UNPACKED", "BLOBS", "STORED", "ALONE", "SHARE", "FREED"]
    print_table(headings, rows)


def _print_blobs(usage: DiskUsage) -> None:
    rows = [
        [
            kind.wrapping.value,
            kind.how,
            str(kind.blobs),
            *map(size_text, (kind.size, kind.stored, kind.recipe)),
        ]
        for kind in usage.blobs
    ]
    print_table(["WRAPPING", "ENCODER", "BLOBS", "SIZE", "STORED", "RECIPES"], rows)


def _print_totals(usage: DiskUsage) -> None:
    split, overhead = usage.split, usage.overhead
    print_text(
        f"{count_text(len(usage.images), 'image')}, {count_text(usage.layers, 'layer')}, "
        f"{count_text(usage.chunks, 'chunk')}"
    )
    steps = [
        ("every layer once", split.unpacked, split.layers),
        ("every file once", split.layers, split.files),
        ("every chunk once", split.files, split.chunks),
        ("compressed", split.chunks, split.contents),
    ]
    rows = [["images unpacked", "", size_text(split.unpacked)]]
    rows += [
        [what, f"-{size_text(before - after)}", size_text(after)] for what, before, after in steps
    ]
    left = split.contents
    added = [
        ("recipes and documents", split.recipes),
        ("kept blobs", split.kept_blobs),
        ("held by others than images", overhead.held),
        ("garbage, for `prune` to free", overhead.garbage),
        ("slack of blocks", overhead.slack),
        ("tables", overhead.tables),
        ("caches of mounts", overhead.caches),
        ("writable layers", overhead.writable),
        ("folders and locks", overhead.other),
    ]
    for what, size in added:
        left += size
        if size:
            rows.append(
                [what, f"{size_text(size)}" if size < 0 else f"+{size_text(size)}", size_text(left)]
            )
    print_table(["", "STEP", "LEFT"], rows)
    saved = (
        f", {split.unpacked / usage.total:.1f} times less than unpacked" if split.unpacked else ""
    )
    print_text(f"\n{size_text(usage.total)} on disk{saved}")
    if usage.reclaimable:
        print_text(f"{size_text(usage.reclaimable)} of it `layerstore prune` would free")
