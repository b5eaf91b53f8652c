"""Advantages of rewards with several parts, each normalised for itself before they are added.

Runs in rank 0 of the learner. The parts are numbers that the scorer returns beside the reward; no
part is scored here. Shapes: N tokens, S sequences, G groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from algorithms.advantages.statistics import (
    broadcast,
    finished,
    group_statistics,
    outcome_metrics,
)
from algorithms.inputs import Credit, CreditInputs
from algorithms.parts import Advantage
from algorithms.validation import check_at_least, check_choice

NORMALISATIONS = ("each", "sum")
WHITENINGS = ("none", "sequences")


@dataclass(frozen=True, kw_only=True)
class DecoupledGroupRelative(Advantage):
    """Group-relative advantage of several reward parts. GDPO (2601.05242), section 3.

    A_k = (r_k - mean of the group) / (std of the group + eps), for each part k
    A_sum = sum_k weights[k] A_k
    A = (A_sum - mean of the batch) / (std of the batch + eps)

    GRPO adds the parts first, so that different combinations with an equal sum get one advantage,
    and a part with a small spread is drowned by another; `normalise="sum"` is that form. A part
    whose values are equal in a group adds 0 there exactly.

    Attributes:
        weights: by the names of the parts; empty: the whole reward is the only part.
        normalise: each (GDPO) or sum (GRPO on the weighted sum).
        unbiased: divide squares by n - 1 (released code) or by n.
        eps: added to every deviation.
        whiten: sequences (the last line above, over all responses of the batch) or none.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    normalise: str = "each"
    unbiased: bool = True
    eps: float = 1e-6
    whiten: str = "sequences"

    needs_groups = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", {k: float(w) for k, w in self.weights.items()})
        check_choice("normalise", self.normalise, NORMALISATIONS)
        check_choice("whiten", self.whiten, WHITENINGS)
        check_at_least("eps", self.eps, 0.0)

    @property
    def reward_parts(self) -> tuple[str, ...]:  # type: ignore[override]
        """See :class:`algorithms.parts.Advantage`."""
        return tuple(self.weights)

    def __call__(self, inputs: CreditInputs) -> Credit:
        """See :class:`algorithms.parts.Advantage`."""
        given = inputs.reward_parts or {}
        parts = {name: given[name] for name in self.weights}
        weighted = [(parts[name], weight) for name, weight in self.weights.items()]
        weighted = weighted or [(inputs.shaped_rewards, 1.0)]
        metrics = {
            f"credit/part/{name}/informative_groups_frac": self._informative(parts[name], inputs)
            for name in self.weights
        }
        if self.normalise == "sum":
            total = torch.stack([weight * values for values, weight in weighted]).sum(dim=0)
            weighted = [(total, 1.0)]
        relative = [weight * self._relative(values, inputs) for values, weight in weighted]
        advantages = self._whitened(torch.stack(relative).sum(dim=0))
        statistics = group_statistics(
            inputs.shaped_rewards, inputs.group_ids, unbiased=self.unbiased
        )
        return finished(
            broadcast(advantages, inputs), inputs, metrics=outcome_metrics(statistics) | metrics
        )

    def _relative(self, values: Tensor, inputs: CreditInputs) -> Tensor:
        """Normalise one part [S] inside its groups."""
        statistics = group_statistics(values, inputs.group_ids, unbiased=self.unbiased)
        scaled = (values - statistics.mean) / (statistics.std + self.eps)
        return torch.where(statistics.informative, scaled, 0.0)

    def _informative(self, values: Tensor, inputs: CreditInputs) -> float:
        statistics = group_statistics(values, inputs.group_ids, unbiased=self.unbiased)
        return statistics.num_informative / max(statistics.num_groups, 1)

    def _whitened(self, advantages: Tensor) -> Tensor:
        """Normalise over the responses of the batch [S]; equal ones become 0."""
        if self.whiten == "none":
            return advantages
        if advantages.numel() < 2:
            return torch.zeros_like(advantages)
        spread, mean = torch.std_mean(advantages, correction=int(self.unbiased))
        return (advantages - mean) / (spread + self.eps)
