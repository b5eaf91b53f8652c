"""What the driver asks of a rollout worker: samples of one prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.engines.vllm_settings import Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRequest:
    """Samples wanted of one prompt."""

    group_id: str
    prompt_uid: str
    step: int
    dataset: str
    prompt: str | list[dict[str, str]]  # text, or chat messages
    ground_truth: str | None
    num_samples: int
    seed: int  # of the first sample; sibling k draws with seed + k
    sampling: Sampling
    columns: Mapping[str, Any] = field(default_factory=dict)  # handed to the reward
