"""One prompt, one response: the environment of verifiable questions.

An environment plays one trajectory in the rollout worker. It decides what the engine is asked, as
often as it likes, and returns token-aligned columns. It neither scores nor touches weights.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from workers.data.requests import Sample

Draw = Callable[[list[int]], Awaitable[Sample]]  # tokens so far -> what the policy says next


@dataclass(frozen=True, kw_only=True, slots=True)
class Interaction:
    """Token-aligned columns of one finished interaction, L tokens."""

    tokens: list[int]  # [L]
    loss_mask: list[bool]  # [L]
    rollout_logprobs: list[float]  # [L]
    weight_versions: list[int]  # [L]
    finish_reason: str
    response_text: str
    num_turns: int


class Environment(Protocol):
    """What the rollout worker asks of an environment."""

    async def play(self, prompt_tokens: list[int], draw: Draw) -> Interaction:
        """One trajectory that starts with `prompt_tokens`."""


@dataclass(frozen=True, kw_only=True)
class SingleTurn:
    """Every sampled token trains; no prompt token does."""

    async def play(self, prompt_tokens: list[int], draw: Draw) -> Interaction:
        """Prompt and one response side by side."""
        sample = await draw(prompt_tokens)
        num_prompt, num_response = len(prompt_tokens), len(sample.tokens)
        return Interaction(
            tokens=[*prompt_tokens, *sample.tokens],
            loss_mask=[False] * num_prompt + [True] * num_response,
            rollout_logprobs=[0.0] * num_prompt + list(sample.logprobs),
            weight_versions=[-1] * num_prompt + list(sample.weight_versions),
            finish_reason=sample.finish_reason,
            response_text=sample.text,
            num_turns=1,
        )
