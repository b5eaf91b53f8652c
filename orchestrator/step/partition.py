"""Divide the sequences of an optimizer batch among ranks and micro-batches, in the driver.

Numbers in, row indices out: lengths [S] become `rows[rank][micro_batch]`. Two rules hold always:
the token budget of a micro-batch is never exceeded, and every rank gets the same number of
micro-batches, because ZeRO's collectives are in lock-step. A rank that runs out gets empty
micro-batches.

The module does not touch tokens (that is `workers/data/packing.py`), nor the loss: the division
changes speed only, never the gradient.

Legend: S sequences, R ranks, K micro-batches of a rank.
"""

import bisect
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
FEW_PARTS = 32  # up to so many are inserted into a sorted list one by one, more are sorted
_Part: TypeAlias = tuple[float, int, int]  # cost, first and last index of a chain


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceCost:
    """Time of a sequence of length L: `linear * L + quadratic * L**2`.

    Attributes:
        linear: cost of one token in the projections and the feed-forward layers.
        quadratic: cost of one pair of tokens in attention.
    """

    linear: float = 1.0
    quadratic: float = 0.0

    def __post_init__(self) -> None:
        if self.linear < 0 or self.quadratic < 0 or self.linear + self.quadratic == 0:
            raise ValueError(
                f"SequenceCost({self.linear}, {self.quadratic}): give non-negative weights, "
                "at least one of them positive"
            )

    def __call__(self, lengths: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Compute the costs [S] of sequences of `lengths` [S]."""
        length = np.asarray(lengths, dtype=np.float64)  # [S]
        return self.linear * length + self.quadratic * length**2

    @staticmethod
    def of_model(*, num_parameters: int, num_layers: int, hidden_size: int) -> "SequenceCost":
        """Build the cost of a transformer, in units of one token's matrix products.

        A token costs 2 * parameters floating-point operations, a causal pair of tokens
        2 * layers * hidden (scores and values, half the square): their ratio is what balances.
        """
        return SequenceCost(linear=1.0, quadratic=num_layers * hidden_size / num_parameters)


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """Division of the sequences of an optimizer batch among ranks and micro-batches.

    Example, lengths [5, 3, 2] on two ranks with a token budget of 5:
        Partition(
            rows=((np.array([0]),), (np.array([1, 2]),)), imbalance=1.0, fill_frac=1.0
        )

    Attributes:
        rows: `rows[rank][micro_batch]` = row indices, int64; equal number of micro-batches on all
            ranks, some possibly empty.
        imbalance: cost of the slowest rank over the mean, 1.0 is perfect.
        fill_frac: tokens over the tokens that all micro-batches could hold.
    """

    rows: tuple[tuple[Rows, ...], ...]
    imbalance: float
    fill_frac: float

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of each rank."""
        return len(self.rows[0])


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


def micro_batches(lengths: npt.ArrayLike, token_budget: int) -> list[Rows]:
    """Fill micro-batches to a hard token budget (best fit, longest first).

    Args:
        lengths: [S] tokens of each sequence.
        token_budget: tokens a micro-batch may hold.

    Returns:
        Sorted index arrays; their number is within 11/9 of the optimum.
    """
    length = np.asarray(lengths, dtype=np.int64)  # [S]
    check_budget(length, token_budget)
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for index in np.argsort(-length, kind="stable").tolist():
        need = int(length[index])
        place = bisect.bisect_left(room, (need, -1))
        free, target = room.pop(place) if place < len(room) else (token_budget, len(bins))
        if target == len(bins):
            bins.append([])
        bins[target].append(index)
        bisect.insort(room, (free - need, target))
    return [np.sort(np.asarray(members, dtype=np.int64)) for members in bins]


def check_budget(lengths: npt.ArrayLike, token_budget: int) -> None:
    """Check that the token budget can hold every sequence.

    Raises:
        ValueError: a sequence is longer than the budget, or the budget is not positive.
    """
    length = np.asarray(lengths, dtype=np.int64)  # [S]
    if token_budget < 1:
        raise ValueError(f"token_budget={token_budget}: give a positive number of tokens")
    longest = int(length.max(initial=0))
    if longest > token_budget:
        raise ValueError(
            f"token_budget={token_budget} is below the longest sequence ({longest} tokens, row "
            f"{int(length.argmax())}): raise it to at least {longest}"
        )


def partition(
    lengths: npt.ArrayLike,
    *,
    num_ranks: int,
    token_budget: int,
    cost: SequenceCost | None = None,
) -> Partition:
    """Spread one optimizer batch over ranks and micro-batches.

    Args:
        lengths: [S] tokens of each sequence.
        num_ranks: data-parallel ranks.
        token_budget: tokens a micro-batch may hold, on one rank.
        cost: what is balanced over the ranks; None counts tokens.
    """
    length = np.asarray(lengths, dtype=np.int64)  # [S]
    check_budget(length, token_budget)
    costs = (cost or SequenceCost())(length)  # [S]
    of_rank = balance(costs, num_ranks)
    filled = [micro_batches(length[rows], token_budget) for rows in of_rank]
    count = max(1, *(len(bins) for bins in filled))
    rows = tuple(
        _even(mine, bins, length=length, count=count, token_budget=token_budget)
        for mine, bins in zip(of_rank, filled, strict=True)
    )
    total = [float(costs[mine].sum()) for mine in of_rank]
    mean = sum(total) / num_ranks
    return Partition(
        rows=rows,
        imbalance=max(total) / mean if mean else 1.0,
        fill_frac=float(length.sum()) / (token_budget * count * num_ranks),
    )


def _even(
    mine: Rows, bins: Sequence[Rows], *, length: Rows, count: int, token_budget: int
) -> tuple[Rows, ...]:
    """Make `count` micro-batches of one rank: even ones if the budget allows, else `bins`.

    Ranks wait for each other in every micro-batch, so even micro-batches are faster than full
    ones and a near-empty rest.
    """
    even = balance(length[mine], count)
    if any(int(length[mine[part]].sum()) > token_budget for part in even):
        empty = [np.empty(0, np.int64) for _ in range(count - len(bins))]
        even = [*bins, *empty]
    return tuple(mine[part] for part in even)
