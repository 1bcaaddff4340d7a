"""Records an operation, makes the disks that a crash may leave of it, and checks each with the real library."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.api import open_store
from layerstore.snapshots import plainfiles
from tests.faults.crash.operations import OPERATIONS, check
from tests.faults.crash.recording import build_recorder, run_recorded
from tests.faults.crash.states import State, build, iter_states

if TYPE_CHECKING:
    from tests.faults.crash.operations import Operation
    from tests.faults.crash.recording import Recording

__all__ = ["Exploration", "Violation", "explore"]

_MEMORY = Path("/dev/shm")  # nothing here has to survive
_BATCH = 16


@dataclass(frozen=True, slots=True)
class Violation:
    """A state after which an invariant does not hold, and how that showed."""

    state: str
    problem: str


@dataclass(frozen=True, slots=True)
class Exploration:
    """What came of one operation.

    Attributes:
        steps: what was recorded; there is a crash point before each of them and one at the end.
        found: different states.
        checked: of those.
    """

    name: str
    steps: int
    found: int
    checked: int
    violations: tuple[Violation, ...]
    seconds: float


def explore(
    operation: Operation,
    *,
    bug: str = "none",
    states: int | None = None,
    jobs: int = 1,
    seed: int = 0,
) -> Exploration:
    """Record an operation and check `states` of its states, taken at random, or all."""
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="crash-", dir=_MEMORY if _MEMORY.is_dir() else None))
    try:
        recording = _record(operation, folder, bug)
        every = list(iter_states(recording, seed))
        chosen = every
        if states is not None and states < len(every):
            chosen = random.Random(seed).sample(every, states)
        violations = _check_all(operation, recording, chosen, folder, jobs)
        return Exploration(
            operation.name,
            len(recording.steps),
            len(every),
            len(chosen),
            tuple(violations),
            time.monotonic() - started,
        )
    finally:
        shutil.rmtree(folder)


def _record(operation: Operation, folder: Path, bug: str) -> Recording:
    world, archives = folder / "world", folder / "archives"
    world.mkdir()
    archives.mkdir()
    if operation.before:
        with open_store(world / "store") as store:
            for step in operation.before:
                step.do(store, archives)
        operation.prepare(world / "store", archives)
    words = ["-m", "tests.faults.crash.program", operation.name]
    words += [str(world / "store"), str(archives), bug]
    recording = run_recorded(build_recorder(), words, world, folder / "log")
    rebuilt = folder / "rebuilt"
    build(recording, State(len(recording.steps), {}, ()), rebuilt)
    assert _contents(rebuilt) == _contents(world), "the recorder has missed something"
    shutil.rmtree(rebuilt)
    return recording


def _contents(world: Path) -> dict[str, bytes]:
    """All files and folders; lock.mdb lives in memory only."""
    return {
        str(path.relative_to(world)): path.read_bytes() if path.is_file() else b""
        for path in world.rglob("*")
        if path.name != "lock.mdb"
    }


def _check_all(
    operation: Operation, recording: Recording, states: list[State], folder: Path, jobs: int
) -> list[Violation]:
    batches = [states[at : at + _BATCH] for at in range(0, len(states), _BATCH)]
    # Processes of their own: a damaged store may end one. Forked from a server that has imported everything.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.crash.explore"])
    with ProcessPoolExecutor(
        jobs, context, initializer=_begin, initargs=(operation.name, recording, folder)
    ) as pool:
        return [one for found in pool.map(_check_batch, batches) for one in found]


_task: tuple[Operation, Recording, Path] | None = None


def _begin(name: str, recording: Recording, folder: Path) -> None:
    global _task  # what a worker works on
    _task = OPERATIONS[name], recording, folder
    boot = folder / "next boot"
    boot.write_text("after-the-crash\n")
    plainfiles._BOOT_ID = boot


def _check_batch(states: list[State]) -> list[Violation]:
    assert _task is not None
    operation, recording, folder = _task
    violations = []
    for state in states:
        world = folder / f"state-{os.getpid()}"
        build(recording, state, world)
        try:
            check(operation, world / "store", folder / "archives", state.acknowledged)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"{type(error).__name__}: {error} ({where.name}:{where.lineno})"
            violations.append(Violation(str(state), problem[:600]))
        finally:
            shutil.rmtree(world)
    return violations
