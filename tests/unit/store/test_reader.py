"""What a reader makes of places that are damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerstore.api import open_store
from layerstore.store.structure import check_structure
from tests.support.stores import sample_images, write_archive

if TYPE_CHECKING:
    from pathlib import Path


def test_a_length_that_reaches_over_the_next_frames_gives_no_wrong_bytes(tmp_path: Path) -> None:
    (image,) = sample_images(97, count=1, layer_size=200_000)
    with open_store(tmp_path / "store") as opened:
        opened.load(write_archive(tmp_path, image))
        store = opened.store
        with store.read() as txn:
            first, run = next(store.index.runs(txn))
        numbers = np.arange(first, first + len(run), dtype="u8")
        contents = store.reader.read(numbers)
        wrong = run.copy()
        wrong["encoded"][0] = 1 << 20  # longer than all that is read with it
        with store.write() as txn:
            store.index.move(txn, numbers, wrong)
        # A frame ends where it ends: what is wrong is the place, which `verify` compares with the journal.
        assert store.reader.read(numbers) == contents
        assert check_structure(store).needs_tables
