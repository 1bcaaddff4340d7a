"""Which images share how much: arithmetic on sorted chunk lists. No I/O.

    all lists > distinct chunks, numbered > each image a list of numbers > holders, shares, pairs

Chunks with the same set of holders are one *group*: pairs are counted group by group, which is what makes a thousand images
quick. A set of holders is known by a sum of random words, one for each image (a collision has a chance of 2^-64 a pair).

    group held by few:   each pair of its holders gets its bytes
    group held by many:  a column of a matrix B of 0 and 1; pairs are B · diag(bytes) · Bᵀ, a block of columns at a time

Sums are of integers below 2^53 in float64, and so exact.

Thread safety: pure functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore.analysis.numbering import Stacks, number, number_values
from layerstore.sharing import divide

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from layerstore.analysis.layer import CutLayer

__all__ = ["Comparison", "Groups", "compare", "groups_of", "pair_matrix"]

_FEW = 48  # holders; measured: from about here on the product is quicker than the pairs
_BLOCK = 2048  # columns of B at once


# What is known of a chunk, side by side, so that one access to memory fetches it. `taken` are shares that were given out.
_FACTS = np.dtype([("length", "u4"), ("encoded", "u4"), ("holders", "u4"), ("taken", "u4")])


class Groups(NamedTuple):
    """Chunks that at least two sets hold, by their holders. One row of `sets` and `group` for each membership.

    Attributes:
        weights: encoded bytes of each group.
        lengths: plain bytes of each group.
        sets: holders, ascending within a group.
        starts: where each group begins in `sets`; and their number at the end.
    """

    weights: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    sets: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]


class Comparison(NamedTuple):
    """What came out. All in bytes; arrays have a value for each image unless it says otherwise.

    Attributes:
        chunk_count: distinct chunks of the set.
        files: of all distinct files.
        chunks: of all distinct chunks, as they are.
        compressed: of all distinct chunks, as frames.
        counts: distinct chunks of each image.
        image_files, image_chunks, stored: the same three of each image, as if it were alone.
        alone: of `stored`, what no other image holds.
        share: of `stored`, each chunk divided by its holders; the shares add up to `compressed`.
        groups: what is shared, by holders.
        pairs: encoded bytes that two images share; a matrix, with `stored` in its diagonal.
        repeated: of each image (layer, bytes of its files that layers below it have as well), bottom to top.
        numbered: the chunks of each layer as numbers, for `groups_of`; and the encoded bytes by number.
        encoded: by chunk number.
    """

    chunk_count: int
    files: int
    chunks: int
    compressed: int
    counts: npt.NDArray[np.int64]
    image_files: npt.NDArray[np.int64]
    image_chunks: npt.NDArray[np.int64]
    stored: npt.NDArray[np.int64]
    alone: npt.NDArray[np.int64]
    share: npt.NDArray[np.int64]
    groups: Groups
    pairs: npt.NDArray[np.int64]
    repeated: list[list[tuple[int, int]]]
    numbered: list[npt.NDArray[np.uint32]]
    encoded: npt.NDArray[np.uint32]


class _Files(NamedTuple):
    """Bytes of distinct files, of the set and of each image; and those of files that a layer has again."""

    total: int
    images: npt.NDArray[np.int64]
    repeated: list[list[tuple[int, int]]]


def compare(layers: Sequence[CutLayer], stacks: Sequence[Sequence[int]]) -> Comparison:
    """Compare images, each a stack of positions in `layers`.

    Memory beside the lists: 36 bytes for each distinct chunk, 4 for each chunk of a layer and 4 for each of an image.
    """
    files = _files(layers, stacks)  # first, as it gives its memory back
    numbered = number([layer.chunks for layer in layers])
    facts = np.zeros(numbered.total, _FACTS)
    for layer, numbers in zip(layers, numbered.lists, strict=True):
        facts["length"][numbers], facts["encoded"][numbers] = layer.lengths, layer.encoded
    walks = Stacks(numbered)
    images = []
    for stack in stacks:
        fresh = [numbered.lists[at][is_new] for at, is_new in walks.walk(stack)]
        images.append(np.concatenate([np.empty(0, "u4"), *fresh]))
        facts["holders"][images[-1]] += 1
    del walks
    rows = np.zeros((5, len(images)), "i8")  # counts, chunks, stored, alone, share
    for position, mine in enumerate(images):
        found = facts.take(mine)
        sizes, is_alone = found["encoded"], found["holders"] == 1
        rows[0, position] = len(mine)
        rows[1, position] = found["length"].sum(dtype="u8")
        rows[2, position] = sizes.sum(dtype="u8")
        rows[3, position] = sizes.sum(dtype="u8", where=is_alone)
        rows[4, position] = divide(sizes, found["holders"], found["taken"])
        facts["taken"][mine] = found["taken"] + np.uint32(1)
    lengths, encoded, holders = (facts[name].copy() for name in ("length", "encoded", "holders"))
    del facts
    groups = groups_of(images, holders, encoded, lengths)
    pairs = pair_matrix(groups, len(images))
    np.fill_diagonal(pairs, rows[2])
    used = holders > 0
    return Comparison(
        int(np.count_nonzero(used)),
        files.total,
        int(lengths[used].sum(dtype="u8")),
        int(encoded[used].sum(dtype="u8")),
        rows[0],
        files.images,
        rows[1],
        rows[2],
        rows[3],
        rows[4],
        groups,
        pairs,
        files.repeated,
        numbered.lists,
        encoded,
    )


def groups_of(
    sets: Sequence[npt.NDArray[np.uint32]],
    holders: npt.NDArray[np.uint32],
    encoded: npt.NDArray[np.uint32],
    lengths: npt.NDArray[np.uint32],
) -> Groups:
    """Group what at least two of these sets of chunk numbers hold."""
    words = np.random.default_rng(0).integers(0, 1 << 64, len(sets), "u8")
    marks = np.zeros(len(holders), "u8")
    for word, mine in zip(words, sets, strict=True):
        marks[mine] += word
    shared = np.flatnonzero(holders > 1)
    found_marks, group = number_values(marks[shared])
    del marks
    count = len(found_marks)
    weights = np.bincount(group, encoded[shared], count).astype("i8")
    plain = np.bincount(group, lengths[shared], count).astype("i8")
    of_chunk = np.full(len(holders), -1, "i4")
    stands_for = np.empty(count, "i8")
    stands_for[group] = shared  # one chunk of each group, whichever comes last
    of_chunk[stands_for] = np.arange(count, dtype="i4")
    found = []
    for mine in sets:
        groups = of_chunk[mine]
        found.append(groups[groups >= 0])
    members = np.repeat(np.arange(len(sets), dtype="u8"), [len(one) for one in found])
    of_member = np.concatenate([np.empty(0, "i4"), *found])
    starts = np.concatenate([[0], np.cumsum(np.bincount(of_member, minlength=count))])
    # Both in one word: sorting words is much quicker than finding an order.
    ordered = np.sort(of_member.astype("u8") << np.uint64(32) | members)
    return Groups(weights, plain, ordered.astype("u4").astype("i4"), starts)


def pair_matrix(groups: Groups, count: int) -> npt.NDArray[np.int64]:
    """Encoded bytes that each two of `count` sets share; symmetric, with zeros in the diagonal."""
    total = np.zeros(count * count)
    sizes = np.diff(groups.starts)
    for size in np.unique(sizes[sizes < _FEW]).tolist():
        rows = np.flatnonzero(sizes == size)
        sets = groups.sets[groups.starts[rows][:, None] + np.arange(size)].astype("i8")
        weights = groups.weights[rows].astype("f8")
        for a in range(size):
            for b in range(a + 1, size):  # sets are ascending: this fills the upper half
                np.add.at(total, sets[:, a] * count + sets[:, b], weights)
    matrix = total.reshape(count, count)
    matrix += matrix.T
    many = np.flatnonzero(sizes >= _FEW)
    for at in range(0, len(many), _BLOCK):
        rows = many[at : at + _BLOCK]
        block = np.zeros((count, len(rows)))
        columns = np.repeat(np.arange(len(rows)), sizes[rows])
        block[_members(groups, rows), columns] = 1
        matrix += (block * groups.weights[rows]) @ block.T
    np.fill_diagonal(matrix, 0)
    return matrix.astype("i8")


def _members(groups: Groups, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """The sets of these groups, one group behind another."""
    sizes = np.diff(groups.starts)[rows]
    shifts = groups.starts[rows] - (np.cumsum(sizes) - sizes)
    members: npt.NDArray[np.int32] = groups.sets[np.repeat(shifts, sizes) + np.arange(sizes.sum())]
    return members


def _files(layers: Sequence[CutLayer], stacks: Sequence[Sequence[int]]) -> _Files:
    numbered = number([layer.files for layer in layers])
    walks = Stacks(numbered)
    used = sorted({position for stack in stacks for position in stack})
    total = sum(int(layers[at].sizes[new].sum(dtype="u8")) for at, new in walks.walk(used))
    images = np.zeros(len(stacks), "i8")
    repeated: list[list[tuple[int, int]]] = []
    for image, stack in enumerate(stacks):
        again = []
        for position, is_new in walks.walk(stack):
            fresh = int(layers[position].sizes[is_new].sum(dtype="u8"))
            images[image] += fresh
            again.append((position, int(layers[position].sizes.sum(dtype="u8")) - fresh))
        repeated.append(again)
    return _Files(total, images, repeated)
