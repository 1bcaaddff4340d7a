"""Run one command and say what it cost: `python -I -S launch.py REPORT COMMAND...`; its exit code is that of the command.

REPORT gets `[seconds on the clock, seconds of processor, bytes of the largest process]`. Linux counts into a process's
peak what its parent had before `exec`, so the parent has to be small: this one has 9 MB, whatever the benchmark has.

Source: getrusage(2), `ru_maxrss`.
"""

from __future__ import annotations

import os
import signal
import sys
import time

__all__: list[str] = []


def _main(report: str, command: list[str]) -> int:
    begin = time.perf_counter()
    # Python ignores SIGPIPE; programs expect not to.
    child = os.posix_spawnp(command[0], command, os.environ, setsigdef=[signal.SIGPIPE])
    _, status, usage = os.wait4(child, 0)
    wall_s = time.perf_counter() - begin
    cost = f"[{wall_s}, {usage.ru_utime + usage.ru_stime}, {usage.ru_maxrss * 1024}]"
    file = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(file, cost.encode())
    os.close(file)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2:]))
