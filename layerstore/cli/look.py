"""`layerstore ls`, `layerstore cat` and `layerstore stat`: what is in an image, with no mount and no root."""

from __future__ import annotations

import base64
import os
import shutil
import sys
from typing import TYPE_CHECKING

import click

from layerstore.cli.failures import Failures
from layerstore.cli.output import as_json, format_option, print_json, print_text
from layerstore.cli.paths import (
    align,
    entry_of,
    from_root,
    long_columns,
    path_text,
    time_text,
    with_image_paths,
)
from layerstore.cli.wording import printable, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.cli.paths import InsideEntry
    from layerstore.cli.settings import Settings
    from layerstore.view import DirEntry, View

__all__ = ["cat_verb", "ls_verb", "stat_verb"]

_BLOCK = 1 << 20

_PLATFORM = click.option("--platform", metavar="OS/ARCH", help="Of an index, this platform.")


@click.command("ls", short_help="List what is in an image.")
@click.argument("image")
@click.argument("path", default="/")
@click.option("-l", "--long", "is_long", is_flag=True, help="Modes, owners, sizes and times too.")
@click.option("-R", "--recursive", is_flag=True, help="All paths below, one a line.")
@_PLATFORM
@format_option()
@click.pass_obj
def ls_verb(
    settings: Settings,
    image: str,
    path: str,
    is_long: bool,
    recursive: bool,
    platform: str | None,
    form: str,
) -> None:
    """List a directory of IMAGE, its root unless PATH says otherwise; or what else is at PATH."""
    with settings.open_for_reading() as store, with_image_paths(image):
        view = store.view(image, platform=platform)
        if view.is_dir(path):
            entries = [
                entry_of(view, each.inode, each.path) for each in _below(view, path, recursive)
            ]
        else:
            inode = view.resolve(path, follow_symlinks=False)
            entries = [entry_of(view, inode, from_root(path))]
    if form == "json":
        print_json(entries)
        return
    names = [each.path if recursive else os.path.basename(each.path) for each in entries]  # noqa: PTH119  # no host path
    if is_long:
        columns = [long_columns(each, name) for each, name in zip(entries, names, strict=True)]
        for line in align(columns):
            print_text(line)
    else:
        for name in names:
            print_text(path_text(name))


@click.command("cat", short_help="Print files of an image.")
@click.argument("image")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@_PLATFORM
@format_option()
@click.pass_obj
def cat_verb(
    settings: Settings, image: str, paths: tuple[str, ...], platform: str | None, form: str
) -> None:
    """Print files of IMAGE one after another, byte for byte. Symbolic links are followed, inside the image."""
    failures = Failures(is_debugging=settings.debug)
    files: list[dict[str, object]] = []
    with settings.open_for_reading() as store:
        view = store.view(image, platform=platform)
        for path in paths:
            with failures.noted(path), with_image_paths(image), view.open(path) as file:
                if form == "json":
                    files.append(_as_document(path, file.read()))
                else:
                    shutil.copyfileobj(file, sys.stdout.buffer, _BLOCK)
    if form == "json":
        print_json({"files": files, "failures": failures.failed})
    else:
        sys.stdout.buffer.flush()
    failures.leave()


@click.command("stat", short_help="Show what a path of an image is.")
@click.argument("image")
@click.argument("path")
@click.option(
    "-L", "--dereference", is_flag=True, help="Of a symbolic link, show what it leads to."
)
@_PLATFORM
@format_option()
@click.pass_obj
def stat_verb(
    settings: Settings, image: str, path: str, dereference: bool, platform: str | None, form: str
) -> None:
    """Show the metadata of PATH in IMAGE, extended attributes included."""
    with settings.open_for_reading() as store, with_image_paths(image):
        view = store.view(image, platform=platform)
        inode = view.resolve(path, follow_symlinks=dereference)
        entry = entry_of(view, inode, from_root(path))
        xattrs = view.tree.xattrs_of(inode)
    if form == "json":
        encoded = {os.fsdecode(name): _base64(xattrs[name]) for name in sorted(xattrs)}
        print_json({**as_json(entry), "xattrs": encoded})
    else:
        _print_entry(entry, xattrs)


def _below(view: View, path: str, recursive: bool) -> Iterator[DirEntry]:
    """What is in a directory, or all that is below it, directories before what is in them."""
    stack = [view.scandir(from_root(path))]
    while stack:
        for each in stack[-1]:
            yield each
            if recursive and each.is_dir(follow_symlinks=False):
                stack.append(view.scandir(each.path))
                break
        else:
            stack.pop()


def _print_entry(entry: InsideEntry, xattrs: dict[bytes, bytes]) -> None:
    shown = {
        "Path": entry.path,
        "Type": entry.type,
        "Size": f"{entry.size} ({size_text(entry.size)})" if entry.size > 999 else str(entry.size),
        "Mode": f"{entry.mode:04o} ({long_columns(entry, '')[0]})",
        "Owner": f"{entry.uid}:{entry.gid}",
        "Links": str(entry.nlink),
        "Modified": time_text(entry.mtime_ns),
        "Target": entry.target,
        "Device": entry.device and f"{entry.device[0]}, {entry.device[1]}",
    }
    for key, text in shown.items():
        if text:
            print_text(f"{key.ljust(8)}   {path_text(text)}")
    for name in sorted(xattrs):
        print_text(f"Xattr      {path_text(os.fsdecode(name))}={_value_text(xattrs[name])}")


def _value_text(value: bytes) -> str:
    """Text where it is text, else hex, as getfattr shows values."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return "0x" + value.hex()
    return f'"{text}"' if printable(text) == text and "\n" not in text else "0x" + value.hex()


def _as_document(path: str, content: bytes) -> dict[str, object]:
    try:
        encoding, text = "utf-8", content.decode()
    except UnicodeDecodeError:
        encoding, text = "base64", _base64(content)
    return {"path": from_root(path), "size": len(content), "encoding": encoding, "content": text}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
