"""Divide the sequences of an optimizer batch among ranks and micro-batches, in the driver.

Numbers in, row indices out: lengths [S] become `rows[rank][micro_batch]`. Two rules hold always:
the token budget of a micro-batch is never exceeded, and every rank gets the same number of
micro-batches, because ZeRO's collectives are in lock-step. A rank that runs out gets empty
micro-batches.

Siblings that share a prefix are computed together where that balances (`siblings.py`); the budget
counts the prefix once in every micro-batch. The module does not touch tokens (that is
`workers/data/packing.py`), nor the loss: the division changes speed only, never the gradient.

Legend: S sequences, R ranks, K micro-batches of a rank.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.step.balance import Rows, balance
from orchestrator.step.siblings import Siblings, alone, pieces

EVEN = 1.02  # imbalance from which on cutting groups into more pieces is not worth a try


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
    def of_model(*, num_parameters: int, num_layers: int, attention_size: int) -> "SequenceCost":
        """Build the cost of a transformer, in units of one token's matrix products.

        A token costs 2 * parameters floating-point operations (of a mixture of experts those that
        it passes), a causal pair of tokens 2 * layers * heads * head size (scores and values, half
        the square): their ratio is what balances.
        """
        return SequenceCost(linear=1.0, quadratic=num_layers * attention_size / num_parameters)


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """Division of the sequences of an optimizer batch among ranks and micro-batches.

    Example, lengths [5, 3, 2] on two ranks with a token budget of 5:
        Partition(
            rows=((np.array([0]),), (np.array([1, 2]),)),
            imbalance=1.0,
            fill_frac=1.0,
            num_tokens=10,
        )

    Attributes:
        rows: `rows[rank][micro_batch]` = row indices, int64; equal number of micro-batches on all
            ranks, some possibly empty.
        imbalance: cost of the slowest rank over the mean, 1.0 is perfect.
        fill_frac: computed tokens over the tokens that all micro-batches could hold.
        num_tokens: that are computed, on all ranks.
    """

    rows: tuple[tuple[Rows, ...], ...]
    imbalance: float
    fill_frac: float
    num_tokens: int

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of each rank."""
        return len(self.rows[0])


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
    siblings: Siblings | None = None,
) -> Partition:
    """Spread one optimizer batch over ranks and micro-batches.

    Siblings stay together as far as that balances: a group is cut into more pieces, each of which
    computes the shared prefix again, only while the slowest rank becomes faster by it.

    Args:
        lengths: [S] tokens of each sequence.
        num_ranks: data-parallel ranks.
        token_budget: tokens a micro-batch may compute, on one rank.
        cost: what is balanced over the ranks; None counts tokens.
        siblings: rows that share prefixes; None: none do.
    """
    length = np.asarray(lengths, dtype=np.int64)  # [S]
    check_budget(length, token_budget)
    siblings = siblings or alone(len(length))
    cost = cost or SequenceCost()
    best: _Division | None = None
    num_parts = 1
    while True:
        found = pieces(length, siblings, token_budget=token_budget, num_parts=num_parts)
        division = _divide(found, length, siblings, cost=cost, num_ranks=num_ranks)
        if best is None or division.slowest < best.slowest:
            best = division
        if best.imbalance < EVEN or num_parts >= siblings.largest:
            break
        num_parts *= 2
    tokens = best.tokens
    filled = [micro_batches(tokens[mine], token_budget) for mine in best.ranks]
    count = max(1, *(len(bins) for bins in filled))
    return Partition(
        rows=tuple(
            tuple(
                _rows_of(best.pieces, part)
                for part in _even(mine, bins, length=tokens, count=count, token_budget=token_budget)
            )
            for mine, bins in zip(best.ranks, filled, strict=True)
        ),
        imbalance=best.imbalance,
        fill_frac=float(tokens.sum()) / (token_budget * count * num_ranks),
        num_tokens=int(tokens.sum()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Division:
    """Pieces of groups, spread over the ranks."""

    pieces: list[Rows]
    tokens: Rows  # [pieces] computed
    ranks: list[Rows]  # pieces of each
    slowest: float
    imbalance: float


def _divide(
    found: list[Rows], length: Rows, siblings: Siblings, *, cost: SequenceCost, num_ranks: int
) -> _Division:
    """Balance pieces over the ranks."""
    once = np.asarray([piece[0] for piece in found], dtype=np.int64)  # a row of each piece
    sizes = np.asarray([len(piece) for piece in found], dtype=np.int64)
    owner = np.repeat(np.arange(len(found)), sizes)
    order = np.concatenate([np.empty(0, np.int64), *found])

    def total(each: npt.NDArray[Any], shared: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Sum the rows of each piece, counting once what all of them share."""
        summed = np.bincount(owner, weights=each[order], minlength=len(found))
        return summed - shared[once] * (sizes - 1)

    costs = total(cost(length), cost(siblings.prefixes))
    ranks = balance(costs, num_ranks)
    each = [float(costs[mine].sum()) for mine in ranks]
    mean = sum(each) / num_ranks
    return _Division(
        pieces=found,
        tokens=total(length, siblings.prefixes).astype(np.int64),
        ranks=ranks,
        slowest=max(each),
        imbalance=max(each) / mean if mean else 1.0,
    )


def _rows_of(found: list[Rows], chosen: Rows) -> Rows:
    """Return the sorted rows of the chosen pieces."""
    return np.sort(np.concatenate([np.empty(0, np.int64), *(found[piece] for piece in chosen)]))


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
