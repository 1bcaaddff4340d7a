"""What is inside an image, for people and for programs: paths in one line, entries as `ls -l` and as JSON show them.

    -rw-r--r--   1   0   0   20   2026-11-24 03:44   hosts
    lrwxrwxrwx   1   0   0    4   2026-11-24 03:44   sh -> bash

Names inside an image may hold anything but a slash and NUL. Here no name makes a second line or commands the terminal.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from layerstore.cli.wording import printable
from layerstore.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerstore.view import Stat, View

__all__ = [
    "InsideEntry",
    "align",
    "entry_of",
    "from_root",
    "long_columns",
    "path_text",
    "time_text",
    "with_image_paths",
]

_LINE = str.maketrans({"\n": "\\n", "\t": "\\t"})
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}


@dataclass(frozen=True, slots=True)
class InsideEntry:
    """A path of an image.

    Attributes:
        path: from the image's root, with a slash in front.
        type: file, directory, symlink, character, block or fifo.
        mode: permission, setuid, setgid and sticky bits.
        target: of a symbolic link.
        device: (major, minor) of a device.
    """

    path: str
    type: str
    mode: int
    uid: int
    gid: int
    size: int
    nlink: int
    mtime_ns: int
    target: str | None
    device: tuple[int, int] | None


@contextmanager
def with_image_paths(image: str) -> Iterator[None]:
    """Say errors of paths as `IMAGE: PATH: problem`; their classes in the error tree stay."""
    from layerstore.view import IsADirectory, LinkLoop, NoSuchPath, NotADirectory

    try:
        yield
    except NoSuchPath as error:
        raise NotFound(_problem(image, error)) from error
    except (IsADirectory, LinkLoop, NotADirectory) as error:
        raise InvalidArgument(_problem(image, error)) from error


def from_root(path: str) -> str:
    """A path as `InsideEntry` has it: a slash in front, none behind."""
    return "/" + path.strip("/")


def entry_of(view: View, inode: int, path: str) -> InsideEntry:
    """What an inode is, under one of its paths."""
    status = view.stat_inode(inode)
    kind = _TYPES[stat.S_IFMT(status.st_mode)]
    return InsideEntry(
        path,
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_size,
        status.st_nlink,
        status.st_mtime_ns,
        os.fsdecode(view.tree.target_of(inode)) if kind == "symlink" else None,
        _device(status),
    )


def long_columns(entry: InsideEntry, name: str) -> list[str]:
    """The columns of `ls -l`; the last is the name."""
    kind = next(bits for bits, name in _TYPES.items() if name == entry.type)
    size = f"{entry.device[0]}, {entry.device[1]}" if entry.device else str(entry.size)
    numbers = [str(entry.nlink), str(entry.uid), str(entry.gid), size]
    arrow = "" if entry.target is None else f" -> {path_text(entry.target)}"
    when = time_text(entry.mtime_ns)[:16]
    return [stat.filemode(kind | entry.mode), *numbers, when, path_text(name) + arrow]


def align(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of columns, right aligned but for the last; names keep their spaces."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join([*cells[:-1], row[-1]])


def path_text(path: str) -> str:
    """A path in one line: control characters, line ends and bytes that are no UTF-8 are written as escapes."""
    return printable(path).translate(_LINE)


def time_text(mtime_ns: int) -> str:
    """A time in UTC with nanoseconds; `@seconds` beyond what calendars have."""
    seconds, rest = divmod(mtime_ns, 10**9)
    try:
        when = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return f"@{seconds}.{rest:09}"
    return f"{when.replace(tzinfo=None).isoformat(sep=' ')}.{rest:09}Z"


def _device(status: Stat) -> tuple[int, int] | None:
    if not stat.S_ISCHR(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        return None
    return os.major(status.st_rdev), os.minor(status.st_rdev)


def _problem(image: str, error: OSError) -> str:
    return f"{image}: {path_text(os.fsdecode(error.filename))}: {error.strerror}"
