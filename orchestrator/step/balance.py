"""Split numbered items into parts of nearly equal total cost, in the driver.

Numbers in, indices out. The module knows neither ranks nor tokens.
"""

import bisect
import heapq
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
FEW_PARTS = 32  # up to so many are inserted into a sorted list one by one, more are sorted
_Part: TypeAlias = tuple[float, int, int]  # cost, first and last index of a chain


def balance(costs: npt.ArrayLike, num_parts: int) -> list[Rows]:
    """Split indices into parts of nearly equal total cost (Karmarkar-Karp differencing).

    The two partial partitions with the largest spread are merged heaviest part against lightest,
    until one is left. Deterministic: ties are broken by index.

    Args:
        costs: [S] non-negative.
        num_parts: how many parts; more parts than sequences leave some empty.

    Returns:
        `num_parts` sorted index arrays that together hold 0..S-1 once.
    """
    cost = np.asarray(costs, dtype=np.float64)  # [S]
    if num_parts < 1:
        raise ValueError(f"num_parts={num_parts}: at least one part is needed")
    if num_parts == 1 or len(cost) == 0:
        whole = np.arange(len(cost), dtype=np.int64)
        return [whole] + [np.empty(0, np.int64) for _ in range(num_parts - 1)]
    successor = [-1] * len(cost)  # chains of indices: joining two parts is O(1)
    # A partial partition is (-spread, order, parts): its occupied parts (cost, first index, last
    # index), lightest first. Empty parts are not written down, or many parts would cost S * R.
    heap: list[tuple[float, int, list[_Part]]] = [
        (-value, index, [(value, index, index)]) for index, value in enumerate(cost.tolist())
    ]
    heapq.heapify(heap)
    while len(heap) > 1:
        _, order, heavy = heapq.heappop(heap)
        merged = _joined(heavy, heap[0][2], num_parts, successor)
        lightest = merged[0][0] if len(merged) == num_parts else 0.0
        heapq.heapreplace(heap, (lightest - merged[-1][0], order, merged))
    rows = [_chain(first, successor) for _, first, _ in heap[0][2]]
    return rows + [np.empty(0, np.int64) for _ in range(num_parts - len(rows))]


def _joined(
    heavy: list[_Part], light: list[_Part], num_parts: int, successor: list[int]
) -> list[_Part]:
    """Merge two partial partitions, the heaviest part of one with the lightest of the other."""
    meeting = max(0, len(heavy) + len(light) - num_parts)  # pairs in which neither is empty
    added = []
    for one, other in zip(heavy[:meeting], reversed(light[:meeting]), strict=True):
        successor[one[2]] = other[1]
        added.append((one[0] + other[0], one[1], other[2]))
    more, fewer = (heavy, light) if len(heavy) >= len(light) else (light, heavy)
    merged = more[meeting:]
    added += fewer[meeting:]
    if len(added) > FEW_PARTS:
        return sorted(merged + added)
    for part in added:
        bisect.insort(merged, part)
    return merged


def _chain(first: int, successor: list[int]) -> Rows:
    indices = []
    while first >= 0:
        indices.append(first)
        first = successor[first]
    return np.sort(np.asarray(indices, dtype=np.int64))
