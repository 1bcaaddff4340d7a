"""`layerstore why`: who holds an image, a digest, or what is at a path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from layerstore.cli.output import format_option, print_json, print_text
from layerstore.cli.wording import count_text, familiar_name, short_id, size_text

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings
    from layerstore.images.holding import Held, Holder

__all__ = ["why_verb"]

_SOME = 20  # holders that are printed of each kind; JSON has all


@click.command("why", short_help="Show who holds an image, a digest or a path.")
@click.argument("what", metavar="PATH|DIGEST|IMAGE")
@format_option()
@click.pass_obj
def why_verb(settings: Settings, what: str, form: str) -> None:
    """Show who needs an image, a layer, a blob or a chunk (by 12 digits at least), or what is at a path.

    A PATH begins with a slash and is looked up in all images; each different content is an answer of its own.
    """
    with settings.open_for_reading() as store:
        found = store.why(what)
    if form == "json":
        print_json(found)
        return
    for position, held in enumerate(found):
        if position:
            print_text("")
        _print_held(held)


def _print_held(held: Held) -> None:
    print_text(f"{held.kind} {held.name}: {size_text(held.size)}, {size_text(held.stored)} stored")
    if held.layers:
        shown = ", ".join(map(short_id, held.layers[:_SOME]))
        more = f" and {len(held.layers) - _SOME} more" if len(held.layers) > _SOME else ""
        print_text(f"    in {count_text(len(held.layers), 'layer')}: {shown}{more}")
    if not held.holders:
        print_text("    held by nothing: `layerstore prune` frees it")
    for kind in dict.fromkeys(holder.kind for holder in held.holders):
        _print_holders(kind, [one for one in held.holders if one.kind == kind])


def _print_holders(kind: str, holders: list[Holder]) -> None:
    for holder in holders[:_SOME]:
        note = ", where a layer above hides it" if holder.hidden else ""
        print_text(f"    {kind} {familiar_name(holder.name)}{note}")
    if len(holders) > _SOME:
        print_text(f"    and {count_text(len(holders) - _SOME, 'more ' + kind)}")
