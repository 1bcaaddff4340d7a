"""Random work on files of a folder, beside a model of plain bytes that says what each read must give."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from pathlib import Path

__all__ = ["Stress"]

_LARGEST = 600_000  # bytes of a file
_STRETCH = 70_000  # bytes of one read or write


class Stress:
    """Files that are read and changed at random places; every read is compared at once."""

    def __init__(self, top: Path, files: dict[str, bytes], choice: random.Random) -> None:
        self._top, self._choice = top, choice
        self._model = {name: bytearray(data) for name, data in files.items()}
        self._done: list[str] = []
        self._next = len(files)

    def step(self) -> None:
        """Do one thing. Raises: AssertionError: a read gave something else; what was done last is in it."""
        name = self._choice.choice(sorted(self._model))
        steps = (
            self._read, self._read, self._write, self._write, self._write_mapped, self._read_mapped,
            self._truncate, self._append, self._punch, self._rename, self._replace,
        )  # fmt: skip
        step = self._choice.choice(steps)
        self._done.append(f"{step.__name__} {name}")
        step(name)

    def compare(self) -> None:
        """Compare all files, whole. Raises: AssertionError."""
        assert sorted(path.name for path in self._top.iterdir()) == sorted(self._model)
        for name, data in self._model.items():
            self._check(name, 0, len(data) + 1, (self._top / name).read_bytes())

    def _check(self, name: str, offset: int, size: int, got: bytes) -> None:
        want = bytes(self._model[name][offset : offset + size])
        if got != want:
            at = next(
                (i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b),
                min(len(got), len(want)),
            )
            raise AssertionError(
                f"{name}: other bytes from {offset + at} on; {len(got)} bytes for {len(want)}; "
                f"done last: {', '.join(self._done[-20:])}"
            )

    def _stretch(self, name: str) -> tuple[int, int]:
        offset = self._choice.randrange(len(self._model[name]) + 1)
        return offset, self._choice.randrange(1, _STRETCH)

    def _read(self, name: str) -> None:
        offset, size = self._stretch(name)
        with (self._top / name).open("rb", buffering=0) as file:
            self._check(name, offset, size, os.pread(file.fileno(), size, offset))

    def _write(self, name: str) -> None:
        self._put(name, *self._stretch(name))

    def _append(self, name: str) -> None:
        if len(self._model[name]) < _LARGEST:
            # Behind the end: the gap is zeros.
            gap = self._choice.choice((0, 0, 1, 5000))
            self._put(name, len(self._model[name]) + gap, self._choice.randrange(1, _STRETCH))

    def _put(self, name: str, offset: int, size: int) -> None:
        data = self._choice.randbytes(size)
        with (self._top / name).open("r+b", buffering=0) as file:
            assert os.pwrite(file.fileno(), data, offset) == size
        model = self._model[name]
        model.extend(bytes(max(offset - len(model), 0)))
        model[offset : offset + size] = data

    def _write_mapped(self, name: str) -> None:
        model = self._model[name]
        offset, size = self._stretch(name)
        size = min(size, len(model) - offset)
        if size <= 0:
            return
        data = self._choice.randbytes(size)
        with (self._top / name).open("r+b") as file, mmap.mmap(file.fileno(), 0) as window:
            window[offset : offset + size] = data
        model[offset : offset + size] = data

    def _read_mapped(self, name: str) -> None:
        if not self._model[name]:
            return
        offset, size = self._stretch(name)
        with (
            (self._top / name).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as window,
        ):
            self._check(name, offset, size, window[offset : offset + size])

    def _truncate(self, name: str) -> None:
        model = self._model[name]
        size = self._choice.randrange(min(len(model) * 5 // 4, _LARGEST) + 1)
        os.truncate(self._top / name, size)
        model.extend(bytes(max(size - len(model), 0)))
        del model[size:]

    def _punch(self, name: str) -> None:
        """Zeros over a stretch, as whole pages and as parts of some."""
        offset, size = self._stretch(name)
        size = min(size, len(self._model[name]) - offset)
        if size > 0:
            with (self._top / name).open("r+b", buffering=0) as file:
                assert os.pwrite(file.fileno(), bytes(size), offset) == size
            self._model[name][offset : offset + size] = bytes(size)

    def _rename(self, name: str) -> None:
        other = f"file{self._next}"
        self._next += 1
        (self._top / name).rename(self._top / other)
        self._model[other] = self._model.pop(name)

    def _replace(self, name: str) -> None:
        """A new file in place of one, as editors write."""
        data = self._choice.randbytes(self._choice.randrange(_STRETCH))
        (self._top / "aside").write_bytes(data)
        (self._top / "aside").replace(self._top / name)
        self._model[name] = bytearray(data)
