"""Filters: the choice of groups and sequences that train.

Dynamic sampling and overlong filtering. Runs in the driver. Not reward shaping, see
:mod:`algorithms.rewards`. Shapes: S sequences, G groups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.inputs import RewardInputs
from algorithms.parts import Filter
from algorithms.segments import num_segments, segment_max


@dataclass(frozen=True, kw_only=True)
class DynamicSampling(Filter):
    """Filter that keeps the groups whose rewards differ. DAPO (2503.14476) Eq. 11.

    A group of equal rewards has no group-relative advantage. "Differ" is max > min, not a standard
    deviation above zero, which rounding can produce from equal rewards. The framework samples more
    prompts for the dropped ones; the test is on rewards before shaping.

    Attributes:
        part: reward part to compare in place of the whole reward, such as "accuracy" while a
            composite reward trains; "" for the whole.
    """

    part: str = ""

    def keep_groups(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        """Mark the groups to keep [G] bool, from `rewards` [S] and `group_ids` [S] in 0..G-1."""
        num = num_segments(group_ids)
        highest = segment_max(rewards, group_ids, num, -torch.inf)
        lowest = -segment_max(-rewards, group_ids, num, -torch.inf)
        return highest > lowest

    def settled(self, rewards: Tensor, num_left: int) -> bool:
        """Return True once two rewards differ; equal rewards decide nothing before the end."""
        return num_left == 0 or bool(rewards.max() > rewards.min())


@dataclass(frozen=True, kw_only=True)
class OverlongFilter(Filter):
    """Filter of truncated responses, which do not train. DAPO (2503.14476) section 3.4.

    The rewards of truncated responses still count in the group's statistics; their tokens leave the
    loss mask, and so the token counts of the aggregation. Distinct from overlong SHAPING, which
    penalises length.
    """

    def trains(self, inputs: RewardInputs) -> Tensor:
        """Mark the sequences that were not truncated [S] bool."""
        return ~inputs.truncated
