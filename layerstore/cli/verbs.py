"""The command with its verbs. A verb's module is imported when the verb is used, so that `--help` stays quick."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import click

from layerstore.cli.settings import Settings, default_root

__all__ = ["VERBS", "cli"]

VERBS = {
    "load": "load",
    "save": "save",
    "import": "import_rootfs",
    "images": "images",
    "inspect": "inspect",
    "history": "history",
    "ls": "look",
    "cat": "look",
    "stat": "look",
    "export": "export",
    "diff": "diff",
    "tag": "naming",
    "rmi": "naming",
    "analyze": "analyze",
    "df": "df",
    "why": "why",
    "prune": "prune",
    "optimize": "optimize",
    "verify": "verify",
    "repair": "repair",
    "mount": "mount",
    "umount": "mount",
    "mounts": "mount",
    "fork": "snapshot",
    "run": "run",
    "commit": "commit",
    "snapshot": "snapshot",
    "serve": "serve",
    "version": "version",
}
"""Verb -> the module of this package that has it as `<verb>_verb`, in the order of `--help`."""


class _Verbs(click.Group):
    """A group that imports a verb when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"layerstore.cli.{VERBS[cmd_name]}")
        verb: click.Command = getattr(module, f"{cmd_name}_verb")
        return verb


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from layerstore.cli.version import own_version

        click.echo(f"layerstore {own_version()}")
        ctx.exit()


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="LAYERSTORE_ROOT",
    show_envvar=True,
    metavar="DIR",
    help="Folder of the store.  [default: /var/lib/layerstore for root, "
    "~/.local/share/layerstore for others]",
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    envvar="LAYERSTORE_LIMITS",
    show_envvar=True,
    metavar="NAME=VALUE",
    help="What a layer or archive may ask for, as entries=100000 or layer_bytes=10G; docs/security.md has all.",
)
@click.option("--debug", is_flag=True, help="Show where in the code an error was raised.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit; the verb `version` says more.",
)
@click.pass_context
def cli(ctx: click.Context, root: Path | None, limits: tuple[str, ...], debug: bool) -> None:
    """Keep container images with one copy of what they share, and give back every byte."""
    ctx.obj = Settings(root or default_root(os.environ), debug, limits)
