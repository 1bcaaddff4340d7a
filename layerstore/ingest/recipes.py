"""The recipe of a layer while it comes in: parts that are stored as soon as their chunks have numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerstore.formats.layertar import entries_of
from layerstore.formats.recipe import OP, Part, encode_part
from layerstore.store.catalog import Stretch
from layerstore.tree import EXTENT, HOLE, Entries, concat_entries

if TYPE_CHECKING:
    import numpy.typing as npt

    from layerstore.chunking import Cuts
    from layerstore.formats.tarsplit import Split
    from layerstore.limits import Limits
    from layerstore.store.session import WriteSession

__all__ = ["RecipeWriter"]

_PART_BYTES = 768 << 10  # about what a part and its literals hold
_HELD_BYTES = 16 << 20  # parts that wait for their chunk numbers


class RecipeWriter:
    """Collects what `cut_tar` finds into parts, and stores a part as soon as its chunks have numbers."""

    def __init__(self, session: WriteSession) -> None:
        self._session = session
        self._literals: list[bytes] = []
        self._ops: list[npt.NDArray[np.void]] = []
        self._extents: list[npt.NDArray[np.void]] = []
        self._entries: list[Entries] = []
        self._weight = 0
        self._open_literal = 0  # literal bytes that belong to the next op
        self._held: list[
            tuple[npt.NDArray[np.uint64], Part]
        ] = []  # parts, with their literals' numbers
        self._held_bytes = 0
        self._stored: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]] = []
        self.entries = 0
        self.chunks = 0

    def add(self, split: Split, cuts: Cuts, numbers: npt.NDArray[np.uint64]) -> None:
        """Add what one buffer held, whose chunks got these numbers or promises."""
        ops = np.empty(len(cuts.counts), OP)
        ops["literal"] = split.literal_lengths
        ops["extents"] = cuts.counts
        if len(ops):
            ops["literal"][0] += self._open_literal
            self._open_literal = 0
        self._open_literal += split.tail_literal
        extents = np.empty(len(numbers), EXTENT)
        extents["number"], extents["length"] = numbers, cuts.lengths
        entries = entries_of(split.members)
        _check_paths(entries, self._session.limits)
        self._literals.append(split.literals)
        self._ops.append(ops)
        self._extents.append(extents)
        self._entries.append(entries)
        self.entries += len(entries)
        self.chunks += int(np.count_nonzero(numbers != HOLE))
        self._weight += len(split.literals) + ops.nbytes + extents.nbytes + entries.rows.nbytes
        self._weight += len(entries.paths) + len(entries.links) + len(entries.extras)
        if self._weight >= _PART_BYTES:
            self._close_part()
        if self._session.group_is_full or self._held_bytes >= _HELD_BYTES:
            self._session.flush()
            self._store_held()

    def flush(self) -> None:
        """Close the last part, and hand all parts to the session, which still has to flush them."""
        self._close_part()
        self._session.flush()
        self._store_held()

    def stretches(self) -> tuple[Stretch, ...]:
        """All stretches, once the session has flushed what `flush` gave it."""
        number = self._session.numbers_of
        return tuple(
            Stretch(tuple(number(literals).tolist()), tuple(number(part).tolist()))
            for literals, part in self._stored
        )

    def _close_part(self) -> None:
        if not self._literals:
            return
        if self._open_literal:
            self._ops.append(np.array([(self._open_literal, 0)], OP))
            self._open_literal = 0
        part = Part(
            np.concatenate(self._ops), np.concatenate(self._extents), concat_entries(self._entries)
        )
        if part.length:
            self._held.append((self._session.put_bytes(b"".join(self._literals)), part))
            self._held_bytes += self._weight
        self._literals, self._ops, self._extents, self._entries, self._weight = [], [], [], [], 0

    def _store_held(self) -> None:
        for literals, part in self._held:
            part.extents["number"] = self._session.numbers_of(part.extents["number"])
            self._stored.append((literals, self._session.put_bytes(encode_part(part))))
        self._held, self._held_bytes = [], 0


def _check_paths(entries: Entries, limits: Limits) -> None:
    """No path is longer, or has more components, than the limits allow."""
    lengths = entries.rows["path"].astype("i8")
    if not len(lengths):
        return
    slashes = np.frombuffer(entries.paths, "u1") == ord("/")
    before = np.concatenate([[0], np.cumsum(slashes)])
    ends = np.cumsum(lengths)
    depths = np.where(lengths > 0, before[ends] - before[ends - lengths] + 1, 0)
    for name, values in (("path_bytes", lengths), ("depth", depths)):
        worst = int(np.argmax(values))
        path = entries.paths[int(ends[worst] - lengths[worst]) : int(ends[worst])]
        shown = path[:200].decode("utf-8", "backslashreplace")
        limits.check(name, int(values[worst]), entry=shown)
