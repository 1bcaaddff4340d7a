"""Arithmetic on what images share: which files are equal, how many hold a chunk, whose its bytes are. No I/O.

A chunk is known by a u64 key (its number in a store, or the head of its ID), a file by a u64 key over its chunks. Two
files of different chunks get the same key with a chance of 2^-64: good enough for reports, and never used to store anything.

Thread safety: pure functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Files", "distinct", "divide", "files_of"]

T = TypeVar("T", np.uint32, np.uint64)

_LENGTH, _PLACE = np.uint64(0x9FB21C651E98DF25), np.uint64(0x9E3779B97F4A7C15)  # odd
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Files(NamedTuple):
    """Files in their order.

    Attributes:
        keys: equal for equal contents.
        first: the first chunk of each in the list that it was made of.
        counts: how many chunks it has.
    """

    keys: npt.NDArray[np.uint64]
    first: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


def files_of(
    keys: npt.NDArray[np.uint64], lengths: npt.NDArray[np.uint32], sizes: npt.NDArray[np.uint64]
) -> Files:
    """Files whose contents, `sizes` bytes each, are these chunks, one file behind another.

    Holes have a key as other chunks do. What stands behind the last file belongs to none.

    Source: the mixing function is that of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014).
    """
    bounds = np.concatenate([[0], np.cumsum(lengths, dtype="i8")])
    ends = np.searchsorted(bounds, np.cumsum(sizes, dtype="i8"))
    used = int(ends[-1]) if len(ends) else 0
    keys, lengths = keys[:used], lengths[:used]
    first = np.concatenate([[0], ends])[:-1].astype("i8")
    counts = ends - first
    place = (np.arange(len(keys)) - np.repeat(first, counts)).astype("u8")
    words = _mixed(keys + lengths * _LENGTH + place * _PLACE)
    sums = np.concatenate([np.zeros(1, "u8"), np.cumsum(words, dtype="u8")])  # modulo 2^64
    return Files(_mixed(sums[ends] - sums[first] + sizes.astype("u8") * _LENGTH), first, counts)


def distinct(values: npt.NDArray[T]) -> npt.NDArray[T]:
    """The distinct values, ascending. As `np.unique`, which hashes integers since numpy 2.3: sorting is quicker here."""
    values = np.sort(values)
    is_first = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=is_first[1:])
    return values[is_first]


def divide(
    sizes: npt.NDArray[np.uint32],
    holders: npt.NDArray[np.uint32],
    before: npt.NDArray[np.uint32],
) -> int:
    """The share of one holder in chunks of these sizes: whole bytes, so that the shares of all add up to the sizes.

    Of a chunk each of `holders` gets the same, and the first of them a byte of the rest each; `before` says how many had
    their share before this one.
    """
    whole = sizes // holders
    return int(whole.sum(dtype="u8")) + int(np.count_nonzero(before < sizes - whole * holders))


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * _MIX[0]
    words = (words ^ (words >> np.uint64(27))) * _MIX[1]
    mixed: npt.NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return mixed
