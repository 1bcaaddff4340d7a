"""Stopped at any moment, the command ends in order: the right code, no traceback, a whole store, nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

import layerstore
from tests.support.archive_builders import Image, docker_archive_of, layer_tar
from tests.support.cli_images import noise, start, write_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_DEADLINE_S = 60.0
_BIG = 48_000_000  # bytes that take the store much longer than a signal takes to arrive


@pytest.fixture(scope="module")
def big_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image: a small layer, and one that takes a while."""
    layers = [
        layer_tar({"a": b"small"}),
        layer_tar({f"f{n}": noise(_BIG // 8, n) for n in range(8)}),
    ]
    path = tmp_path_factory.mktemp("big") / "big.tar"
    path.write_bytes(docker_archive_of([Image.of(layers, "example/big:1")]))
    return path


def _wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + _DEADLINE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.002)  # of another process, there is nothing else to wait for


def _end(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=_DEADLINE_S)
    return process.returncode, out, err


def _assert_whole_and_tidy(root: Path) -> None:
    assert list((root / "tmp").iterdir()) == []
    with layerstore.open(root, create=False) as store:
        assert store.verify().damages == ()
        with store.store.read() as txn:
            assert not list(store.store.database.items(txn, "sessions"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_load_that_is_stopped_leaves_a_store_that_goes_on(
    number: signal.Signals, big_archive: Path, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    process = start(root, "load", big_archive)
    # The lock of a session appears when the first chunks are written.
    _wait_until(lambda: len(list(root.glob("tmp/session-*.lock"))) > 0, process)
    process.send_signal(number)
    code, out, err = _end(process)
    assert code == 128 + number
    assert out == b""
    assert b"Traceback" not in err
    assert b"Exception" not in err
    _assert_whole_and_tidy(root)
    process = start(root, "load", big_archive)
    code, out, err = _end(process)
    assert code == 0
    assert out.startswith(b"Loaded image: example/big:1\n")
    _assert_whole_and_tidy(root)


@pytest.mark.parametrize("line", [["load"], ["import", "-", "app"]], ids=lambda line: line[0])
def test_waiting_for_a_pipe_that_says_nothing_can_be_stopped(
    line: list[str], big_archive: Path, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    process = start(root, *line, stdin=subprocess.PIPE)
    assert process.stdin is not None
    with big_archive.open("rb") as file:
        process.stdin.write(file.read(1_000_000))
        process.stdin.flush()
    _wait_until((root / "FORMAT").exists, process)
    process.send_signal(signal.SIGINT)
    # The pipe stays open: the writer is no help.
    code = process.wait(_DEADLINE_S)
    process.stdin.close()
    process.stdin = None
    _, out, err = _end(process)
    assert (code, out) == (130, b"")
    assert b"Traceback" not in err
    assert b"Exception" not in err
    _assert_whole_and_tidy(root)


def test_a_save_that_is_stopped_leaves_no_file(big_archive: Path, tmp_path: Path) -> None:
    root, folder = tmp_path / "store", tmp_path / "out"
    folder.mkdir()
    with layerstore.open(root) as store:
        store.load(big_archive)
    process = start(root, "save", "example/big:1", "-o", folder / "copy.tar")
    _wait_until(lambda: any(path.stat().st_size > 0 for path in folder.iterdir()), process)
    process.send_signal(signal.SIGTERM)
    code, _, err = _end(process)
    assert code == 143
    assert b"Traceback" not in err
    assert list(folder.iterdir()) == []
    _assert_whole_and_tidy(root)


@pytest.mark.parametrize("line", [["save", "-q", "example/big:1"], ["inspect", "example/big:1"]])
def test_a_reader_that_goes_away_is_no_error(
    line: list[str], big_archive: Path, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    with layerstore.open(root) as store:
        store.load(big_archive)
    process = start(root, *line)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, _, err = _end(process)
    assert process.returncode == 141
    assert err == b""


def test_an_archive_comes_through_a_pipe_and_from_a_redirected_file(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "app.tar", 1)
    piped = start(tmp_path / "a", "load", "-q", stdin=subprocess.PIPE)
    out, _ = piped.communicate(archive.read_bytes(), _DEADLINE_S)
    assert (piped.returncode, out) == (0, b"Loaded image: example/app:1\n")
    with archive.open("rb") as file:
        code, out, _ = _end(start(tmp_path / "b", "load", "-q", "-", stdin=file))
    assert (code, out) == (0, b"Loaded image: example/app:1\n")
