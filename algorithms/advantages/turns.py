"""Credit of turns: compare the turns of siblings that were taken in the same state.

Runs in rank 0 of the learner. The states come from the rollouts; this module compares labels.
Shapes: N tokens, S sequences (rollouts), T turns, G groups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.advantages.returns import last_of_segment, turn_shares
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
from algorithms.segments import discounted_suffix_sum, segment_sum
from algorithms.validation import check_at_least, check_choice, check_finite, check_fraction

NORMALISATIONS = ("std", "none")


@dataclass(frozen=True, kw_only=True)
class GroupInGroup(Advantage):
    """Group-in-group advantage. GiGPO (2505.10978) Eq. 8.

    A = A^E + step_weight A^S.

    A^E compares whole rollouts: (R - mean of the group) / F, Eq. 3. A^S compares turns, Eq. 7: of
    all turns of a group's rollouts that were taken in the same state (the anchor), (R_t - their
    mean) / F, with R_t = sum_{k >= t} gamma^(k - t) r_k over the turns of the rollout, Eq. 5. r_k
    is what turn k earned; what is left of the reward was earned by the last turn. F is the
    deviation + eps, or 1. An anchor of one turn, or of equal returns, gives 0 exactly.

    Attributes:
        step_weight: omega; 1 in the paper.
        gamma: discount from turn to turn; 0.95 in the paper.
        normalise: std or none (F = 1, for tasks whose groups differ much in difficulty).
        eps: added to the deviation.
        whiten: none, population or unbiased, over all trainable tokens of the batch.
    """

    step_weight: float = 1.0
    gamma: float = 0.95
    normalise: str = "std"
    eps: float = 1e-6
    whiten: str = "none"

    needs_groups = True

    def __post_init__(self) -> None:
        check_at_least("step_weight", self.step_weight, 0.0)
        check_finite("step_weight", self.step_weight)
        check_fraction("gamma", self.gamma)
        check_choice("normalise", self.normalise, NORMALISATIONS)
        check_at_least("eps", self.eps, 0.0)
        check_whitening(self.whiten)

    def __call__(self, inputs: CreditInputs) -> Credit:
        """See :class:`algorithms.parts.Advantage`."""
        rewards, mask = inputs.shaped_rewards, inputs.loss_mask
        rollouts, whole = self._relative(rewards, inputs.group_ids)
        advantages = broadcast(whole, inputs)
        turns, anchors, returns = _turns(inputs, self.gamma)  # [M], [T'], [T']
        compared, steps = self._relative(returns, anchors)
        advantages = advantages.masked_scatter(
            mask, advantages[mask] + self.step_weight * steps[turns]
        )
        advantages = whiten(advantages, mask, self.whiten)
        metrics = outcome_metrics(rollouts)
        metrics["credit/anchors_informative_frac"] = compared.num_informative / max(
            compared.num_groups, 1
        )
        return finished(advantages, inputs, metrics=metrics)

    def _relative(self, values: Tensor, groups: Tensor) -> tuple[GroupStatistics, Tensor]:
        """Return the statistics of `values` within `groups`, and the values relative to them."""
        statistics = group_statistics(values, groups, unbiased=True)
        scale = statistics.std + self.eps if self.normalise == "std" else 1.0
        relative = torch.where(statistics.informative, (values - statistics.mean) / scale, 0.0)
        return statistics, relative


def _turns(inputs: CreditInputs, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the turn of each trainable token [M], and for each turn its anchor and its return.

    Turns are numbered anew, in the order of the tokens; those without a trainable token have no
    number. Anchors are equal for turns of one group in equal states.
    """
    mask, rewards = inputs.loss_mask, inputs.shaped_rewards
    ids = inputs.sequence_ids[mask]  # [M]
    labels = ids if inputs.turn_ids is None else inputs.turn_ids[mask]
    ends = last_of_segment(labels) | last_of_segment(ids)
    turns = ends.cumsum(0) - ends.to(torch.int64)  # [M]
    rollouts = ids[ends]  # [T']
    earned, left = turn_shares(inputs, rewards)
    rest = torch.where(last_of_segment(rollouts), left[rollouts], 0.0)
    own = segment_sum(earned, turns, rollouts.numel()) + rest
    returns = discounted_suffix_sum(own, rollouts, gamma)
    states = torch.zeros_like(rollouts)
    if inputs.turn_ids is not None and inputs.turn_states is not None:
        states = inputs.turn_states[labels[ends].clamp(min=0)]
    pairs = torch.stack([inputs.group_ids[rollouts], states], dim=1)  # [T', 2]
    anchors = torch.unique(pairs, dim=0, return_inverse=True)[1]
    return turns, anchors, returns
