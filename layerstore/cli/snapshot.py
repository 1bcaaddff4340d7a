"""`layerstore snapshot …` and `layerstore fork`: writable root filesystems, and read-only ones, by their keys."""

from __future__ import annotations

import shlex
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from layerstore.cli.output import format_option, print_json, print_table, print_text
from layerstore.cli.wording import age_text, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.cli.settings import Settings
    from layerstore.snapshots import Info, MountSpec

__all__ = ["fork_verb", "snapshot_verb"]

_LABELS = click.option(
    "-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="May be repeated."
)


@click.group("snapshot", short_help="Writable and read-only root filesystems.")
def snapshot_verb() -> None:
    """Prepare, look at, commit and remove snapshots, with containerd's words.

    `prepare` makes an active (writable) one and `view` a read-only one on a committed PARENT, or on nothing; `commit` makes
    an active one committed under a new name. `layerstore fork` makes active ones on an image. With --format json,
    results are one JSON document.
    """


@snapshot_verb.command("prepare", short_help="Make a writable snapshot.")
@click.argument("key")
@click.argument("parent", default="")
@_LABELS
@format_option()
@click.pass_obj
def _prepare(settings: Settings, key: str, parent: str, labels: tuple[str, ...], form: str) -> None:
    """Make the active snapshot KEY on the committed snapshot PARENT, or on nothing; prints how to mount it."""
    with settings.open_for_writing(create=True) as store:
        snapshots = store.snapshots
        info = snapshots.prepare(key, parent, _parse_labels(labels))
        _print_made(info, snapshots.mounts(key), form)


@snapshot_verb.command("view", short_help="Make a read-only snapshot.")
@click.argument("key")
@click.argument("parent", default="")
@_LABELS
@format_option()
@click.pass_obj
def _view(settings: Settings, key: str, parent: str, labels: tuple[str, ...], form: str) -> None:
    """Make a view KEY of the committed snapshot PARENT, or of nothing; prints how to mount it."""
    with settings.open_for_writing(create=True) as store:
        snapshots = store.snapshots
        info = snapshots.view(key, parent, _parse_labels(labels))
        _print_made(info, snapshots.mounts(key), form)


@snapshot_verb.command("commit", short_help="Make a writable snapshot a base for others.")
@click.argument("name")
@click.argument("key")
@_LABELS
@format_option()
@click.pass_obj
def _commit(settings: Settings, name: str, key: str, labels: tuple[str, ...], form: str) -> None:
    """Turn the active snapshot KEY into the committed one NAME; its changes become a layer."""
    with settings.open_for_writing(create=False) as store:
        snapshots = store.snapshots
        info = snapshots.commit(name, key, _parse_labels(labels))
        layer = snapshots.stack(name)[-1]
    if form == "json":
        print_json({"snapshot": info, "layer": layer})
    else:
        print_text(layer)


@snapshot_verb.command("mounts", short_help="How to mount a snapshot.")
@click.argument("key")
@click.option("--target", default="TARGET", metavar="DIR", help="Where the commands mount it.")
@format_option()
@click.pass_obj
def _mounts(settings: Settings, key: str, target: str, form: str) -> None:
    """Print the mount(8) commands that show the snapshot KEY."""
    with settings.open_for_writing(create=False) as store:
        specs = store.snapshots.mounts(key)
    if form == "json":
        print_json(specs)
    else:
        _print_commands(specs, target)


@snapshot_verb.command("ls", short_help="List snapshots.")
@click.argument("filters", nargs=-1, metavar="[FILTER]...")
@click.option("-q", "--quiet", is_flag=True, help="Print only keys.")
@format_option()
@click.pass_obj
def _ls(settings: Settings, filters: tuple[str, ...], quiet: bool, form: str) -> None:
    """List snapshots; with filters in containerd's language, those that one of them lets through.

    For example: kind==active,labels."a.b/c"==x
    """
    with settings.open_for_reading() as store:
        infos = list(store.snapshots.walk(filters))
    if form == "json":
        print_json(infos)
    elif quiet:
        for info in infos:
            print_text(info.name)
    else:
        rows = [
            (info.name, info.kind, info.parent, age_text(_rfc3339(info.created_ns)))
            for info in infos
        ]
        print_table(("KEY", "KIND", "PARENT", "CREATED"), rows)


@snapshot_verb.command("stat", short_help="What a snapshot is.")
@click.argument("key")
@format_option("json", default="json")
@click.pass_obj
def _stat(settings: Settings, key: str, form: str) -> None:
    """Print what the snapshot KEY is, as JSON."""
    del form  # there is only one
    with settings.open_for_reading() as store:
        snapshots = store.snapshots
        print_json({"snapshot": snapshots.stat(key), "layers": snapshots.stack(key)})


@snapshot_verb.command("usage", short_help="Disk space of a snapshot's own changes.")
@click.argument("key")
@format_option()
@click.pass_obj
def _usage(settings: Settings, key: str, form: str) -> None:
    """Print how much disk the changes of KEY take."""
    with settings.open_for_reading() as store:
        usage = store.snapshots.usage(key)
    if form == "json":
        print_json(usage)
    else:
        print_text(f"{size_text(usage.size)} in {usage.inodes} inodes")


@snapshot_verb.command("update", short_help="Set labels of a snapshot.")
@click.argument("key")
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE...")
@format_option()
@click.pass_obj
def _update(settings: Settings, key: str, labels: tuple[str, ...], form: str) -> None:
    """Set labels of the snapshot KEY; one without a value is removed."""
    wanted = _parse_labels(labels)
    with settings.open_for_writing(create=False) as store:
        snapshots = store.snapshots
        wish = replace(snapshots.stat(key), labels=wanted)
        info = snapshots.update(wish, [f"labels.{name}" for name in wanted])
    if form == "json":
        print_json(info)


@snapshot_verb.command("rm", short_help="Remove snapshots.")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@format_option()
@click.pass_obj
def _rm(settings: Settings, keys: tuple[str, ...], form: str) -> None:
    """Remove snapshots; an active one loses its changes. One that others stand on cannot be removed."""
    from layerstore.cli.failures import Failures

    failures = Failures(is_debugging=settings.debug)
    removed = []
    with settings.open_for_writing(create=False) as store:
        snapshots = store.snapshots
        for key in keys:
            with failures.noted(key):
                snapshots.remove(key)
                removed.append(key)
                if form == "text":
                    print_text(key)
        snapshots.cleanup()
    if form == "json":
        print_json({"removed": removed, "failures": failures.failed})
    failures.leave()


@click.command("fork", short_help="Make writable root filesystems of an image.")
@click.argument("image")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.option("--platform", metavar="OS/ARCH", help="Choose in an image of several platforms.")
@format_option()
@click.pass_obj
def fork_verb(
    settings: Settings, image: str, keys: tuple[str, ...], platform: str | None, form: str
) -> None:
    """Make an active snapshot of IMAGE under each KEY, all or none; prints how to mount them."""
    from layerstore.images.commit import fork_image

    with settings.open_for_writing(create=False) as store:
        snapshots = store.snapshots
        infos = fork_image(store.store, snapshots, image, keys, platform)
        if form == "json":
            print_json([{"snapshot": i, "mounts": snapshots.mounts(i.name)} for i in infos])
            return
        for info in infos:
            _print_commands(snapshots.mounts(info.name), "TARGET")


def _print_made(info: Info, specs: Sequence[MountSpec], form: str) -> None:
    if form == "json":
        print_json({"snapshot": info, "mounts": specs})
    else:
        _print_commands(specs, "TARGET")


def _print_commands(specs: Sequence[MountSpec], target: str) -> None:
    for spec in specs:
        words = ["mount", "-t", spec.type, "-o", ",".join(spec.options), spec.source, target]
        print_text(shlex.join(words))


def _rfc3339(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat()


def _parse_labels(labels: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in labels:
        name, _, value = text.partition("=")
        if not name:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        found[name] = value
    return found
