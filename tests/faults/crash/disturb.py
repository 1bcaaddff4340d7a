"""An error at each call that an operation makes of the operating system, one after another, LMDB's calls among them.

    python -m tests.faults.crash.disturb [--calls N] [--jobs N] [OPERATION …]          make faults

`recorder.c` counts the calls of a kind (writes, syncs, sizes, holes, opens, names, reads, maps) on files of the store,
and lets one fail, or all from there on. The operation then ends in a typed error or in success, never in anything else;
nothing acknowledged is lost, and it can be done again, in the same process or in another.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.api import open_store
from layerstore.errors import LayerstoreError, StoreFull
from tests.faults.crash.operations import OPERATIONS, check, run_chain
from tests.faults.crash.recording import Inode, Recording, build_recorder, read_base
from tests.faults.crash.states import State, build

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.faults.crash.operations import Operation

__all__ = ["DISTURBED", "FAULTS", "Disturbed", "Fault", "disturb"]

DISTURBED = [one.name for one in OPERATIONS.values() if len(one.chains) == 1]

_MEMORY = Path("/dev/shm")  # nothing here has to survive
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong at a call.

    Attributes:
        kind: of the call, a letter of `recorder.c`.
        code: errno; 0 for a write that is cut short and no error.
        stays: whether all later calls of the kind fail too.
        is_harmless: whether nobody may notice.
    """

    kind: str
    code: int
    stays: bool = False
    is_harmless: bool = False

    def __str__(self) -> str:
        word = errno.errorcode[self.code] if self.code else "short"
        return f"{_KINDS[self.kind]}: {word}{', for good' if self.stays else ''}"


_KINDS = {
    "W": "write",
    "S": "sync",
    "T": "size",
    "P": "hole",
    "O": "open",
    "N": "name",
    "R": "read",
    "M": "map",
}

FAULTS = (
    *(Fault("W", code, stays) for code in (errno.EIO, errno.ENOSPC) for stays in (False, True)),
    Fault("W", errno.EDQUOT),
    Fault("W", errno.EINTR, is_harmless=True),
    Fault("W", 0),
    *(Fault("S", code) for code in (errno.EIO, errno.ENOSPC, errno.EDQUOT)),
    Fault("S", errno.EIO, stays=True),
    *(Fault("T", code) for code in (errno.EIO, errno.ENOSPC)),
    Fault("T", errno.EINTR, is_harmless=True),
    Fault("P", errno.EIO),
    Fault("P", errno.ENOSPC),
    Fault("P", errno.EINTR, is_harmless=True),
    Fault("P", errno.EOPNOTSUPP, stays=True, is_harmless=True),
    *(Fault("O", code) for code in (errno.EIO, errno.EMFILE, errno.EACCES)),
    Fault("O", errno.EMFILE, stays=True),
    Fault("O", errno.EINTR, is_harmless=True),
    *(Fault("N", code) for code in (errno.EIO, errno.ENOSPC, errno.EROFS)),
    Fault("R", errno.EIO),
    Fault("R", errno.EIO, stays=True),
    Fault("R", errno.EINTR, is_harmless=True),
    Fault("M", errno.ENOMEM),
)


@dataclass(frozen=True, slots=True)
class Disturbed:
    """What came of a fault: the calls that were tried, of how many there are, and what went wrong.

    Attributes:
        refused: how many of the operations ended in an error.
    """

    tried: int
    calls: int
    refused: int
    problems: tuple[str, ...]


def disturb(
    operation: Operation, faults: Sequence[Fault], *, calls: int | None = None
) -> list[Disturbed]:
    """Try each fault at `calls` of the calls of its kind, taken at random, or at all; what came of each, in order."""
    folder = Path(tempfile.mkdtemp(prefix="fault-", dir=_MEMORY if _MEMORY.is_dir() else None))
    try:
        environment = os.environ | {
            "LD_PRELOAD": str(build_recorder()),
            "RECORD_ROOT": str(folder),
            "RECORD_LOG": os.devnull,
        }
        words = [sys.executable, "-m", "tests.faults.crash.disturb", "--program"]
        words += [operation.name, str(folder), json.dumps([*map(asdict, faults)]), str(calls or 0)]
        done = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE)
        return [
            Disturbed(**(found | {"problems": tuple(found["problems"])}))
            for found in map(json.loads, done.stdout.splitlines())
        ]
    finally:
        shutil.rmtree(folder)


def _program(name: str, folder: Path, faults: Sequence[Fault], limit: int) -> None:
    """In the process with the shim: a child for each call, and one that looks at what it has left; a line for each fault."""
    operation = OPERATIONS[name]
    archives = folder / "archives"
    archives.mkdir()
    base = folder / "base"
    base.mkdir()
    assert _in_child(lambda: _prepare(operation, base, archives)) == 0
    before = Recording(Inode(0), read_base(base)[0], ())
    report = folder / "report"

    def one(fault: Fault, at: int) -> dict[str, object]:
        world = folder / "world"
        build(before, State(0, {}, ()), world)
        code = _in_child(lambda: _run(operation, world / "store", archives, fault, at, report))
        outcome: dict[str, object] = json.loads(report.read_text()) if code == 0 else {}
        outcome.setdefault("problem", "" if code == 0 else f"ended with {code}")
        if not outcome["problem"] and at >= 0:
            told = [str(text) for text in _list(outcome["told"])]
            code = _in_child(lambda: _check(operation, world / "store", archives, told, report))
            outcome["problem"] = report.read_text() if code else ""
        shutil.rmtree(world)
        report.unlink(missing_ok=True)
        return outcome

    counts = one(Fault("".join(_KINDS), 0), -1)["calls"]
    assert isinstance(counts, dict)
    for fault in faults:
        count = counts[fault.kind]
        chosen: Sequence[int] = range(count)
        if 0 < limit < count:
            chosen = sorted(random.Random(f"{name}, {fault}").sample(chosen, limit))
        outcomes = {at: one(fault, at) for at in chosen}
        problems = [f"call {a}: {one['problem']}" for a, one in outcomes.items() if one["problem"]]
        refused = sum(bool(one.get("error")) for one in outcomes.values())
        found = Disturbed(len(chosen), count, refused, tuple(problems))
        print(json.dumps(asdict(found)), flush=True)


def _prepare(operation: Operation, base: Path, archives: Path) -> None:
    for steps in ((*operation.before,), *operation.chains):  # the latter for their archives
        with open_store(base / "store") as store:
            for step in steps:
                step.do(store, archives)
        if steps == operation.before:
            kept = read_base(base)[0]
    shutil.rmtree(base)
    if operation.before:
        build(Recording(Inode(0), kept, ()), State(0, {}, ()), base)
        operation.prepare(base / "store", archives)
    else:
        base.mkdir()


def _run(
    operation: Operation, root: Path, archives: Path, fault: Fault, at: int, report: Path
) -> None:
    """Do the operation with a fault at a call; after every second one, do it again in this process."""
    shim = ctypes.CDLL(None)
    told: list[str] = []
    outcome: dict[str, object] = {"told": told, "problem": "", "error": ""}
    is_short = fault.code == 0
    shim.layerstore_fail(
        fault.kind.encode(), ctypes.c_long(at), fault.code, int(fault.stays), int(is_short)
    )
    try:
        run_chain(operation.chains[0], root, archives, lambda number: told.append(f"0:{number}"))
    except (LayerstoreError, OSError) as error:
        outcome["error"] = repr(error)
        if fault.is_harmless:
            outcome["problem"] = f"was noticed: {error!r} ({_where(error)})"
        elif fault.code in _NO_ROOM and not isinstance(error, StoreFull):
            outcome["problem"] = f"a full disk is told as {error!r} ({_where(error)})"
    except BaseException:
        outcome["problem"] = traceback.format_exc()[-1500:]
    outcome["calls"] = {kind: shim.layerstore_calls(ord(kind)) for kind in _KINDS}
    shim.layerstore_fail(b"", ctypes.c_long(-1), 0, 0, 0)
    if outcome["error"] and not outcome["problem"] and at % 2:
        try:
            run_chain(operation.chains[0][len(told) :], root, archives, lambda number: None)
            told[:] = [f"0:{number}" for number in range(len(operation.chains[0]))]
        except BaseException:
            outcome["problem"] = "again in the same process: " + traceback.format_exc()[-1500:]
    report.write_text(json.dumps(outcome))


def _check(operation: Operation, root: Path, archives: Path, told: list[str], report: Path) -> None:
    try:
        check(operation, root, archives, told)
    except BaseException:
        report.write_text(traceback.format_exc()[-1500:])
        raise


def _where(error: BaseException) -> str:
    """The innermost frames that met an error."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)


def _in_child(do: Callable[[], object]) -> int:
    """Do something in a process of its own; its exit code, 1 for an exception, negative for a signal."""
    child = os.fork()
    if not child:
        try:
            do()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--program"]:
        name, folder, words, count = arguments[1:]
        faults = [Fault(**fields) for fields in json.loads(words)]
        _program(name, Path(folder), faults, int(count))
        return 0
    parser = argparse.ArgumentParser()
    parser.add_argument("operations", nargs="*", metavar="OPERATION", default=DISTURBED)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--calls", type=int)
    options = parser.parse_args(arguments)
    problems = tried = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        every = pool.map(
            lambda name: disturb(OPERATIONS[name], FAULTS, calls=options.calls), options.operations
        )
        for name, outcomes in zip(options.operations, every, strict=True):
            for fault, found in zip(FAULTS, outcomes, strict=True):
                tried += found.tried
                problems += len(found.problems)
                print(
                    f"{name}: {fault}: {found.tried} of {found.calls} calls, "
                    f"{found.refused} refused, {len(found.problems)} problems",
                    flush=True,
                )
                for problem in found.problems[:5]:
                    print(f"    {problem}")
    print(f"{tried} calls were disturbed, {problems} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
