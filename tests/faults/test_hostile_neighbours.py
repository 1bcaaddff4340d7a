"""A process that swaps names for symbolic links while a checkout or a commit runs: nothing outside is changed or read.

Each race is also run against code that follows links, to show that it would be seen.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from layerstore.errors import FailedPrecondition
from layerstore.merge import merge
from layerstore.mount import checkout, upper
from layerstore.mount.checkout import check_out, remove_contents
from layerstore.mount.upper import RootAttributes, iter_upper_tar
from layerstore.store import files
from layerstore.view import View
from tests.support.trees import directory, fifo, file, layer_of, symlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

SECONDS = 3.0  # that an attacker has at least, and until he was once in the way
PATIENCE = 60.0  # for what depends on how processes are scheduled
SECRET = b"the host's own secret"
FOLDERS = [f"folder{n}" for n in range(4)]
LEAVES = [f"leaf{n}" for n in range(4)]

# Exchanges TARGET/name with a link, over and over; a link that is gone is made again.
_SWAPPER = """
import ctypes, os, shutil, sys
from contextlib import suppress
target, links, outside, *names = map(os.fsencode, sys.argv[1:])
libc = ctypes.CDLL(None)
print("ready", flush=True)
while os.getppid() == int(os.environ["PARENT"]):
    for name in names:
        link = links + b"/" + name
        leads = outside if name.startswith(b"folder") else outside + b"/secret"
        if not os.path.islink(link):
            with suppress(OSError):
                shutil.rmtree(link) if os.path.isdir(link) else os.unlink(link)
            with suppress(OSError):
                os.symlink(leads, link)
        for _ in range(2):  # there and back
            libc.renameat2(-100, target + b"/" + name, -100, link, 2)
"""


@contextmanager
def _swapping(tmp_path: Path, target: Path, names: Sequence[str]) -> Iterator[None]:
    """While the block runs, the names below `target` become links to what is outside, and back."""
    (tmp_path / "links").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", _SWAPPER, target, tmp_path / "links", tmp_path / "outside", *names],
        env={**os.environ, "PARENT": str(os.getpid())},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that nobody has any business in."""
    folder = tmp_path / "outside"
    (folder / "below").mkdir(parents=True)
    (folder / "secret").write_bytes(SECRET)
    (folder / "below" / "secret").write_bytes(SECRET)
    return folder


def _state(folder: Path) -> dict[str, tuple[object, ...]]:
    state: dict[str, tuple[object, ...]] = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        status = path.lstat()
        numbers = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_size)
        state[str(path)] = (*numbers, os.listxattr(path), path.is_file() and path.read_bytes())
    return state


class _Invented:
    def read(self, numbers: npt.NDArray[np.uint64], /) -> Sequence[bytes]:
        return [bytes([number % 256]) * 100 for number in numbers.tolist()]


def _view() -> View:
    items = [directory(b"")]
    for name in map(str.encode, FOLDERS):
        items += [directory(name, 0o711), directory(name + b"/below", 0o711)]
        items += [file(name + b"/below/%d" % n, (n, 100)) for n in range(5)]
        items += [symlink(name + b"/out", b"../../outside"), file(name + b"/secret", (9, 100))]
    return View(
        merge([layer_of(*items, *(fifo(name.encode(), 0o600) for name in LEAVES))]), _Invented()
    )


def _is_enough(failed: int, passed: float) -> bool:
    return failed > 0 and passed >= SECONDS


def _checkouts(target: Path, is_over: Callable[[int, float], bool]) -> int:
    """Check out and remove, over and over; how often the attacker got in the way."""
    view, failed, begin = _view(), 0, time.monotonic()
    while (passed := time.monotonic() - begin) < PATIENCE and not is_over(failed, passed):
        for step in (partial(check_out, view), remove_contents):
            try:
                step(target)
            except OSError:
                failed += 1
    return failed


def test_a_checkout_is_not_led_outside(tmp_path: Path, outside: Path) -> None:
    target, before = tmp_path / "target", _state(outside)
    target.mkdir()
    with _swapping(tmp_path, target, [*FOLDERS, *LEAVES]):
        failed = _checkouts(target, _is_enough)
    assert _state(outside) == before
    assert failed, "the attacker was never in the way"


@pytest.mark.parametrize("weakness", ["directories", "modes"])
def test_a_checkout_that_follows_links_would_be_seen(
    tmp_path: Path, outside: Path, weakness: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weakness == "directories":
        monkeypatch.setattr(checkout, "_OPEN_DIRECTORY", os.O_RDONLY | os.O_DIRECTORY)
    else:
        monkeypatch.setattr(files, "change_mode", os.chmod)
    target, before = tmp_path / "target", _state(outside)
    target.mkdir()
    with _swapping(tmp_path, target, FOLDERS if weakness == "directories" else LEAVES):
        _checkouts(target, lambda *_: _state(outside) != before)
    assert _state(outside) != before


def _fill(folder: Path) -> None:
    folder.mkdir()
    for name in FOLDERS:
        (folder / name / "below").mkdir(parents=True)
        for n in range(5):
            (folder / name / "below" / str(n)).write_bytes(bytes(100))
        (folder / name / "secret").write_bytes(bytes(len(SECRET)))
    for name in LEAVES:
        (folder / name).write_bytes(bytes(len(SECRET)))


def _never() -> Path:
    raise AssertionError("nothing was renamed by an overlay")


def _commits(folder: Path, is_over: Callable[[int, float], bool]) -> tuple[bool, int]:
    """Read the directory as a commit does, over and over: whether the secret came out, and how many were refused."""
    failed, begin = 0, time.monotonic()
    while (passed := time.monotonic() - begin) < PATIENCE and not is_over(failed, passed):
        seen = b""
        try:
            for block in iter_upper_tar(folder, RootAttributes.implied(), _never):
                seen += block
        except (OSError, FailedPrecondition):
            failed += 1
        if SECRET in seen:
            return True, failed
    return False, failed


def test_a_commit_is_not_led_outside(tmp_path: Path, outside: Path) -> None:
    folder, before = tmp_path / "upper", _state(outside)
    _fill(folder)
    with _swapping(tmp_path, folder, [*FOLDERS, *LEAVES]):
        is_read, failed = _commits(folder, _is_enough)
    assert not is_read
    assert _state(outside) == before
    assert failed, "the attacker was never in the way"


@pytest.mark.parametrize("weakness", ["directories", "files"])
def test_a_commit_that_follows_links_would_be_seen(
    tmp_path: Path, outside: Path, weakness: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    del outside
    if weakness == "directories":
        monkeypatch.setattr(upper, "_DIRECTORY", os.O_RDONLY | os.O_DIRECTORY)
    else:

        def follow(name: str, *, dir_fd: int) -> int:
            return os.open(name, os.O_RDONLY, dir_fd=dir_fd)

        monkeypatch.setattr(files, "open_regular", follow)
    folder = tmp_path / "upper"
    _fill(folder)
    with _swapping(tmp_path, folder, FOLDERS if weakness == "directories" else LEAVES):
        is_read, _ = _commits(folder, lambda *_: False)
    assert is_read
