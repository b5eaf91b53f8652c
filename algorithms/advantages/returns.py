"""Token-level credit: REINFORCE++ and generalised advantage estimation.

Computes returns over the trainable tokens of each response, as a scan without a loop over time.
Runs in rank 0 of the learner. Not a critic: `values` come from outside. Tokens that do not train
(tool outputs) are not part of the time axis: the next step of a token is the next trainable one.
Shapes: N tokens, M <= N trainable tokens, S sequences.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.advantages.statistics import (
    check_whitening,
    finished,
    group_statistics,
    outcome_metrics,
    whiten,
)
from algorithms.inputs import Credit, CreditInputs
from algorithms.kl import K3_LIMIT, check_estimator, estimate
from algorithms.parts import Advantage
from algorithms.segments import discounted_suffix_sum, segment_sum
from algorithms.validation import (
    check_at_least,
    check_choice,
    check_finite,
    check_fraction,
    present,
)


def last_of_segment(ids: Tensor) -> Tensor:
    """Return True [M] at the last element of each run of equal `ids` [M]."""
    last = torch.ones_like(ids, dtype=torch.bool)
    last[:-1] = ids[1:] != ids[:-1]
    return last


def token_rewards(
    inputs: CreditInputs, rewards: Tensor, coefficient: float, estimator: str
) -> tuple[Tensor, float]:
    """Return the rewards of the trainable tokens [M] and the mean penalty.

    r_t = R on the last trainable token, minus `coefficient` * KL estimate(pi_old, ref) everywhere;
    k3 is bounded by 10, as verl's. Of R, what a turn earned stands on the turn's last trainable
    token instead.
    """
    mask = inputs.loss_mask
    ids = inputs.sequence_ids[mask]
    earned, left = turn_shares(inputs, rewards)
    shaped = torch.where(last_of_segment(ids), left[ids], 0.0) + earned
    if coefficient == 0.0:
        return shaped, 0.0
    old = present("old_logprobs", inputs.old_logprobs)[mask]
    reference = present("ref_logprobs", inputs.ref_logprobs)[mask]
    penalty = estimate(estimator, old, reference, k3_limit=K3_LIMIT)  # [M]
    mean = float(penalty.mean().item()) if penalty.numel() else 0.0
    return shaped - coefficient * penalty, mean


def turn_shares(inputs: CreditInputs, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Divide rewards [S] into what turns earned and what is left.

    Returns:
        [M] the turns' rewards, each on its last trainable token, and [S] the rest.
    """
    mask = inputs.loss_mask
    if inputs.turn_ids is None or inputs.turn_rewards is None:
        return rewards.new_zeros(int(mask.sum().item())), rewards
    turns, ids = inputs.turn_ids[mask], inputs.sequence_ids[mask]
    ends = last_of_segment(turns) & (turns >= 0)
    earned = torch.where(ends, inputs.turn_rewards[turns.clamp(min=0)].to(rewards.dtype), 0.0)
    return earned, rewards - segment_sum(earned, ids, rewards.numel())


def kl_columns(coefficient: float) -> frozenset[str]:
    """Return the columns that a KL in the reward reads; none where its coefficient is 0."""
    return frozenset({"old_logprobs", "ref_logprobs"}) if coefficient else frozenset()


@dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlus(Advantage):
    """Return-to-go of token rewards, whitened over the batch. REINFORCE++ (2501.03262).

    r_t = 1[t = T] (R - b) - kl_coefficient * kl_t, A_t = sum_{s >= t} gamma^(s - t) r_s, then
    (A - mean) / std over the batch. With baseline=group_mean and no KL it is REINFORCE++-baseline,
    whose KL is a separate loss.

    Attributes:
        baseline: none or group_mean.
        gamma: discount.
        kl_coefficient: weight of the KL to the reference in the reward; 0 for none.
        kl_estimator: k1, k2, k3 or abs.
        whiten: population (OpenRLHF, the authors'), unbiased (verl) or none.
        eps: added to the variance.
    """

    baseline: str = "none"
    gamma: float = 1.0
    kl_coefficient: float = 0.01
    kl_estimator: str = "k1"
    whiten: str = "population"
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_choice("baseline", self.baseline, ("none", "group_mean"))
        check_fraction("gamma", self.gamma)
        check_at_least("kl_coefficient", self.kl_coefficient, 0.0)
        check_finite("kl_coefficient", self.kl_coefficient)
        check_estimator("kl_estimator", self.kl_estimator)
        check_whitening(self.whiten)
        check_at_least("eps", self.eps, 0.0)

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]
        """Columns of the KL, where the reward has one."""
        return kl_columns(self.kl_coefficient)

    @property
    def needs_groups(self) -> bool:  # type: ignore[override]
        """True with the group baseline."""
        return self.baseline == "group_mean"

    def __call__(self, inputs: CreditInputs) -> Credit:
        """See :class:`algorithms.parts.Advantage`."""
        statistics = group_statistics(inputs.shaped_rewards, inputs.group_ids, unbiased=True)
        rewards = inputs.shaped_rewards
        if self.baseline == "group_mean":
            rewards = torch.where(statistics.informative, rewards - statistics.mean, 0.0)
        mask = inputs.loss_mask
        per_token, kl = token_rewards(inputs, rewards, self.kl_coefficient, self.kl_estimator)
        returns = discounted_suffix_sum(per_token, inputs.sequence_ids[mask], self.gamma)
        advantages = rewards.new_zeros(mask.shape).masked_scatter(mask, returns)
        advantages = whiten(advantages, mask, self.whiten, self.eps)
        metrics = outcome_metrics(statistics) | {"credit/kl": kl}
        return finished(advantages, inputs, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class GeneralizedAdvantage(Advantage):
    """Generalised advantage estimate. GAE (1506.02438).

    A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t. V after the last token
    is 0. Returns are A + V, before whitening.

    Attributes:
        gamma: discount; 1.
        lam: 1 in verl, 0.95 in OpenRLHF.
        kl_coefficient: weight of the KL to the reference in the reward; 0 for none.
        kl_estimator: k1, k2, k3 or abs.
        whiten: unbiased (verl), population (OpenRLHF) or none.
        eps: added to the variance.
    """

    gamma: float = 1.0
    lam: float = 0.95
    kl_coefficient: float = 0.0
    kl_estimator: str = "k1"
    whiten: str = "unbiased"
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_fraction("gamma", self.gamma)
        check_fraction("lam", self.lam)
        check_at_least("kl_coefficient", self.kl_coefficient, 0.0)
        check_finite("kl_coefficient", self.kl_coefficient)
        check_estimator("kl_estimator", self.kl_estimator)
        check_whitening(self.whiten)
        check_at_least("eps", self.eps, 0.0)

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]
        """Column `values`, and those of the KL where the reward has one."""
        return frozenset({"values"}) | kl_columns(self.kl_coefficient)

    def __call__(self, inputs: CreditInputs) -> Credit:
        """See :class:`algorithms.parts.Advantage`."""
        mask = inputs.loss_mask
        ids = inputs.sequence_ids[mask]
        values = present("values", inputs.values)[mask]  # [M]
        rewards, kl = token_rewards(
            inputs, inputs.shaped_rewards, self.kl_coefficient, self.kl_estimator
        )
        following = torch.zeros_like(values)
        following[:-1] = torch.where(last_of_segment(ids)[:-1], 0.0, values[1:])
        delta = rewards + self.gamma * following - values
        scanned = discounted_suffix_sum(delta, ids, self.gamma * self.lam)
        empty = values.new_zeros(mask.shape)
        advantages = whiten(empty.masked_scatter(mask, scanned), mask, self.whiten, self.eps)
        statistics = group_statistics(inputs.shaped_rewards, inputs.group_ids, unbiased=True)
        return finished(
            advantages,
            inputs,
            metrics=outcome_metrics(statistics) | {"credit/kl": kl},
            returns=empty.masked_scatter(mask, scanned + values),
        )
