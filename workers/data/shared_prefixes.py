"""Lay the common prefix of siblings once into a packed batch: `SharedPrefixes`.

Learner, reference and critic ranks run this module where they pack rows. A batch keeps all N tokens
of its rows, with every column aligned to them; `SharedPrefixes` says which n of these tokens a
model has to compute, and where among those each of the N is found. The module knows no model, and
does not choose the rows that are computed together.

Legend: S sequences, N tokens of all of them together, n tokens that are computed, P prefixes (a
sequence that shares nothing is a prefix without suffixes), Q suffixes.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: Number of a row that shares nothing.
ALONE = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPrefixes:
    """The n tokens of a packed batch that a model computes: prefixes first, then suffixes.

    Worked example, the siblings `[5 6 7]` and `[5 6 8 9]` and the single sequence `[4 3]`, together
    N = 9 tokens, of which 7 are computed:
        computed     [0 1 7 8 2 5 6]        the tokens 5 6 | 4 3 | 7 | 8 9
        places       [0 1 4 0 1 5 6 2 3]
        cu_prefixes  [0 2 4]                `5 6` and `4 3`
        cu_suffixes  [4 5 7]                `7` and `8 9`
        owners       [0 0]                  both continue `5 6`

    Attributes:
        computed: [n] int64, the token of the batch at each computed place.
        places: [N] int64, the computed place of each token; siblings name the same ones.
        cu_prefixes: [P+1] int32, the start of each prefix; the last element is the first suffix's.
        cu_suffixes: [Q+1] int32, the start of each suffix, none of them empty; the last is n.
        owners: [Q] int64, the prefix that each suffix continues.
    """

    computed: Tensor
    places: Tensor
    cu_prefixes: Tensor
    cu_suffixes: Tensor
    owners: Tensor

    def to(self, device: torch.device | str) -> "SharedPrefixes":
        """Return the layout on `device`."""
        moved = {
            item.name: getattr(self, item.name).to(device, non_blocking=True)
            for item in fields(self)
        }
        return SharedPrefixes(**moved)


def share_prefixes(
    tokens: npt.NDArray[np.generic],  # [N]
    ends: npt.NDArray[np.int64],  # [S+1]
    groups: npt.NDArray[np.int64],  # [S]
) -> SharedPrefixes | None:
    """Lay out a batch whose rows of equal group number share their common prefix.

    Args:
        tokens: of all rows, end to end.
        ends: the start of each row; the last element is N.
        groups: of each row; rows with `ALONE` share nothing.

    Returns:
        The layout, or None where no two rows have a token in common to share.
    """
    lengths = np.diff(ends)  # [S]
    common = lengths.copy()  # [S] tokens of each row's prefix
    first = np.arange(len(lengths))  # [S] the row in which the prefix stands
    for number in np.unique(groups[groups != ALONE]):
        rows = np.flatnonzero(groups == number)
        size = _common_length(tokens, ends, rows)
        if len(rows) > 1 and size:
            common[rows], first[rows] = size, rows[0]
    if np.array_equal(first, np.arange(len(lengths))):
        return None
    leaders = np.flatnonzero(first == np.arange(len(lengths)))  # [P] rows
    followers = np.flatnonzero(lengths > common)  # [Q] rows
    starts = np.cumsum([0, *common[leaders]])  # [P+1]
    begins = starts[-1] + np.cumsum([0, *(lengths - common)[followers]])  # [Q+1]
    owner = np.searchsorted(leaders, first)  # [S]
    begin = np.zeros(len(lengths), dtype=np.int64)  # [S]
    begin[followers] = begins[:-1]
    row = np.repeat(np.arange(len(lengths)), lengths)  # [N]
    column = np.arange(len(tokens)) - ends[:-1][row]  # [N]
    places = np.where(
        column < common[row], starts[owner][row] + column, begin[row] + column - common[row]
    )
    computed = np.empty(begins[-1], dtype=np.int64)  # [n]
    computed[places[::-1]] = np.arange(len(tokens))[::-1]  # of equal tokens the first row's
    return SharedPrefixes(
        computed=torch.from_numpy(computed),
        places=torch.from_numpy(places),
        cu_prefixes=torch.from_numpy(starts.astype(np.int32)),
        cu_suffixes=torch.from_numpy(begins.astype(np.int32)),
        owners=torch.from_numpy(owner[followers]),
    )


def _common_length(
    tokens: npt.NDArray[np.generic], ends: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> int:
    """Count the leading tokens that all of `rows` have in common."""
    own = tokens[ends[rows[0]] : ends[rows[0] + 1]]
    for row in rows[1:]:
        size = min(len(own), int(ends[row + 1] - ends[row]))
        other = tokens[ends[row] : ends[row] + size]
        differs = np.flatnonzero(own[:size] != other)
        own = own[: int(differs[0]) if len(differs) else size]
    return len(own)
