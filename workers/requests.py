"""What the driver asks of a rollout worker, samples of one prompt, and what it hears back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.concurrency import EngineLoad
from workers.engines.vllm_settings import Sampling
from workers.trajectory import TrajectoryMeta


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
    may_stop_early: bool = False  # siblings that no longer matter may be stopped


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """A worker's heartbeat: what finished since the last, and how its engine fares."""

    metas: Sequence[TrajectoryMeta]  # of whole groups, siblings beside each other
    load: EngineLoad
