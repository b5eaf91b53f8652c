"""Define the results of a ZeRO engine: plain records without tensors.

Learner, reference and critic ranks make the records, which can cross a process boundary as they
are. Nothing is computed here.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = tuple[npt.NDArray[np.float32], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredRows:
    """No-grad results of this rank, one float32 array [tokens] per row, in micro-batch order.

    Example, two rows of three and two tokens, without entropies:
        ScoredRows(
            logprobs=(
                np.array([0.0, -0.31, -0.02], dtype=np.float32),
                np.array([0.0, -1.2], dtype=np.float32),
            ),
            entropies=None,
        )
    """

    logprobs: Rows
    entropies: Rows | None


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateResult:
    """One optimizer update, over all ranks.

    Example:
        UpdateResult(
            metrics={"loss": -0.012, "num_tokens": 512.0, "policy/clip_frac": 0.03},
            grad_norm=0.42,
            lr=1e-6,
            skipped=False,
        )

    Attributes:
        metrics: "loss" (the weighted sum), "num_tokens", and the algorithm's.
        grad_norm: before clipping; inf or NaN if the update was skipped.
        lr: learning rate of the update.
        skipped: True if the gradient was not finite; no weight changed.
        non_finite: names of the tensors whose gradient was not finite.
        loss_scale: by which the loss was multiplied; None where the weights are not float16.
    """

    metrics: dict[str, float]
    grad_norm: float
    lr: float
    skipped: bool
    non_finite: tuple[str, ...] = ()
    loss_scale: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """All updates of one call, with the values of every row as each was trained.

    Example, one update of one row of three tokens, of which the last is clipped:
        TrainResult(
            updates=(
                UpdateResult(metrics={"loss": -0.012}, grad_norm=0.42, lr=1e-6, skipped=False),
            ),
            logprobs=(np.array([0.0, -0.31, -0.02], dtype=np.float32),),
            flags=(np.array([0.0, 0.0, 1.0], dtype=np.float32),),
        )

    Attributes:
        updates: in order.
        logprobs: of the current policy.
        flags: of the loss (`algorithms/flags.py`), whole numbers.
    """

    updates: tuple[UpdateResult, ...]
    logprobs: Rows
    flags: Rows


@dataclass(kw_only=True, slots=True)
class StepCounts:
    """Counts of optimizer steps that a checkpoint holds beside DeepSpeed's own state.

    Example:
        StepCounts(steps_taken=40, steps_skipped=1, skipped_in_a_row=0)
    """

    steps_taken: int = 0
    steps_skipped: int = 0
    skipped_in_a_row: int = 0
