"""What is done with the files of an image: the same work for every way to show them.

find          `find ROOT`: names only
stat          `find ROOT -printf %s`: every inode
sequential    every regular file from its start to its end, by `cat`, in the order of `find`
random        reads of 4 KiB at random offsets of random files (by size), each file opened for it
"""

from __future__ import annotations

import os
import random
import subprocess
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from layerstore.api import LayerStore

__all__ = ["jobs_for", "load_programs"]

_SAMPLES = 2000
_PAGE = 4096


def jobs_for(store: LayerStore, reference: str) -> dict[str, Callable[[Path], None]]:
    """The work by its name; always the same for the same image."""
    return {
        "find": _find,
        "stat": _stat,
        "sequential": _read_all,
        "random": partial(_read_samples, samples=_samples(store, reference)),
    }


def load_programs(folder: Path) -> None:
    """Read the programs that the jobs run, which are not what is measured."""
    nothing = folder / "nothing"
    nothing.mkdir(exist_ok=True)
    (nothing / "file").touch()
    _stat(nothing)
    _read_all(nothing)


def _find(root: Path) -> None:
    subprocess.run(["find", str(root)], check=True, stdout=subprocess.DEVNULL)


def _stat(root: Path) -> None:
    command = ["find", str(root), "-printf", "%s\n"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _read_all(root: Path) -> None:
    with subprocess.Popen(
        ["find", str(root), "-type", "f", "-print0"], stdout=subprocess.PIPE
    ) as find:
        command = ["xargs", "-0", "cat"]
        subprocess.run(command, check=True, stdin=find.stdout, stdout=subprocess.DEVNULL)


def _samples(store: LayerStore, reference: str) -> list[tuple[bytes, int]]:
    """Paths and offsets, always the same for the same image; a file comes as often as it is large."""
    view = store.view(reference)
    files = [
        (path, view.stat_inode(inode).st_size)
        for path, inode in view.tree.walk()
        if view.stat_inode(inode).st_mode >> 12 == 8 and view.stat_inode(inode).st_size
    ]
    choice = random.Random(3)
    chosen = choice.choices(files, [size for _, size in files], k=_SAMPLES)
    return [(path, choice.randrange(-(-size // _PAGE)) * _PAGE) for path, size in chosen]


def _read_samples(root: Path, samples: Sequence[tuple[bytes, int]]) -> None:
    folder = os.fsencode(root)
    for path, offset in samples:
        fd = os.open(b"%s/%s" % (folder, path), os.O_RDONLY)
        os.pread(fd, _PAGE, offset)
        os.close(fd)
