"""Group and batch statistics that advantages share.

Computes means, deviations and whitening, with each definition spelled out; which of them to use is
the advantage's choice. Runs in rank 0 of the learner. Shapes: N tokens, S sequences, G groups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.inputs import Credit, CreditInputs
from algorithms.segments import segment_max, segment_mean, segment_sum
from algorithms.validation import check_choice

WHITENINGS = ("none", "population", "unbiased")


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupStatistics:
    """Statistics of the rewards of each group, broadcast to its members.

    Attributes:
        mean: [S].
        std: [S], unbiased (0 for a group of one) or population.
        size: [S], members of the group.
        informative: [S] bool, the group's rewards are not all equal.
        num_groups: G.
        num_informative: groups whose rewards are not all equal.
    """

    mean: Tensor
    std: Tensor
    size: Tensor
    informative: Tensor
    num_groups: int
    num_informative: int


def group_statistics(rewards: Tensor, group_ids: Tensor, *, unbiased: bool) -> GroupStatistics:
    """Compute two-pass statistics of `rewards` [S] within `group_ids` [S], any labels."""
    labels, group = torch.unique(group_ids, return_inverse=True)
    num = labels.numel()
    size = segment_sum(torch.ones_like(rewards), group, num)  # [G]
    mean = segment_mean(rewards, group, num)
    squares = segment_sum((rewards - mean[group]).square(), group, num)
    variance = squares / (size - 1.0 if unbiased else size).clamp(min=1.0)
    highest = segment_max(rewards, group, num, -torch.inf)
    lowest = -segment_max(-rewards, group, num, -torch.inf)
    informative = highest > lowest  # exact, unlike std > 0
    return GroupStatistics(
        mean=mean[group],
        std=variance.sqrt()[group],
        size=size[group],
        informative=informative[group],
        num_groups=num,
        num_informative=int(informative.sum().item()),
    )


def check_whitening(value: str) -> None:
    """Raise ValueError on an unknown `whiten`."""
    check_choice("whiten", value, WHITENINGS)


def whiten(values: Tensor, mask: Tensor, kind: str, eps: float = 1e-8) -> Tensor:
    """Standardise `values` over the trainable tokens of the batch -> [N].

    (v - mean) / sqrt(var + eps): "population" divides squares by n (OpenRLHF), "unbiased" by n - 1
    (verl). Fewer than two tokens have no deviation and become 0.
    """
    if kind == "none":
        return values
    count = int(mask.sum().item())
    if count < 2:
        return torch.zeros_like(values)
    selected = values[mask].double()  # batches of 10^7 tokens: float32 sums lose digits
    variance, mean = torch.var_mean(selected, correction=1 if kind == "unbiased" else 0)
    whitened = (selected - mean) * torch.rsqrt(variance + eps)
    return torch.zeros_like(values).masked_scatter(mask, whitened.to(values.dtype))


def broadcast(sequence_values: Tensor, inputs: CreditInputs) -> Tensor:
    """Spread one value per sequence [S] over tokens [N]; 0 where the token does not train."""
    return torch.where(inputs.loss_mask, sequence_values[inputs.sequence_ids], 0.0)


def outcome_metrics(statistics: GroupStatistics) -> dict[str, float]:
    """Return the scalars that every advantage reports about its groups."""
    spread = statistics.std.mean().item() if statistics.std.numel() else 0.0
    informative = statistics.num_informative / max(statistics.num_groups, 1)
    return {
        "credit/informative_groups_frac": informative,
        "credit/reward_group_std_mean": float(spread),
    }


def finished(
    advantages: Tensor,
    inputs: CreditInputs,
    *,
    metrics: dict[str, float],
    returns: Tensor | None = None,
) -> Credit:
    """Pack a Credit with the extremes of its advantages over trainable tokens."""
    selected = advantages[inputs.loss_mask]
    if selected.numel():
        metrics = metrics | {
            "credit/advantage_max": float(selected.max().item()),
            "credit/advantage_min": float(selected.min().item()),
        }
    return Credit(advantages=advantages, returns=returns, metrics=metrics)
