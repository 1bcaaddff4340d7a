"""An order in which similar things stand side by side: the leaves of a hierarchical clustering. No I/O.

Average linkage by the chain of nearest neighbours: n vector operations of length n for each merge, so that a thousand are
a second.

Source: F. Murtagh, "A Survey of Recent Advances in Hierarchical Clustering Algorithms", The Computer Journal 26(4), 1983.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["similar_side_by_side"]


def similar_side_by_side(similarity: npt.NDArray[np.float64]) -> list[int]:
    """The rows of a symmetric matrix in such an order; each once."""
    count = len(similarity)
    near = similarity.astype("f8", copy=True)
    np.fill_diagonal(near, -1)
    sizes = np.ones(count)
    members = [[row] for row in range(count)]
    alive = np.ones(count, np.bool_)
    chain: list[int] = []
    for _ in range(count - 1):
        if not chain:
            chain.append(int(np.argmax(alive)))
        while True:
            last = chain[-1]
            best = int(np.argmax(near[last]))
            # The one before wins a tie, so that the chain ends.
            if len(chain) > 1 and near[last, chain[-2]] >= near[last, best]:
                best = chain[-2]
                break
            chain.append(best)
        del chain[-2:]
        _merge(near, sizes, alive, last, best)
        members[last] = _joined(members[last], members[best], similarity)
        members[best] = []
    return max(members, key=len, default=[])


def _merge(
    near: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.float64],
    alive: npt.NDArray[np.bool_],
    kept: int,
    gone: int,
) -> None:
    """Make two clusters one, whose similarity to the others is the average over its members."""
    total = sizes[kept] + sizes[gone]
    row = (near[kept] * sizes[kept] + near[gone] * sizes[gone]) / total
    near[kept, :] = near[:, kept] = row
    near[gone, :] = near[:, gone] = -1
    near[kept, kept] = -1
    alive[gone] = False
    near[kept, ~alive] = near[~alive, kept] = -1
    sizes[kept] = total


def _joined(first: list[int], second: list[int], similarity: npt.NDArray[np.float64]) -> list[int]:
    """Two runs of leaves, each turned so that the ends that meet are most similar."""
    ways = [(a, b) for a in (first, first[::-1]) for b in (second, second[::-1])]
    best = max(ways, key=lambda way: similarity[way[0][-1], way[1][0]])
    return best[0] + best[1]
