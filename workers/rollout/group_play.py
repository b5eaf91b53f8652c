"""One group while it is sampled: every sibling is drawn, played to its end and scored.

A `GroupPlay` belongs to a rollout worker: `run` returns all siblings as trajectories, and whoever
cancels it finds in `drawing` what the engine still holds. With an `EarlyStop`, siblings that can no
longer change the group's verdict are stopped while they are drawn; they are trajectories without a
reward. What an engine was made to leave unfinished is never scored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from workers.data.prompts import PromptEncoder
from workers.data.requests import GroupRequest, Sample
from workers.data.trajectory import STOPPED_EARLY, Trajectory
from workers.engines.vllm.answers import UnusableAnswerError
from workers.engines.vllm.engine import VLLMEngine
from workers.reward.base import RewardResult, RewardSample
from workers.reward.client import RewardClient
from workers.rollout.environments.single_turn import Environment, Interaction
from workers.spans import SpanLog


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """When the siblings that are still being drawn can be spared.

    Attributes:
        settled: (rewards of the scored siblings, how many more may come) -> whether the verdict on
            the group is the same whatever these bring.
        min_samples: siblings that must be scored before.
    """

    settled: Callable[[Sequence[float], int], bool]
    min_samples: int

    def __call__(self, rewards: Sequence[float], num_left: int) -> bool:
        """Whether to stop the rest."""
        return len(rewards) >= self.min_samples and self.settled(rewards, num_left)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What every group of a worker is played on."""

    run_id: str
    engine: VLLMEngine
    encoder: PromptEncoder
    environment: Environment
    rewards: RewardClient
    early_stop: EarlyStop | None
    spans: SpanLog


class _StoppedError(Exception):
    """The environment asks for another turn of a sibling that is to stop."""


class GroupPlay:
    """The siblings of one prompt, from the first token to the last score.

    Attributes:
        drawing: ids of the requests that are with the engine.
    """

    def __init__(self, request: GroupRequest, stage: Stage) -> None:
        self._request, self._stage = request, stage
        self.drawing: set[str] = set()
        self._rewards: list[float] = []
        self._left = request.num_samples  # siblings without an outcome
        self._stopped = False

    async def run(self) -> list[Trajectory]:
        """All siblings, in order."""
        request = self._request
        prompt_tokens, fault = self._stage.encoder.encode(request.prompt)
        siblings = range(request.num_samples)
        if fault is not None:
            nothing = _undrawn(prompt_tokens)
            return [self._unscored(k, nothing, f"dropped:{fault}") for k in siblings]
        return list(await asyncio.gather(*(self._sibling(k, prompt_tokens) for k in siblings)))

    async def _sibling(self, k: int, prompt_tokens: list[int]) -> Trajectory:
        turn = 0

        async def draw(tokens: list[int]) -> Sample:
            nonlocal turn
            if self._stopped:
                raise _StoppedError
            turn += 1
            return await self._draw(k, turn, tokens)

        began = time.perf_counter()
        try:
            with self._stage.spans.doing("environment"):
                played = await self._stage.environment.play(prompt_tokens, draw)
        except _StoppedError:
            played = _undrawn(prompt_tokens)
        except UnusableAnswerError as fault:
            self._left -= 1
            return self._unscored(k, _undrawn(prompt_tokens), f"failed:{fault}")
        drawn = time.perf_counter()
        if played.finish_reason == "abort":
            self._left -= 1
            return self._unscored(
                k, played, STOPPED_EARLY if self._stopped else "failed:engine aborted"
            )
        result = await self._score(played)
        timings = {"generate": drawn - began, "reward": time.perf_counter() - drawn}
        await self._consider(result)
        return self._trajectory(k, played, result, timings)

    async def _draw(self, k: int, turn: int, tokens: list[int]) -> Sample:
        request_id = f"{self._request.group_id}/{k}/{turn}"
        self.drawing.add(request_id)
        try:
            with self._stage.spans.doing("generate"):
                return await self._stage.engine.generate(
                    tokens,
                    request_id=request_id,
                    sampling=self._request.sampling,
                    seed=self._request.seed + k,
                )
        finally:
            self.drawing.discard(request_id)

    async def _score(self, played: Interaction) -> RewardResult:
        finished = RewardSample(
            prompt=self._stage.encoder.text(self._request.prompt),
            response=played.response_text,
            ground_truth=self._request.ground_truth,
            columns=dict(self._request.columns),
        )
        with self._stage.spans.doing("wait_for_reward"):
            return await self._stage.rewards.score(finished)

    async def _consider(self, result: RewardResult) -> None:
        """Stop the siblings that are still being drawn, if the verdict no longer needs them."""
        self._left -= 1
        if result.reward is not None:
            self._rewards.append(result.reward)
        rule = self._stage.early_stop if self._request.may_stop_early else None
        if rule is None or self._stopped or not rule(self._rewards, self._left):
            return
        self._stopped = True
        if self.drawing:
            await self._stage.engine.abort(sorted(self.drawing))

    def _unscored(self, k: int, played: Interaction, outcome: str) -> Trajectory:
        result = RewardResult(outcome=outcome, reward=None, parts={}, seconds=0.0)
        return self._trajectory(k, played, result, {})

    def _trajectory(
        self, k: int, played: Interaction, result: RewardResult, timings: Mapping[str, float]
    ) -> Trajectory:
        request = self._request
        return Trajectory(
            run_id=self._stage.run_id,
            begun_version=request.begun_version,
            prompt_uid=request.prompt_uid,
            group_id=request.group_id,
            rollout_id=f"{request.group_id}/{k}",
            dataset=request.dataset,
            tokens=played.tokens,
            loss_mask=played.loss_mask,
            rollout_logprobs=played.rollout_logprobs,
            weight_versions=played.weight_versions,
            finish_reason=played.finish_reason,
            outcome=result.outcome,
            reward=result.reward,
            reward_parts=result.parts,
            num_turns=played.num_turns,
            response_text=played.response_text,
            timings=timings,
        )


def _undrawn(prompt_tokens: list[int]) -> Interaction:
    """A prompt of P tokens to which nothing was said."""
    length = len(prompt_tokens)
    return Interaction(
        tokens=prompt_tokens,
        loss_mask=[False] * length,
        rollout_logprobs=[0.0] * length,
        weight_versions=[-1] * length,
        finish_reason="abort",
        response_text="",
        num_turns=1,
    )
