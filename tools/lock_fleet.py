"""Choose what is in the images of the fleet: `tools/fleet.lock`, one line for each, as `tools/build_fleet.py` reads it.

    python -m tools.lock_fleet > tools/fleet.lock         needs `uv`, and the package index that it is set up for

    BASE PYTHON PROJECT==VERSION YYYY-MM DEPENDENCY==VERSION ...

An evaluation image is made when its project's version is new, with the dependencies of that day. So each version is
resolved as of the first month in which that works on this Python: dependencies drift through the fleet as they did.
pip, setuptools, wheel and pytest are in every environment. The lock is kept in the repository, so that the fleet is the same next year.

Source: `uv pip compile --exclude-newer`.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__: list[str] = []

# A base, its Python, and the first month in which somebody could have used it.
_BASES = {"python-bookworm": ("3.11", (2023, 5)), "python-trixie": ("3.13", (2024, 10))}
_VERSIONS = {
    "django": "4.2.1 4.2.5 4.2.10 4.2.16 5.0.1 5.0.6 5.0.9 5.1.1 5.1.4 5.1.6",
    "flask": "2.3.2 2.3.3 3.0.0 3.0.1 3.0.2 3.0.3 3.1.0",
    "pylint": "3.0.1 3.0.3 3.1.0 3.2.0 3.2.3 3.2.5 3.2.7 3.3.1 3.3.4",
    "pytest": "7.4.0 7.4.2 7.4.4 8.0.0 8.0.2 8.1.1 8.2.0 8.2.2 8.3.2 8.3.4",
    "sphinx": "7.0.1 7.1.2 7.2.2 7.2.6 7.3.5 7.3.7 7.4.7 8.1.3",
    "sympy": "1.12 1.12.1 1.13.0 1.13.1 1.13.2 1.13.3",
}
_ALWAYS = ("pip", "pytest", "setuptools", "wheel")
_LAST = (2025, 6)


def main() -> None:
    """Print the lock; projects take turns, so that its first lines have some of each."""
    columns = [
        [(project, version) for version in versions.split()]
        for project, versions in _VERSIONS.items()
    ]
    rows = itertools.chain.from_iterable(itertools.zip_longest(*columns))
    for project, version in filter(None, rows):
        for base, (python, first) in _BASES.items():
            month, pins = _resolve(project, version, python, first)
            print(base, python, f"{project}=={version}", month, *pins, flush=True)


def _resolve(
    project: str, version: str, python: str, first: tuple[int, int]
) -> tuple[str, list[str]]:
    """The first month in which this version and its dependencies have wheels, and what they are."""
    wanted = "\n".join([f"{project}=={version}", *(set(_ALWAYS) - {project})])
    error = ""
    for month in _months(first):
        done = subprocess.run(
            [
                *("uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "-"),
                *("--exclude-newer", f"{month}-28", "--only-binary", ":all:"),
                *("--python-version", python, "--python-platform", "x86_64-manylinux_2_28"),
            ],
            input=wanted,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            pins = [line for line in done.stdout.split() if "==" in line]
            return month, [pin for pin in pins if not pin.startswith(f"{project}==")]
        error = done.stderr
    sys.exit(f"{project} {version} on Python {python} cannot be resolved: {error}")


def _months(first: tuple[int, int]) -> Iterator[str]:
    year, month = first
    while (year, month) <= _LAST:
        yield f"{year}-{month:02}"
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)


if __name__ == "__main__":
    main()
