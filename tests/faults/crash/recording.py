"""What an operation wrote, in order: `recorder.c` put before libc in a program that runs the operation, and its log.

    recording = record(operation, folder)     base: the folder before; steps: what was done to it, marks among them

The folder is on a tmpfs where there is one: nothing here depends on what the filesystem itself would keep.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Base",
    "Entry",
    "Inode",
    "Link",
    "Mark",
    "Punch",
    "Recording",
    "Rename",
    "Resize",
    "Step",
    "Sync",
    "SyncAll",
    "Unlink",
    "Write",
    "build_recorder",
    "read_base",
    "read_log",
    "run_recorded",
]

Inode = NewType("Inode", int)  # of the recording: never given twice, as the kernel's are

_HEAD = struct.Struct("<IIQQQII")
_SOURCE = Path(__file__).with_name("recorder.c")


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes were written; `synced` where the descriptor is O_DSYNC: durable with the call."""

    inode: Inode
    offset: int
    data: bytes
    synced: bool


@dataclass(frozen=True, slots=True)
class Resize:
    """The size of a file was set."""

    inode: Inode
    size: int


@dataclass(frozen=True, slots=True)
class Punch:
    """A range was made a hole."""

    inode: Inode
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Sync:
    """A file's bytes, or a directory's names, are durable from here on."""

    inode: Inode


@dataclass(frozen=True, slots=True)
class SyncAll:
    """Everything is durable from here on."""


@dataclass(frozen=True, slots=True)
class Link:
    """A directory got a name."""

    directory: Inode
    name: str
    inode: Inode


@dataclass(frozen=True, slots=True)
class Unlink:
    """A directory lost a name."""

    directory: Inode
    name: str


@dataclass(frozen=True, slots=True)
class Rename:
    """A name was moved, over what had the new one."""

    directory: Inode
    name: str
    to_directory: Inode
    to_name: str
    inode: Inode


@dataclass(frozen=True, slots=True)
class Mark:
    """What the program itself said: that something is acknowledged."""

    text: str


Step = Write | Resize | Punch | Sync | SyncAll | Link | Unlink | Rename | Mark


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory or symbolic link as it came to be: what it held before the recording, if anything.

    Attributes:
        kind: stat.S_IFREG, S_IFDIR or S_IFLNK.
        size: of a file.
        extents: (offset, bytes) of a file, holes left out.
        names: of a directory.
        target: of a symbolic link.
    """

    kind: int
    size: int = 0
    extents: tuple[tuple[int, bytes], ...] = ()
    names: tuple[tuple[str, Inode], ...] = ()
    target: str = ""


Base = dict[Inode, Entry]


@dataclass(frozen=True, slots=True)
class Recording:
    """A folder as it was, all of it durable, and what was done to it. `entries` has also what was made meanwhile."""

    root: Inode
    entries: Base
    steps: tuple[Step, ...]


@cache
def build_recorder() -> Path:
    """Compile the shim, once for this process. Raises: CalledProcessError."""
    folder = Path(tempfile.mkdtemp(prefix="recorder-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = folder / "recorder.so"
    words = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, _SOURCE]
    subprocess.run([*map(str, words), "-lpthread"], check=True)
    return library


def run_recorded(library: Path, words: list[str], root: Path, log: Path) -> Recording:
    """Run a Python program on the folder `root`; returns what it did there.

    Raises: CalledProcessError: it failed.
    """
    base, numbers = read_base(root)
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "RECORD_ROOT": str(root),
        "RECORD_LOG": str(log),
    }
    subprocess.run([sys.executable, *words], check=True, env=environment)
    steps = tuple(read_log(log, base, numbers))
    return Recording(Inode(0), base, steps)


def read_base(root: Path) -> tuple[Base, dict[int, Inode]]:
    """A folder with all that is in it, and which of the kernel's inodes is which of ours."""
    base: Base = {}
    numbers: dict[int, Inode] = {}

    def read(path: Path) -> Inode:
        status = path.lstat()
        if (known := numbers.get(status.st_ino)) is not None:
            return known
        number = numbers[status.st_ino] = Inode(len(numbers))
        base[number] = Entry(stat.S_IFMT(status.st_mode))  # its place, before what is in it
        if stat.S_ISDIR(status.st_mode):
            names = tuple((child.name, read(child)) for child in sorted(path.iterdir()))
            base[number] = Entry(stat.S_IFDIR, names=names)
        elif stat.S_ISLNK(status.st_mode):
            base[number] = Entry(stat.S_IFLNK, target=os.fspath(path.readlink()))
        else:
            base[number] = Entry(stat.S_IFREG, status.st_size, tuple(_extents(path)))
        return number

    read(root)
    return base, numbers


def _extents(path: Path) -> Iterator[tuple[int, bytes]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        at, size = 0, os.fstat(fd).st_size
        while at < size:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                return  # holes to the end
            at = os.lseek(fd, start, os.SEEK_HOLE)
            yield start, os.pread(fd, at - start, start)
    finally:
        os.close(fd)


def read_log(log: Path, base: Base, numbers: dict[int, Inode]) -> Iterator[Step]:
    """The steps of a log; what they make is added to `base`."""
    data = log.read_bytes()
    at = 0
    while at < len(data):
        kind, flags, inode, a, b, length, length2 = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        first, second = data[at : at + length], data[at + length : at + length + length2]
        at += length + length2
        name, other = os.fsdecode(first), os.fsdecode(second)
        match chr(kind):
            case "W":
                yield Write(numbers[inode], a, first, bool(flags & 1))
            case "T":
                yield Resize(numbers[inode], a)
            case "P":
                yield Punch(numbers[inode], a, b)
            case "S":
                yield Sync(numbers[inode])
            case "A":
                yield SyncAll()
            case "L":
                if flags:
                    kinds = (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
                    numbers[a] = Inode(len(base))
                    base[numbers[a]] = Entry(kinds[flags], target=other)
                yield Link(numbers[inode], name, numbers[a])
            case "U":
                yield Unlink(numbers[inode], name)
            case "R":
                yield Rename(numbers[inode], name, numbers[b], other, numbers[a])
            case "M":
                yield Mark(name)
            case unknown:
                raise AssertionError(f"the recorder met what it cannot record: {unknown} {name}")
