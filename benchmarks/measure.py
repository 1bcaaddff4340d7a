"""Run programs and see what they cost: time, processor, memory, disk. Standard library only, and small on purpose.

Peak memory is that of the largest process; `launch.py` says why it starts them. Python writes no .pyc files where
PYTHONDONTWRITEBYTECODE is set and then compiles itself at every start, which no user has: programs run without it.

Source: proc(5), `/proc/PID/stat` and `VmHWM`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Cost", "Samples", "commit", "cores", "disk_bytes", "machine", "run", "warm"]

_TICKS = os.sysconf("SC_CLK_TCK")
_BLOCK = 4 << 20
_LAUNCH = (sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")))


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run took: seconds on the clock, seconds of processor in all threads, bytes of the peak."""

    wall_s: float
    cpu_s: float
    peak_rss: int
    output: str


@dataclass(slots=True)
class Samples:
    """Some runs of the same thing."""

    costs: list[Cost] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Median, least and most of the wall time; medians of the rest."""
        walls = [cost.wall_s for cost in self.costs]
        return {
            "rounds": len(walls),
            "median_s": round(median(walls), 3),
            "min_s": round(min(walls), 3),
            "max_s": round(max(walls), 3),
            "cpu_s": round(median(cost.cpu_s for cost in self.costs), 3),
            "peak_rss_bytes": max(cost.peak_rss for cost in self.costs),
        }


def run(
    commands: Iterable[Sequence[str]],
    environment: Mapping[str, str],
    folder: Path,
    daemons: Sequence[int] = (),
) -> Cost:
    """Run commands one after another in `folder`, and add up; the work of `daemons` (process IDs) is added too.

    Raises: RuntimeError: one of them failed; has the end of what it wrote.
    """
    os.sync()  # what others left to be written back is not for this run to pay
    log, report = folder / "output", folder / "cost"
    environment = {**os.environ, **environment}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    wall, cpu, peak, output = 0.0, 0.0, 0, ""
    before = sum(map(_daemon_cpu, daemons))
    for command in commands:
        with log.open("wb") as file:
            done = subprocess.run(
                [*_LAUNCH, str(report), *command],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
        output = log.read_text(errors="replace")
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{output[-2000:]}")
        wall_s, cpu_s, rss = json.loads(report.read_text())
        wall, cpu, peak = wall + wall_s, cpu + cpu_s, max(peak, rss)
    if daemons:
        cpu += sum(map(_daemon_cpu, daemons)) - before
        peak = max(peak, sum(map(_daemon_peak, daemons)))
    return Cost(wall, cpu, peak, output)


def disk_bytes(folder: Path) -> int:
    """Bytes of all blocks of all files and folders, as `du` counts: hard links once, holes not."""
    seen: dict[tuple[int, int], int] = {}
    for parent, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            status = Path(parent, name).lstat()
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def warm(paths: Iterable[Path]) -> None:
    """Read files into the page cache, so that every program starts from the same."""
    buffer = bytearray(_BLOCK)
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb", buffering=0) as source:
                    while source.readinto(buffer):
                        pass


def machine() -> dict[str, Any]:
    """What a figure is worth nothing without."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": cores(),
        "memory_bytes": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def commit(folder: Path) -> str:
    """The commit that is measured, with a `+` when files differ from it; empty outside of a repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _daemon_cpu(daemon: int) -> float:
    # Behind the name, which may hold anything: field 14 and 15 are user and system time, 16 and 17 of its children.
    fields = Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def _daemon_peak(daemon: int) -> int:
    for line in Path(f"/proc/{daemon}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
