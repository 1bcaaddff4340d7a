"""The disks that a crash may leave, of a recording: which steps have reached it, and which of them in part.

The model is that of POSIX, and stricter than any filesystem in use:

- a write, a size or a hole is durable after a later fdatasync or fsync of the file, or at once on an O_DSYNC descriptor;
- a name (made, moved, taken away) is durable after a later fsync of its directory; a rename is one step;
- of what is not durable, any part may be there, in any order: a write whole, not at all, only its size (zeros), or
  torn, at 4 KiB (pages) or 512 bytes (sectors of a device).

For each crash point (after each step) all not durable steps are dropped, all kept, each one dropped and each one kept
alone, the latest writes torn in each way, and random mixtures taken. Equal disks are one state, and it is checked with
what was acknowledged at the latest of its crash points.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tests.faults.crash.recording import (
    Link,
    Mark,
    Punch,
    Recording,
    Rename,
    Resize,
    Sync,
    SyncAll,
    Unlink,
    Write,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.crash.recording import Entry, Inode, Step

__all__ = ["ALL", "DROPPED", "SIZE_ONLY", "State", "build", "iter_states", "unsynced"]

PAGE, SECTOR = 4096, 512
_ALONE = 8  # latest volatile steps that are dropped and kept one by one
_TORN = 3  # latest volatile writes that are torn
_MIXTURES = 6  # at each crash point

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Part(NamedTuple):
    """How much of a write is there: pieces of `grain` bytes, those whose bit in `mask` is set; the file has its size."""

    grain: int
    mask: int


ALL, DROPPED, SIZE_ONLY = Part(0, 1), Part(0, 0), Part(PAGE, 0)


@dataclass(frozen=True, slots=True)
class State:
    """A disk: for each step that is not as the program left it, how much of it is there.

    Attributes:
        until: number of steps before the crash.
        parts: of the steps among them that are not wholly there.
        acknowledged: marks that had been made.
    """

    until: int
    parts: dict[int, Part] = field(hash=False)
    acknowledged: tuple[str, ...]

    def __str__(self) -> str:
        missing = ", ".join(f"{i}:{_words(part)}" for i, part in sorted(self.parts.items()))
        return f"crash after step {self.until}, without {missing or 'nothing'}"


def iter_states(recording: Recording, seed: int = 0) -> Iterator[State]:
    """All different states of a recording, in the order of their crash points."""
    found: dict[bytes, State] = {}
    for until in range(len(recording.steps) + 1):
        told = tuple(step.text for step in recording.steps[:until] if isinstance(step, Mark))
        for parts in _choices(recording, until, random.Random(seed * 1_000_003 + until)):
            found[_fingerprint(recording, until, parts)] = State(until, parts, told)
    yield from sorted(found.values(), key=lambda state: state.until)


def unsynced(recording: Recording, until: int) -> list[int]:
    """The steps before a crash that need not be there after it."""
    volatile: list[int] = []
    for at in range(until):
        step = recording.steps[at]
        match step:
            case Sync():
                volatile = [v for v in volatile if not _is_synced(recording.steps[v], step.inode)]
            case SyncAll():
                volatile = []
            case Write() if step.synced:
                pass
            case Mark():
                pass
            case _:
                volatile.append(at)
    return volatile


def build(recording: Recording, state: State, target: Path) -> None:
    """Make the disk of a state in a new folder."""
    names = {
        inode: dict(entry.names)
        for inode, entry in recording.entries.items()
        if entry.kind == stat.S_IFDIR
    }
    content: dict[Inode, list[tuple[Step, Part]]] = {}
    for at, step in enumerate(recording.steps[: state.until]):
        part = state.parts.get(at, ALL)
        if part == DROPPED:
            continue
        match step:
            case Link():
                names[step.directory][step.name] = step.inode
            case Unlink():
                names[step.directory].pop(step.name, None)
            case Rename():
                names[step.directory].pop(step.name, None)
                names[step.to_directory][step.to_name] = step.inode
            case Write() | Resize() | Punch():
                content.setdefault(step.inode, []).append((step, part))
            case _:
                pass
    made: dict[Inode, Path] = {}

    def make(inode: Inode, path: Path) -> None:
        entry = recording.entries[inode]
        if entry.kind == stat.S_IFDIR:
            path.mkdir(mode=0o700)
            for name, child in names[inode].items():
                make(child, path / name)
        elif inode in made:
            os.link(made[inode], path)
        elif entry.kind == stat.S_IFLNK:
            path.symlink_to(entry.target)
        else:
            made[inode] = path
            _make_file(entry, content.get(inode, []), path)

    make(recording.root, target)


def _choices(recording: Recording, until: int, rng: random.Random) -> Iterator[dict[int, Part]]:
    volatile = unsynced(recording, until)
    nothing = dict.fromkeys(volatile, DROPPED)
    yield nothing
    yield {}
    for at in volatile[-_ALONE:]:
        yield {at: DROPPED}
        yield {v: part for v, part in nothing.items() if v != at}
    writes = [v for v in volatile if isinstance(recording.steps[v], Write)]
    for at in writes[-_TORN:]:
        for part in _torn(recording.steps[at], rng):
            yield {at: part}
            yield nothing | {at: part}
    if len(volatile) > 1:
        for _ in range(_MIXTURES):
            yield _mixture(recording, volatile, rng)


def _mixture(recording: Recording, volatile: list[int], rng: random.Random) -> dict[int, Part]:
    mixed = {}
    share = rng.random()
    for at in volatile:
        if rng.random() < share:
            continue
        step = recording.steps[at]
        mixed[at] = DROPPED
        if isinstance(step, Write) and rng.random() < 0.5:
            mixed[at] = rng.choice(list(_torn(step, rng)))
    return mixed


def _torn(step: Step, rng: random.Random) -> Iterator[Part]:
    """Ways in which a write is there in part."""
    assert isinstance(step, Write)
    yield SIZE_ONLY
    for grain in (PAGE, SECTOR):
        count = _pieces(step, grain)
        if count > 1:
            yield Part(grain, 1)
            yield Part(grain, (1 << count) - 2)
            yield Part(grain, rng.getrandbits(count))


def _pieces(step: Write, grain: int) -> int:
    """How many pieces a write has, cut at the borders of the file's blocks."""
    return (step.offset + len(step.data) - 1) // grain - step.offset // grain + 1


def _is_synced(step: Step, inode: Inode) -> bool:
    match step:
        case Write() | Resize() | Punch():
            return step.inode == inode
        case Link() | Unlink():
            return step.directory == inode
        case Rename():
            # In two directories it is durable with either: a filesystem that keeps half of it loses the file.
            return inode in (step.directory, step.to_directory)
        case _:
            return False


def _fingerprint(recording: Recording, until: int, parts: dict[int, Part]) -> bytes:
    there = hashlib.blake2b(digest_size=16)
    for at, step in enumerate(recording.steps[:until]):
        part = parts.get(at, ALL)
        if part != DROPPED and not isinstance(step, Sync | SyncAll | Mark):
            there.update(b"%d %d %x," % (at, part.grain, part.mask))
    return there.digest()


def _make_file(entry: Entry, steps: list[tuple[Step, Part]], path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(fd, entry.size)
        for offset, data in entry.extents:
            os.pwrite(fd, data, offset)
        for step, part in steps:
            match step:
                case Write():
                    _write(fd, step, part)
                case Resize():
                    os.ftruncate(fd, step.size)
                case Punch():
                    if _libc.fallocate(fd, 3, step.offset, step.length):
                        raise OSError(ctypes.get_errno(), "fallocate")
                case _:
                    pass
    finally:
        os.close(fd)


def _write(fd: int, step: Write, part: Part) -> None:
    if part == ALL:
        os.pwrite(fd, step.data, step.offset)
        return
    end = step.offset + len(step.data)
    if os.fstat(fd).st_size < end:
        os.ftruncate(fd, end)
    first = step.offset // part.grain
    for piece in range(_pieces(step, part.grain)):
        if part.mask >> piece & 1:
            start = max((first + piece) * part.grain, step.offset)
            until = min((first + piece + 1) * part.grain, end)
            os.pwrite(fd, step.data[start - step.offset : until - step.offset], start)


def _words(part: Part) -> str:
    if part == DROPPED:
        return "gone"
    if part == SIZE_ONLY:
        return "size only"
    return f"pieces of {part.grain}: {part.mask:b}"
