"""Files of a directory that are read one after another are read ahead, and nothing else is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from layerstore.errors import CorruptStore
from layerstore.merge import merge
from layerstore.mount.siblings import SiblingReader
from layerstore.view import View
from tests.support.trees import directory, file, layer_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

SIZE = 40_000
FILES = 100
STRANGER = 1000  # chunk of the file in another directory


class _Chunks:
    """Remembers what was asked for; chunk 70 is damaged."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def read(self, numbers: npt.NDArray[np.uint64], /) -> Sequence[bytes]:
        self.asked += numbers.tolist()
        if 70 in numbers:
            raise CorruptStore("damaged")
        return [bytes(SIZE)] * len(numbers)


@pytest.fixture
def chunks() -> _Chunks:
    return _Chunks()


@pytest.fixture
def view(chunks: _Chunks) -> View:
    items = [directory(b"d"), directory(b"e"), file(b"e/z", (STRANGER, SIZE))]
    items += [file(b"d/%03d" % number, (number, SIZE)) for number in range(FILES)]
    return View(merge([layer_of(*items)]), chunks)


def _inodes(view: View) -> list[int]:
    return [view.resolve(f"d/{number:03}") for number in range(FILES)]


def test_a_sequence_reads_each_chunk_once_and_stays_in_its_directory(
    view: View, chunks: _Chunks
) -> None:
    reader = SiblingReader(view)
    for inode in _inodes(view):
        reader.before_read(inode, 0, SIZE)
    # The first file is no sequence yet.
    assert chunks.asked == list(range(1, FILES))


def test_what_is_read_is_there_before_it_is_asked_for(view: View, chunks: _Chunks) -> None:
    reader = SiblingReader(view)
    calls = 0
    for number, inode in enumerate(_inodes(view)):
        before = len(chunks.asked)
        reader.before_read(inode, 0, SIZE)
        calls += len(chunks.asked) > before
        assert number == 0 or number in chunks.asked
    assert calls < FILES // 8


def test_scattered_reads_read_nothing_ahead(view: View, chunks: _Chunks) -> None:
    reader = SiblingReader(view)
    for number in range(0, FILES, 37):
        reader.before_read(_inodes(view)[number], 0, SIZE)
    reader = SiblingReader(view)
    for inode in reversed(_inodes(view)):
        reader.before_read(inode, 0, SIZE)
    assert chunks.asked == []


def test_a_read_in_the_middle_of_a_file_is_none_of_a_sequence(view: View, chunks: _Chunks) -> None:
    reader = SiblingReader(view)
    for inode in _inodes(view):
        reader.before_read(inode, 0, SIZE // 2)
    assert chunks.asked == []


def test_two_readers_at_once_are_two_sequences(view: View, chunks: _Chunks) -> None:
    reader = SiblingReader(view)
    inodes = _inodes(view)
    for one, other in zip(inodes[:50], inodes[50:], strict=True):
        reader.before_read(one, 0, SIZE)
        reader.before_read(other, 0, SIZE)
    assert set(chunks.asked) >= {*range(1, 50), *range(51, FILES)}


def test_damage_ahead_is_left_to_who_reads_it(view: View, chunks: _Chunks) -> None:
    reader = SiblingReader(view)
    for inode in _inodes(view):
        reader.before_read(inode, 0, SIZE)
    assert 70 in chunks.asked
