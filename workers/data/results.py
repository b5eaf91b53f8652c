"""What a ZeRO engine answers: plain records, no tensor, ready to cross a process boundary."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = tuple[npt.NDArray[np.float32], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredRows:
    """No-grad results of this rank, one float32 array [tokens] per row, in micro-batch order."""

    logprobs: Rows
    entropies: Rows | None


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateResult:
    """One optimizer update, over all ranks.

    Attributes:
        metrics: "loss" (the weighted sum), "num_tokens", and the algorithm's.
        grad_norm: before clipping; inf or NaN where the update was skipped.
        lr: the learning rate it was taken with.
        skipped: the gradient was not finite, nothing changed.
        non_finite: the tensors that made it so.
    """

    metrics: dict[str, float]
    grad_norm: float
    lr: float
    skipped: bool
    non_finite: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """All updates of one call; `logprobs` are the current policy's as each row was trained."""

    updates: tuple[UpdateResult, ...]
    logprobs: Rows


@dataclass(kw_only=True, slots=True)
class StepCounts:
    """What a checkpoint carries beside DeepSpeed's own state."""

    steps_taken: int = 0
    steps_skipped: int = 0
    skipped_in_a_row: int = 0
