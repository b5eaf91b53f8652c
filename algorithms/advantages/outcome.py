"""Advantages that are one number per response.

Raw rewards, batch and group baselines, leave-one-out. Runs in rank 0 of the learner. Token-level
returns and the use of a critic are in :mod:`algorithms.advantages.returns`.
Shapes: N tokens, S sequences.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.advantages.statistics import (
    GroupStatistics,
    broadcast,
    check_whitening,
    finished,
    group_statistics,
    outcome_metrics,
    whiten,
)
from algorithms.inputs import Credit, CreditInputs
from algorithms.parts import Advantage
from algorithms.validation import check_at_least, check_choice, check_positive

WEIGHTINGS = ("equal", "std", "clip_filter")


@dataclass(frozen=True, kw_only=True)
class GroupRelative(Advantage):
    """Group-relative advantage. GRPO (2402.03300) Eq. 3; CPGD (2505.12504) section 4.2.

    A = omega (R - mean of the group).

    weighting  omega                                          known as
    std        1 / (std of the group + eps)                   GRPO, DAPO, CPGD "STD weight"
    equal      1                                              Dr.GRPO, RPG, CPGD "equal weight"
    clip_filter  min(weight_cap, groups / informative groups) CPGD "clip-filter-like", GPG's alpha

    A group of equal rewards gets 0 exactly, whatever rounding does to its mean. So does a group of
    one response (verl sets A = R there, which is no group-relative credit).

    Attributes:
        weighting: std, equal or clip_filter.
        unbiased: divide the group's squares by n - 1 (released code) or by n (the GRPO paper).
        eps: added to the deviation; 1e-6 verl and DAPO, 1e-4 TRL, 1e-9 OpenRLHF and CPGD.
        weight_cap: c_w of clip_filter; `inf` for GPG.
        whiten: none, population or unbiased, over all trainable tokens of the batch. The CPGD code
            whitens after "equal" and "clip_filter", the paper does not.
    """

    weighting: str = "std"
    unbiased: bool = True
    eps: float = 1e-6
    weight_cap: float = 3.0
    whiten: str = "none"

    needs_groups = True

    def __post_init__(self) -> None:
        check_choice("weighting", self.weighting, WEIGHTINGS)
        check_at_least("eps", self.eps, 0.0)
        check_positive("weight_cap", self.weight_cap)
        check_whitening(self.whiten)

    def _weight(self, statistics: GroupStatistics) -> Tensor:
        """Return the factor omega [S]."""
        if self.weighting == "std":
            return 1.0 / (statistics.std + self.eps)
        weight = 1.0
        if self.weighting == "clip_filter":
            weight = statistics.num_groups / max(statistics.num_informative, 1)
        return torch.full_like(statistics.mean, min(weight, self.weight_cap))

    def __call__(self, inputs: CreditInputs) -> Credit:
        """See :class:`algorithms.parts.Advantage`."""
        statistics = group_statistics(
            inputs.shaped_rewards, inputs.group_ids, unbiased=self.unbiased
        )
        centered = inputs.shaped_rewards - statistics.mean
        weighted = torch.where(statistics.informative, self._weight(statistics) * centered, 0.0)
        advantages = whiten(broadcast(weighted, inputs), inputs.loss_mask, self.whiten)
        return finished(advantages, inputs, metrics=outcome_metrics(statistics))


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(Advantage):
    """Leave-one-out advantage. RLOO (2402.14740).

    A_k = R_k - mean of the other responses = G / (G - 1) (R_k - mean). A group of one response gets
    0.

    Attributes:
        whiten: none, population or unbiased, over all trainable tokens of the batch.
    """

    whiten: str = "none"

    needs_groups = True

    def __post_init__(self) -> None:
        check_whitening(self.whiten)

    def __call__(self, inputs: CreditInputs) -> Credit:
        """See :class:`algorithms.parts.Advantage`."""
        statistics = group_statistics(inputs.shaped_rewards, inputs.group_ids, unbiased=True)
        factor = statistics.size / (statistics.size - 1.0).clamp(min=1.0)
        centered = torch.where(statistics.informative, inputs.shaped_rewards - statistics.mean, 0.0)
        advantages = whiten(broadcast(factor * centered, inputs), inputs.loss_mask, self.whiten)
        return finished(advantages, inputs, metrics=outcome_metrics(statistics))


@dataclass(frozen=True, kw_only=True)
class BatchRelative(Advantage):
    """Batch-relative advantage, which works with one response per prompt.

    A = R - b with b the mean reward of the batch, or 0.

    Attributes:
        baseline: mean (RPG's batch baseline), or none (plain REINFORCE; CPGD's ablation "raw
            rewards").
        whiten: none, population or unbiased, over all trainable tokens of the batch.
    """

    baseline: str = "mean"
    whiten: str = "none"

    def __post_init__(self) -> None:
        check_choice("baseline", self.baseline, ("mean", "none"))
        check_whitening(self.whiten)

    def __call__(self, inputs: CreditInputs) -> Credit:
        """See :class:`algorithms.parts.Advantage`."""
        statistics = group_statistics(inputs.shaped_rewards, inputs.group_ids, unbiased=True)
        centered = inputs.shaped_rewards
        if self.baseline == "mean" and centered.numel():
            centered = centered - centered.mean()
        advantages = whiten(broadcast(centered, inputs), inputs.loss_mask, self.whiten)
        return finished(advantages, inputs, metrics=outcome_metrics(statistics))
