"""Define the request for samples of one prompt, and the answers of a rollout worker.

The driver builds requests, rollout workers answer them. Plain data: nothing is sampled here, and
the tokens of finished samples travel in record batches (`trajectory.py`) beside these records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.data.trajectory import TrajectoryMeta


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Settings by which one response is sampled.

    Example:
        Sampling(temperature=1.0, max_tokens=64, stop_token_ids=(2,))

    Attributes:
        temperature: 0 is greedy. The learner must divide its logits by the same temperature.
        top_p, top_k, min_p: truncations; 1, 0 and 0 turn them off. A truncation renormalises the
            recorded log-probs, so that the learner no longer agrees with them.
        max_tokens: longest response, in tokens.
        min_tokens: no end token before this many.
        stop_token_ids: tokens that end a response besides the model's own end token.
        stop: strings that end a response; costs detokenisation while sampling.
        ignore_eos: sample on after the end token.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 256
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.temperature < 0.0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}; 1 turns it off")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sampled response of T tokens.

    Example, a response of two tokens during which new weights (version 8) arrived:
        Sample(
            tokens=[55, 2],
            logprobs=[-0.31, -0.02],
            weight_versions=[7, 8],
            finish_reason="stop",
            text="5",
        )

    Attributes:
        tokens: [T] token ids as sampled, the end token included if one was sampled.
        logprobs: [T] log-probabilities under the processed distribution that was sampled from.
        weight_versions: [T] the weight version that sampled each token.
        finish_reason: "stop", "length" or "abort".
        text: the response, without special tokens unless `VLLMSettings.keep_special_tokens`; empty
            if the engine has no tokenizer.
    """

    tokens: list[int]
    logprobs: list[float]
    weight_versions: list[int]
    finish_reason: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLoad:
    """Load of one engine's scheduler between two reports.

    Example:
        EngineLoad(steps=120, kv_usage=0.63, waiting=4, preemptions=0)

    Attributes:
        steps: scheduler steps that the report covers; with 0 the other fields mean nothing.
        kv_usage: largest share of the key/value blocks in use, 0 to 1.
        waiting: fewest requests that waited inside the engine: the standing queue, which a burst of
            arrivals does not make (the idea of CoDel, RFC 8289).
        preemptions: running requests that lost their keys and values to others.
    """

    steps: int = 0
    kv_usage: float = 0.0
    waiting: int = 0
    preemptions: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRequest:
    """Request for the samples of one prompt.

    Example, eight siblings of prompt 7 in epoch 0, begun under weight version 3:
        GroupRequest(
            group_id="0-7",
            prompt_uid="train:7",
            begun_version=3,
            dataset="add",
            prompt="2+3=",
            ground_truth="5",
            num_samples=8,
            seed=56,
            sampling=Sampling(temperature=1.0, max_tokens=64),
            columns={"level": 1},
            may_stop_early=True,
        )
    """

    group_id: str
    prompt_uid: str
    begun_version: int  # of the weights when the group is begun
    dataset: str
    prompt: str | list[dict[str, Any]]  # text, or chat messages
    ground_truth: str | list[str] | None  # of a list, any is right
    num_samples: int
    seed: int  # of the first sample; sibling k draws with seed + k
    sampling: Sampling
    columns: Mapping[str, Any] = field(default_factory=dict)  # handed to the reward
    may_stop_early: bool = False  # siblings that cannot change the group's verdict may be stopped
    images: tuple[str | bytes, ...] = ()  # of the prompt: path, on the engines' machines, or bytes
    environment: str = ""  # key of the one that plays the group; empty: the run's


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """Metadata of the groups that finished since the last answer, and the engine's load.

    Example, a group of two siblings:
        Collected(
            metas=[first, second], load=EngineLoad(steps=120, kv_usage=0.63, waiting=4)
        )
    """

    metas: Sequence[TrajectoryMeta]  # of whole groups, siblings beside each other
    load: EngineLoad
