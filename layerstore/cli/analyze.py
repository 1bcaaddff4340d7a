"""`layerstore analyze`: what would sharing save, of images wherever they are, without storing them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from layerstore.cli.output import format_option, print_json, print_note, print_table, print_text
from layerstore.cli.progress import shown_progress
from layerstore.cli.settings import cache_folder
from layerstore.cli.wording import count_text, familiar_name, short_id, size_text
from layerstore.errors import InvalidArgument

if TYPE_CHECKING:
    from layerstore.analysis import Analysis
    from layerstore.analysis.report import ImageSavings
    from layerstore.cli.progress import CountedProgress
    from layerstore.cli.settings import Settings

__all__ = ["analyze_verb"]

_FILE = click.Path(dir_okay=False, path_type=Path)
_SOME = 10  # of each list that is printed; JSON has all


@click.command("analyze", short_help="Show what sharing would save, without loading.")
@click.argument("sources", nargs=-1, metavar="[FILE|DIR|IMAGE]...")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Layers to read at once.")
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep chunk lists of layers here.  [default: $XDG_CACHE_HOME/layerstore or ~/.cache/layerstore]",
)
@click.option("--no-cache", is_flag=True, help="Read every layer, and keep nothing.")
@click.option("--html", type=_FILE, metavar="FILE", help="Write a page that needs no network.")
@click.option(
    "--png", type=_FILE, metavar="FILE", help="Write a picture of the page; needs Chromium."
)
@click.option(
    "--parquet",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write tables for notebooks; needs pyarrow.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@format_option()
@click.pass_obj
def analyze_verb(
    settings: Settings,
    sources: tuple[str, ...],
    jobs: int | None,
    cache: Path | None,
    no_cache: bool,
    html: Path | None,
    png: Path | None,
    parquet: Path | None,
    quiet: bool,
    form: str,
) -> None:
    """Compare images: archives, OCI layouts, folders of them, or images of the store (all of it without any argument).

    Each distinct layer is read once, and not again by the next analysis. Figures with ~ in front are estimates.
    """
    kept = None if no_cache else cache or cache_folder(os.environ)
    with shown_progress(quiet=quiet) as progress:
        found = _analyze(settings, sources, kept, jobs, progress)
    for skipped in found.skipped:
        print_note(f"{skipped.path}: skipped: {skipped.reason}")
    _write(found, html, png, parquet)
    if form == "json":
        print_json(found, indent=None)
    else:
        _print(found)


def _write(found: Analysis, html: Path | None, png: Path | None, parquet: Path | None) -> None:
    from layerstore.analysis.page import render_page, take_picture, write_page
    from layerstore.analysis.parquet import write_parquet

    if html is not None or png is not None:
        page = render_page(found)
        if html is not None:
            write_page(page, html)
        if png is not None:
            take_picture(page, png)
    if parquet is not None:
        write_parquet(found, parquet)


def _analyze(
    settings: Settings,
    sources: tuple[str, ...],
    cache: Path | None,
    jobs: int | None,
    progress: CountedProgress,
) -> Analysis:
    from layerstore.analysis import AnalyzeOptions, analyze
    from layerstore.limits import parse_limits

    options = AnalyzeOptions(cache, jobs, parse_limits(settings.limits))
    paths = [Path(source) for source in sources if Path(source).exists()]
    names = [source for source in sources if not Path(source).exists()]
    for name in names:
        if name.startswith((".", "/")):
            raise InvalidArgument(f"{name}: no such file or folder")
    if paths and not names:
        return analyze(paths, options, progress=progress)
    with settings.open_for_reading() as store:
        return analyze(paths, options, store=store.store, names=names, progress=progress)


def _print(found: Analysis) -> None:
    _print_images(found)
    print_text("")
    _print_savings(found)
    if len(found.images) > 1:
        print_text("")
        _print_pairs(found)
    if found.duplicated_files:
        print_text("")
        print_table(
            ["LARGEST FILES IN SEVERAL LAYERS", "SIZE", "LAYERS", "REPEATED"],
            [
                [one.path, size_text(one.size), str(one.layers), size_text(one.wasted)]
                for one in found.duplicated_files[:_SOME]
            ],
        )
    if found.families:
        print_text("")
        print_table(
            ["LAYERS WITH THE SAME CONTENT", "IMAGES", "COMPRESSED", "REPEATED"],
            [
                [
                    " ".join(map(short_id, family.layers[:4]))
                    + (f" and {len(family.layers) - 4} more" if len(family.layers) > 4 else ""),
                    str(len(family.images)),
                    size_text(family.compressed),
                    size_text(family.duplicated),
                ]
                for family in found.families[:_SOME]
            ],
        )
    if found.suggestions:
        print_text("")
        for one in found.suggestions[:_SOME]:
            print_text(f"{_about(one.saves, one.is_estimate)}: {one.text}.")


def _print_images(found: Analysis) -> None:
    headings = ["IMAGE", "UNPACKED", "GZIP", "CHUNKS", "COMPRESSED", "ALONE", "SHARE"]
    shown = sorted(found.images, key=lambda image: -image.share)
    rows = [
        [
            _label(image),
            size_text(image.unpacked),
            _about(image.gzip, image.gzip_is_estimate),
            *map(size_text, (image.chunks, image.compressed, image.alone, image.share)),
        ]
        for image in shown[:50]
    ]
    print_table(headings, rows)
    if len(shown) > len(rows):
        print_text(f"and {len(shown) - len(rows)} more images with less of their own")


def _print_savings(found: Analysis) -> None:
    savings = found.savings
    print_text(
        f"{count_text(len(found.images), 'image')}, {count_text(len(found.layers), 'layer')}, "
        f"{count_text(found.chunk_count, 'chunk')}"
    )
    ways = [
        ("unpacked, each image alone", "unpacked"),
        ("gzip layers, each image alone", "gzip"),
        ("gzip layers, each once: a registry", "registry"),
        ("layers once, unpacked: Docker", "layers"),
        ("files once", "files"),
        ("chunks once", "chunks"),
        ("chunks compressed", "compressed"),
        ("with index and recipes: layerstore", "store"),
    ]
    rows = []
    for words, name in ways:
        size: int = getattr(savings, name)
        saved = 100 - 100 * size / savings.unpacked if savings.unpacked else 0
        rows.append([words, _about(size, name in savings.estimates), f"{saved:.1f} %"])
    print_table(["STORED AS", "SIZE", "SAVED"], rows)


def _print_pairs(found: Analysis) -> None:
    pairs = sorted(
        (
            (found.pairs[a][b], a, b)
            for a in range(len(found.images))
            for b in range(a + 1, len(found.images))
            if found.pairs[a][b]
        ),
        reverse=True,
    )[:_SOME]
    rows = [
        [
            _label(found.images[a]),
            _label(found.images[b]),
            size_text(shared),
            _percent(shared, found.images[a].compressed),
            _percent(shared, found.images[b].compressed),
        ]
        for shared, a, b in pairs
    ]
    print_table(["PAIRS THAT SHARE MOST", "", "SHARED", "OF FIRST", "OF SECOND"], rows)


def _label(image: ImageSavings) -> str:
    return familiar_name(image.names[0]) if image.names else short_id(image.id)


def _about(size: int, is_estimate: bool) -> str:
    return f"~{size_text(size)}" if is_estimate else size_text(size)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part // whole if whole else 0} %"
