"""Read the rows of recorded steps for a report: the small columns of many, numbers of the tokens.

Runs in the driver at the end of a run, and in `ballast report`. Two budgets bound the work of any
run, however long: rows whose small columns are read, and tokens from whose columns numbers are
computed. Within a budget the steps are the first, the last, and evenly spread ones in between. The
tokens of chosen rows are read in `samples.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from algorithms.flags import CLIPPED, DROPPED, GATED
from workers.data.plans import FLAGS
from workers.data.trajectory import SCORED

SMALL = ("prompt_uid", "group_id", "outcome", "reward", "finish_reason", "num_turns")
PER_TOKEN = ("loss_mask", "weight_versions", "rollout_logprobs")  # of every record
COMPUTED = (
    "advantages",
    "old_logprobs",
    "logprobs",
    "ref_logprobs",
    "old_entropy",
    "values",
    FLAGS,
)
CUTS = {"clipped": CLIPPED, "gated": GATED, "dropped": DROPPED}  # number of a row -> its flag
KIND_CHARACTERS = 80
MAX_ROWS = 400_000
MAX_TOKENS = 20_000_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RecordedStep:
    """The rows of one recorded step.

    Attributes:
        step: its number.
        file: of the step.
        small: column -> one value per row, of `SMALL`.
        facts: name -> [rows] numbers of the tokens, NaN where a row has none: `sampled` tokens,
            `gap` the largest |log-prob of the learner - of the sampler| in nats, `ratio` the
            largest |pi_theta / pi_old - 1|, `advantage` the largest |advantage|; `clipped`,
            `gated`, `dropped` the share of trained tokens whose gradient the clip, a gate or
            the correction cut. Empty where the step is beyond the budget of tokens.
    """

    step: int
    file: Path
    small: Mapping[str, Sequence[object]]
    facts: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.small["outcome"])

    def outcomes(self) -> list[str]:
        """Return the kind of every row's outcome."""
        pairs = zip(self.small["outcome"], self.small["prompt_uid"], strict=True)
        return [outcome_kind(str(outcome), str(uid)) for outcome, uid in pairs]


def outcome_kind(outcome: str, prompt_uid: str) -> str:
    """Return an outcome without all that names its sample: the prompt, numbers, a long end.

    Example: "failed:train:7: 300 tokens" of prompt "train:7" -> "failed:# tokens"
    """
    if outcome == SCORED:
        return outcome
    return re.sub(r"\d+", "#", outcome.replace(f"{prompt_uid}: ", ""))[:KIND_CHARACTERS]


def read_rows(
    rollouts: Mapping[int, Path],
    *,
    max_rows: int = MAX_ROWS,
    max_tokens: int = MAX_TOKENS,
) -> list[RecordedStep]:
    """Read the rows of a run's steps, as many as the budgets allow.

    Args:
        rollouts: step -> its file.
        max_rows: rows whose small columns are read.
        max_tokens: tokens from which `facts` are computed.
    """
    sizes = {step: _size(file) for step, file in rollouts.items()}
    in_rows = within(list(rollouts), {step: size[0] for step, size in sizes.items()}, max_rows)
    in_tokens = within(in_rows, {step: size[1] for step, size in sizes.items()}, max_tokens)
    found = []
    for step in in_rows:
        file = pq.ParquetFile(rollouts[step])
        small = file.read(columns=list(SMALL)).to_pydict()
        facts: Mapping[str, Floats] = {}
        if step in in_tokens:
            columns = [n for n in (*PER_TOKEN, *COMPUTED) if n in file.schema_arrow.names]
            facts = token_facts(file.read(columns=columns))
        found.append(RecordedStep(step=step, file=rollouts[step], small=small, facts=facts))
    return found


def within(steps: Sequence[int], sizes: Mapping[int, int], limit: int) -> list[int]:
    """Return the steps that fit a limit together: the first, the last, and evenly spread ones.

    At least one step is returned, if there is one, whatever its size.
    """
    total = sum(sizes[step] for step in steps)
    if total <= limit or len(steps) <= 1:
        return list(steps)
    count = max(1, int(len(steps) * limit / total))
    places = np.linspace(0, len(steps) - 1, count).round().astype(int)
    chosen = [steps[place] for place in sorted(set(places.tolist()))]
    while len(chosen) > 1 and sum(sizes[step] for step in chosen) > limit:
        del chosen[len(chosen) // 2]
    return chosen


def _size(path: Path) -> tuple[int, int]:
    """Return rows and tokens of a file, from its footer."""
    footer = pq.ParquetFile(path).metadata
    tokens = 0
    for group in range(footer.num_row_groups):
        for place in range(footer.num_columns):
            column = footer.row_group(group).column(place)
            if column.path_in_schema.split(".")[0] == "tokens":
                tokens += column.num_values
    return footer.num_rows, tokens


def token_facts(table: pa.Table) -> dict[str, Floats]:
    """Compute one number per row from the tokens' columns; NaN where a row has none."""
    rows = table.num_rows
    facts = {"sampled": np.full(rows, np.nan)}
    mask, owner = _flat(table["loss_mask"])
    versions, _ = _flat(table["weight_versions"])
    facts["sampled"] = np.bincount(owner[versions >= 0], minlength=rows).astype(float)
    names = table.column_names
    trained = mask.astype(bool)
    if "advantages" in names:
        facts["advantage"] = _largest(table, rows, trained, np.abs, "advantages")
    policy = "old_logprobs" if "old_logprobs" in names else "logprobs"
    if policy in names:
        facts["gap"] = _largest(
            table, rows, trained, lambda a, b: np.abs(a - b), policy, "rollout_logprobs"
        )
    if "old_logprobs" in names and "logprobs" in names:
        facts["ratio"] = _largest(
            table, rows, trained, lambda a, b: np.abs(np.exp(a - b) - 1), "logprobs", "old_logprobs"
        )
    if FLAGS in names:
        facts |= _shares_cut(table, rows, trained)
    return facts


def _flat(column: pa.ChunkedArray) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return all values of a list column, and for each the row that it belongs to.

    A null row has no value.
    """
    whole = column.combine_chunks()
    lengths = whole.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    owner = np.repeat(np.arange(len(whole)), lengths)
    return whole.flatten().to_numpy(zero_copy_only=False), owner


def _aligned(
    table: pa.Table, trained: npt.NDArray[np.bool_], names: Sequence[str]
) -> tuple[list[Floats], npt.NDArray[np.int64]]:
    """Return the trained tokens' values of several columns, and the row of each.

    Rows that a computed column does not hold (null) are left out of all of them.
    """
    _, owner = _flat(table["loss_mask"])
    present = np.ones(table.num_rows, dtype=bool)
    for name in names:
        present &= table[name].is_valid().to_numpy()
    if not present.all():
        kept = present[owner]
        table, trained, owner = table.filter(pa.array(present)), trained[kept], owner[kept]
    columns = [_flat(table[name])[0][trained].astype(float) for name in names]
    return columns, owner[trained]


def _largest(
    table: pa.Table,
    rows: int,
    trained: npt.NDArray[np.bool_],
    measure: Callable[..., Floats],
    *names: str,
) -> Floats:
    columns, owner = _aligned(table, trained, names)
    largest = np.full(rows, -np.inf)
    np.maximum.at(largest, owner, measure(*columns))
    return np.where(np.isfinite(largest), largest, np.nan)


def _shares_cut(table: pa.Table, rows: int, trained: npt.NDArray[np.bool_]) -> dict[str, Floats]:
    (flags,), owner = _aligned(table, trained, (FLAGS,))
    tokens = np.bincount(owner, minlength=rows)
    shares = {}
    for name, bit in CUTS.items():
        cut = np.bincount(owner, weights=(flags.astype(np.uint8) & bit) > 0, minlength=rows)
        with np.errstate(invalid="ignore"):  # 0 of 0 tokens is no number
            shares[name] = np.asarray(cut / tokens, dtype=np.float64)
    return shares
