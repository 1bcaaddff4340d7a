"""containerd's own SnapshotterSuite, bare against the service, and through a containerd that has it as a plugin.

The suite is Go and comes with Debian's containerd-dev; `snapshotter_suite/` is the test that calls it.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clients.servers import containerd, snapshotter, unmount_below
from tests.support.lacking import lacking

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.client("go"), pytest.mark.root, pytest.mark.slow]

_DEBIAN = Path("/usr/share/gocode")
_CASES = 21
_SKIPPED = 1  # Rename, always in 1.6


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program. Most of a minute to build, so once a run; Go's cache makes the next one quick."""
    if not (_DEBIAN / "src/github.com/containerd/containerd/snapshots/testsuite").is_dir():
        lacking("golang-github-containerd-containerd-dev is not installed")
    program = tmp_path_factory.mktemp("suite") / "suite.test"
    ours = Path(__file__).parent / "snapshotter_suite"
    environment = {"GO111MODULE": "off", "GOPATH": f"{ours}:{_DEBIAN}", "CGO_ENABLED": "0"}
    done = subprocess.run(
        ["go", "test", "-c", "-o", str(program), "snapshotter_suite"],
        env={**os.environ, **environment, "GOFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(autouse=True)
def _unmounted(tmp_path: Path) -> Iterator[None]:
    yield
    unmount_below(tmp_path)


def _run(suite: Path, address: Path, folder: Path) -> None:
    (folder / "tmp").mkdir()
    done = subprocess.run(
        [str(suite), "-test.v", "-test.root"],
        env={
            **os.environ,
            "SNAPSHOTTER_ADDRESS": str(address),
            "SNAPSHOTTER_NAME": "layerstore",
            "TMPDIR": str(folder / "tmp"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    results = re.findall(
        r"^    --- (PASS|SKIP|FAIL): TestSnapshotter/(\w+)", done.stdout, re.MULTILINE
    )
    failed = [name for result, name in results if result == "FAIL"]
    assert done.returncode == 0, f"{failed}\n{_without_unmounts(done.stdout)}\n{done.stderr}"
    passed = [name for result, name in results if result == "PASS"]
    assert (len(passed), len(results)) == (_CASES - _SKIPPED, _CASES), results


def _without_unmounts(log: str) -> str:
    """What the suite says, without a line for each of the 128 layers: those would hide what went wrong."""
    return "\n".join(line for line in log.splitlines() if ": unmount " not in line)[-8000:]


def test_the_suite_passes_bare(suite: Path, tmp_path: Path) -> None:
    with snapshotter(tmp_path / "store", tmp_path / "s.sock"):
        _run(suite, tmp_path / "s.sock", tmp_path)


@pytest.mark.client("containerd", "ctr")
def test_the_suite_passes_through_containerd(suite: Path, tmp_path: Path) -> None:
    socket = tmp_path / "s.sock"
    with snapshotter(tmp_path / "store", socket), containerd(tmp_path, socket):
        _run(suite, tmp_path / "c.sock", tmp_path)
