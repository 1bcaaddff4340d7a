from __future__ import annotations

import io
import os
import sys
import threading
from typing import TYPE_CHECKING

import click
import pytest

from layerstore.cli import signals
from layerstore.cli.inputs import STDIN, StandardInput, label_of, open_source

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _fresh_wake_pipe() -> None:
    signals._wake_pipe.cache_clear()


def test_short_writes_are_joined_up_to_the_asked_size() -> None:
    read_end, write_end = os.pipe()

    def write() -> None:
        for _ in range(50):
            os.write(write_end, b"ab")
        os.close(write_end)

    writer = threading.Thread(target=write)
    writer.start()
    stream = StandardInput(read_end)
    assert stream.read(33) == b"ab" * 16 + b"a"
    assert stream.read(1000) == b"b" + b"ab" * 33
    assert stream.read(1) == b""
    writer.join()
    os.close(read_end)


def test_a_signal_wakes_a_reader_that_waits() -> None:
    read_end, write_end = os.pipe()
    stream = StandardInput(read_end)
    os.write(signals._wake_pipe()[1], b"!")
    with pytest.raises(InterruptedError):
        stream.read(1)
    os.close(read_end)
    os.close(write_end)


def test_a_missing_path_is_said_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "missing")
    assert open_source(tmp_path) == tmp_path


def test_a_regular_file_on_standard_input_is_read_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with (tmp_path / "x").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert open_source(STDIN) is file.buffer
    assert label_of(STDIN) == "standard input"
    assert label_of(tmp_path) == str(tmp_path)


def test_a_terminal_is_no_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Terminal()))
    with pytest.raises(click.UsageError, match="terminal"):
        open_source(STDIN)
