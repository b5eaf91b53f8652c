"""Divide siblings into pieces that a micro-batch computes behind one shared prefix.

Numbers in, row indices out, in the driver. A piece is some siblings of one group; the piece's
tokens are those that a model computes: the prefix once, and the rest of every row. The module
touches no tokens: a rank finds the prefix itself (`workers/data/shared_prefixes.py`), and the
prefix may be longer than the prompt that is counted here, never shorter.

Legend: S sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.step.balance import Rows, balance
from workers.data.shared_prefixes import ALONE
from workers.data.trajectory import TrajectoryMeta


@dataclass(frozen=True, kw_only=True, slots=True)
class Siblings:
    """Rows that may share a prefix.

    Example, two siblings behind a prompt of 4 tokens and a row that shares nothing:
        Siblings(groups=np.array([0, 0, ALONE]), prefixes=np.array([4, 4, 0]))

    Attributes:
        groups: [S] int64; rows of an equal number are siblings, unless it is `ALONE`.
        prefixes: [S] int64, leading tokens that a row shares with its siblings.
    """

    groups: Rows
    prefixes: Rows

    def take(self, rows: Rows) -> "Siblings":
        """Return the siblings among `rows`."""
        return Siblings(groups=self.groups[rows], prefixes=self.prefixes[rows])

    @property
    def largest(self) -> int:
        """Rows of the largest group; 1 where none shares."""
        _, counts = np.unique(self.groups[self.groups != ALONE], return_counts=True)
        return int(counts.max(initial=1))


def alone(num_rows: int) -> Siblings:
    """Return rows [S] of which none shares a prefix."""
    return Siblings(
        groups=np.full(num_rows, ALONE, dtype=np.int64), prefixes=np.zeros(num_rows, dtype=np.int64)
    )


def siblings_of(metas: Sequence[TrajectoryMeta], group_ids: Rows) -> Siblings:
    """Find the rows [S] of one group whose prompts are equal.

    A row is `ALONE` where its group holds no other row that trains, has no prompt, or begins
    otherwise than its siblings do.
    """
    keys: dict[tuple[int, int, int], list[int]] = {}
    for row, (meta, group) in enumerate(zip(metas, group_ids.tolist(), strict=True)):
        keys.setdefault((group, meta.num_prompt, meta.prompt_crc), []).append(row)
    found = alone(len(metas))
    for number, ((_, length, _), rows) in enumerate(keys.items()):
        if length and len(rows) > 1:
            found.groups[rows], found.prefixes[rows] = number, length
    return found


def computed_tokens(lengths: Rows, siblings: Siblings, rows: Rows) -> int:
    """Count the tokens that are computed for `rows` of one group together."""
    prefix = int(siblings.prefixes[rows[0]])
    return int(lengths[rows].sum()) - prefix * (len(rows) - 1)


def pieces(lengths: Rows, siblings: Siblings, *, token_budget: int, num_parts: int) -> list[Rows]:
    """Divide rows [S] into pieces of siblings that fit into a micro-batch.

    Args:
        lengths: [S] tokens of each row, none above the budget.
        siblings: of the same rows.
        token_budget: computed tokens that a piece may have.
        num_parts: pieces of every group, or more where the budget asks for more.

    Returns:
        Sorted row indices of each piece; together they hold every row once.
    """
    order = np.argsort(siblings.groups, kind="stable")
    cuts = np.flatnonzero(np.diff(siblings.groups[order])) + 1
    found: list[Rows] = []
    for rows in np.split(order, cuts):
        if not len(rows):
            continue
        if siblings.groups[rows[0]] == ALONE:
            found += list(rows[:, None])
            continue
        own = lengths[rows] - siblings.prefixes[rows]
        for count in range(min(num_parts, len(rows)), len(rows) + 1):
            parts = [rows[part] for part in balance(own, count) if len(part)]
            if all(computed_tokens(lengths, siblings, part) <= token_budget for part in parts):
                break
        found += parts
    return sorted(found, key=lambda piece: int(piece[0]))
