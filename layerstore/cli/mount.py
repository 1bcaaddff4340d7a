"""`layerstore mount`, `layerstore umount` and `layerstore mounts`: an image's root filesystem in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from layerstore.cli.failures import Failures
from layerstore.cli.output import format_option, print_json, print_note, print_table, print_text

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings

__all__ = ["mount_verb", "mounts_verb", "umount_verb"]

_FOLDER = click.Path(path_type=Path)
_DRIVERS = ("auto", "erofs", "objects", "fuse", "checkout", "hardlinks")


@click.command("mount", short_help="Show an image's root filesystem in a folder.")
@click.argument("image")
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--rw", is_flag=True, help="Let it be written to; changes are gone with the mount.")
@click.option(
    "--upper", metavar="DIR", type=_FOLDER, help="With --rw: keep the changes in this folder."
)
@click.option(
    "--driver",
    type=click.Choice(_DRIVERS),
    default="auto",
    show_default=True,
    help="How: auto is the first of the others that works here.",
)
@click.option(
    "--verify", is_flag=True, help="Read all contents first; if one is damaged, mount nothing."
)
@click.option("--platform", metavar="OS/ARCH", help="Choose in an image of several platforms.")
@format_option()
@click.pass_obj
def mount_verb(
    settings: Settings,
    image: str,
    folder: Path,
    rw: bool,
    upper: Path | None,
    driver: str,
    verify: bool,
    platform: str | None,
    form: str,
) -> None:
    """Show the root filesystem of IMAGE (a name or an ID) in the folder DIR, until `layerstore umount DIR`."""
    from layerstore import mounting

    with settings.open_for_writing(create=False) as store:
        made = mounting.mount(
            store.store,
            image,
            folder,
            rw=rw,
            driver=driver,
            upper=upper,
            verify=verify,
            platform=platform,
        )
    if form == "json":
        print_json(made.info)
    else:
        print_text(f"Mounted: {made.target} ({made.info.driver})")
    if made.info.driver == "hardlinks":
        print_note("its files are those of other checkouts, too: read them, do not write to them")


@click.command("umount", short_help="End mounts.")
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=_FOLDER)
@format_option()
@click.pass_obj
def umount_verb(settings: Settings, folders: tuple[Path, ...], form: str) -> None:
    """End the mounts at these folders. Of a writable mount without --upper, the changes are gone."""
    from layerstore import mounting

    failures = Failures(is_debugging=settings.debug)
    ended = []
    with settings.open_for_writing(create=False) as store:
        for folder in folders:
            with failures.noted(str(folder)):
                mounting.umount(store.store, folder)
                ended.append(folder)
                if form == "text":
                    print_text(f"Unmounted: {folder}")
    if form == "json":
        print_json({"unmounted": ended, "failures": failures.failed})
    failures.leave()


@click.command("mounts", short_help="List mounts.")
@format_option()
@click.pass_obj
def mounts_verb(settings: Settings, form: str) -> None:
    """List the mounts of the store that are there."""
    from layerstore import mounting

    with settings.open_for_reading() as store:
        found = mounting.mounts(store.store)
    if form == "json":
        print_json(found)
    else:
        rows = [
            [str(one.target), one.driver, "rw" if one.rw else "ro", one.diff_ids[-1][7:19]]
            for one in found
        ]
        print_table(["TARGET", "DRIVER", "ACCESS", "TOP LAYER"], rows)
