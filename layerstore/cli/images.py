"""`layerstore images`: what is in the store, a line for each name."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

from layerstore.cli.output import format_option, print_json, print_table, print_text
from layerstore.cli.wording import age_text, familiar_name, short_id, size_text, split_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.cli.settings import Settings
    from layerstore.images.listing import ImageSummary

__all__ = ["images_verb", "is_wanted"]


@click.command("images", short_help="List images.")
@click.argument("pattern", required=False, metavar="[REPOSITORY[:TAG]]")
@click.option("-q", "--quiet", is_flag=True, help="Print only image IDs, each once.")
@click.option(
    "-a", "--all", "everything", is_flag=True, help="As in Docker; nothing is hidden here."
)
@click.option("--no-trunc", "whole", is_flag=True, help="Print IDs in full.")
@click.option("--digests", is_flag=True, help="Print the digests of manifests too.")
@format_option()
@click.pass_obj
def images_verb(
    settings: Settings,
    pattern: str | None,
    quiet: bool,
    everything: bool,
    whole: bool,
    digests: bool,
    form: str,
) -> None:
    """List images, or those with a name: `layerstore images python`, `layerstore images 'py*:3.12'`.

    SIZE is that of the layers' tars, shared or not; `inspect` tells what is shared.
    """
    with settings.open_for_reading() as store:
        images = [image for image in store.images() if pattern is None or is_wanted(image, pattern)]
    if form == "json":
        print_json(images)
    elif quiet:
        for image_id in dict.fromkeys(image.id for image in images):
            print_text(image_id if whole else short_id(image_id))
    else:
        _print_images(images, whole=whole, digests=digests)


def is_wanted(image: ImageSummary, pattern: str) -> bool:
    """Whether a name of the image, short or full, with its tag or without, matches a shell pattern."""
    for name in image.names:
        for spelling in (name, familiar_name(name)):
            repository = spelling.partition("@")[0]
            head, colon, tag = repository.rpartition(":")
            untagged = head if colon and "/" not in tag else repository
            if fnmatchcase(spelling, pattern) or fnmatchcase(untagged, pattern):
                return True
    return False


def _print_images(images: Sequence[ImageSummary], *, whole: bool, digests: bool) -> None:
    with_platform = len({image.platform for image in images}) > 1
    headings = ["REPOSITORY", "TAG"]
    headings += ["DIGEST"] if digests else []
    headings += ["IMAGE ID"]
    headings += ["PLATFORM"] if with_platform else []
    rows = []
    for image in images:
        for repository, tag in map(split_name, image.names) if image.names else [("<none>",) * 2]:
            row = [repository, tag]
            row += [image.digest] if digests else []
            row += [image.id if whole else short_id(image.id)]
            row += [image.platform] if with_platform else []
            rows.append([*row, age_text(image.created), size_text(image.size)])
    rows.sort(key=lambda row: (row[0] == "<none>", row[:2]))
    print_table([*headings, "CREATED", "SIZE"], rows)
