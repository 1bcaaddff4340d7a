"""`layerstore diff`: what differs between the root filesystems of two images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from layerstore.cli.output import format_option, print_json, print_note, print_text
from layerstore.cli.paths import from_root, path_text
from layerstore.cli.wording import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.cli.settings import Settings
    from layerstore.treediff import Change

__all__ = ["diff_verb"]

_LETTERS = {"added": "A", "changed": "C", "metadata": "M", "deleted": "D"}


@dataclass(frozen=True, slots=True)
class _Total:
    """Of one kind of change: how many paths, and the bytes of their files in the two images."""

    paths: int
    lower_size: int
    upper_size: int


@click.command("diff", short_help="Show what differs between two images.")
@click.argument("lower", metavar="IMAGE_A")
@click.argument("upper", metavar="IMAGE_B")
@click.option("--platform", metavar="OS/ARCH", help="Of indexes, compare this platform's images.")
@click.option("-q", "--quiet", is_flag=True, help="Print no totals.")
@format_option()
@click.pass_obj
def diff_verb(
    settings: Settings, lower: str, upper: str, platform: str | None, quiet: bool, form: str
) -> None:
    """Show the paths that are added (A), changed (C) or deleted (D) on the way from IMAGE_A to IMAGE_B.

    M is for paths that differ in nothing but mode, owner, time or extended attributes, and says in which.
    """
    with settings.open_for_reading() as store:
        changes = store.diff(lower, upper, platform=platform)
    totals = {kind: _total([one for one in changes if one.kind == kind]) for kind in _LETTERS}
    if form == "json":
        print_json({"changes": [_as_document(change) for change in changes], "totals": totals})
        return
    for change in changes:
        detail = f"   {', '.join(change.fields)}" if change.kind == "metadata" else _sizes(change)
        print_text(f"{_LETTERS[change.kind]} {path_text(_path(change))}{detail}")
    if not quiet:
        print_note(_totals_text(totals))


def _path(change: Change) -> str:
    return from_root(os.fsdecode(change.path))


def _sizes(change: Change) -> str:
    """Bytes behind the path, where there are any."""
    before, after = change.lower_size, change.upper_size
    if change.lower is not None and change.upper is not None and before != after:
        return f"   {size_text(before)} -> {size_text(after)}"
    return f"   {size_text(before or after)}" if before or after else ""


def _total(changes: Sequence[Change]) -> _Total:
    """A file with several names counts once."""
    lower = {change.lower: change.lower_size for change in changes}
    upper = {change.upper: change.upper_size for change in changes}
    return _Total(len(changes), sum(lower.values()), sum(upper.values()))


def _totals_text(totals: dict[str, _Total]) -> str:
    parts = []
    for kind, total in totals.items():
        if kind == "metadata" and not total.paths:
            continue
        one_sided = {"deleted": [total.lower_size], "added": [total.upper_size], "metadata": []}
        sizes = one_sided.get(kind, [total.lower_size, total.upper_size])
        bytes_text = f" ({' -> '.join(map(size_text, sizes))})" if any(sizes) else ""
        what = "in metadata only" if kind == "metadata" else kind
        parts.append(f"{total.paths} {what}{bytes_text}")
    return ", ".join(parts)


def _as_document(change: Change) -> dict[str, object]:
    return {
        "kind": change.kind,
        "path": _path(change),
        "lower_size": None if change.lower is None else change.lower_size,
        "upper_size": None if change.upper is None else change.upper_size,
        "fields": change.fields,
    }
