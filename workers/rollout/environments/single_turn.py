"""Play one prompt and one response: the environment of verifiable questions.

An environment plays one trajectory in the rollout worker: it chooses the tokens that the engine
continues, any number of times, and returns token-aligned columns. An environment neither scores nor
touches weights.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from workers.data.requests import Sample

Draw = Callable[[list[int]], Awaitable[Sample]]  # tokens so far -> the policy's continuation


@dataclass(frozen=True, kw_only=True, slots=True)
class Interaction:
    """Token-aligned columns of one finished interaction, L tokens.

    Example, a prompt of two tokens and a response of two:
        Interaction(
            tokens=[52, 61, 55, 2],
            loss_mask=[False, False, True, True],
            rollout_logprobs=[0.0, 0.0, -0.31, -0.02],
            weight_versions=[-1, -1, 7, 7],
            finish_reason="stop",
            response_text="5",
            num_turns=1,
        )
    """

    tokens: list[int]  # [L]
    loss_mask: list[bool]  # [L]
    rollout_logprobs: list[float]  # [L]
    weight_versions: list[int]  # [L]
    finish_reason: str
    response_text: str
    num_turns: int


class Environment(Protocol):
    """Interface of an environment, as the rollout worker uses it."""

    async def play(self, prompt_tokens: list[int], draw: Draw) -> Interaction:
        """Play one trajectory that starts with `prompt_tokens`.

        Args:
            prompt_tokens: token ids of the prompt.
            draw: samples a continuation of the tokens so far; may be awaited several times.
        """


@dataclass(frozen=True, kw_only=True)
class SingleTurn:
    """Environment of one turn: every sampled token trains, no prompt token does."""

    async def play(self, prompt_tokens: list[int], draw: Draw) -> Interaction:
        """Draw one response and join it to the prompt."""
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
