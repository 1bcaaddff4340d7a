"""What every test gets: a clean environment, and a header that says what this machine can do.

Markers: `root` is skipped without CAP_SYS_ADMIN; `client("skopeo")` is skipped where the program is absent, but fails
with LAYERSTORE_REQUIRE_CLIENTS=1 (tests/support/lacking.py).
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from layerstore import kernels
from layerstore.mount.mountinfo import read_mountinfo
from tests.support.lacking import lacking

if TYPE_CHECKING:
    from collections.abc import Iterator

# A busy machine is no finding. CI tries the same examples each time, so that it fails for a change and not by luck.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# Started in the background or under nohup, this process ignores them, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

_CAP_SYS_ADMIN = 21  # linux/capability.h
_KEPT = ("LAYERSTORE_KERNELS",)  # read once, when the kernels are imported

# program -> the argument that makes it say its version
_PROGRAMS = {
    "tar": "--version",
    "skopeo": "--version",
    "umoci": "--version",
    "containerd": "--version",
    "ctr": "--version",
    "runc": "--version",
    "docker": "--version",
    "dockerd": "--version",
    "buildah": "--version",
    "podman": "--version",
    "docker-registry": "--version",
    "go": "version",
}


@cache
def _has_root() -> bool:
    """Whether this process may mount."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


def _version(program: str) -> str | None:
    if shutil.which(program) is None:
        return None
    done = subprocess.run(
        [program, _PROGRAMS[program]], capture_output=True, text=True, check=False, timeout=20
    )
    lines = (done.stdout or done.stderr).strip().splitlines()
    words = [word.strip(",") for word in lines[0].split()] if lines else []
    return next((word for word in words if word[:1].isdigit() or word[:2] == "v1"), "?")


def pytest_report_header() -> list[str]:
    found = {program: _version(program) for program in _PROGRAMS}
    present = ", ".join(f"{program} {version}" for program, version in found.items() if version)
    absent = ", ".join(program for program, version in found.items() if not version)
    return [
        f"layerstore: kernels {kernels.NAME} ({kernels.simd()}), Linux {platform.release()}, "
        f"{os.cpu_count()} CPUs, {'root' if _has_root() else 'no root'}",
        f"programs: {present or 'none'}; absent: {absent or 'none'}",
    ]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("client"):
        for program in mark.args:
            if shutil.which(program) is None:
                lacking(f"{program} is not installed")
    if item.get_closest_marker("root") is not None and not _has_root():
        lacking("this needs CAP_SYS_ADMIN")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("LAYERSTORE_") and name not in _KEPT:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _no_mount_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A mount that outlives its test keeps a store, loops and memory; the path says which test it was."""
    yield
    base = f"{tmp_path_factory.getbasetemp()}/"
    left = [entry.target for entry in read_mountinfo() if entry.target.startswith(base)]
    for target in reversed(left):
        subprocess.run(["umount", "--lazy", "--", target], check=False)
    assert not left, "tests left these mounts behind"
