"""`layerstore run`: a command in a writable root filesystem of an image."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from layerstore.cli.output import format_option, print_json, print_note

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings

__all__ = ["run_verb"]


@click.command(
    "run",
    short_help="Run a command in an image.",
    context_settings={"allow_interspersed_args": False},
)
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND]...")
@click.option("-e", "--env", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Where the command starts.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Names or numbers.")
@click.option(
    "-v", "--volume", "volumes", multiple=True, metavar="HOST:DIR[:ro]", help="May be repeated."
)
@click.option("--entrypoint", metavar="WORDS", help="In place of the image's; empty for none.")
@click.option("-i", "--interactive", is_flag=True, help="Give it standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give it this terminal.")
@click.option("--keep", is_flag=True, help="Keep the snapshot; its key is printed.")
@format_option()
@click.pass_obj
def run_verb(
    settings: Settings,
    image: str,
    command: tuple[str, ...],
    env: tuple[str, ...],
    workdir: str,
    user: str,
    volumes: tuple[str, ...],
    entrypoint: str | None,
    interactive: bool,
    tty: bool,
    keep: bool,
    form: str,
) -> None:
    """Run COMMAND (the image's own by default) in a writable snapshot of IMAGE, by runc or crun.

    The network is the host's. What it changes is gone afterwards, unless --keep is given. The exit code is the command's.
    """
    from layerstore.images.run import RunOptions

    options = RunOptions(
        command=command,
        env=env,
        workdir=workdir,
        user=user,
        volumes=volumes,
        terminal=tty,
        interactive=interactive,
        keep=keep,
        entrypoint=None if entrypoint is None else tuple(shlex.split(entrypoint)),
    )
    with settings.open_for_writing(create=False) as store:
        report = store.run(image, options)
    if form == "json":
        print_json(report)
    elif report.kept:
        print_note(f"kept as snapshot {report.key}")
    click.get_current_context().exit(report.exit_code)
