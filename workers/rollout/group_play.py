"""Sample one group in a rollout worker: draw every sibling, play it to its end, and score it.

`GroupPlay.run` returns all siblings as trajectories; a caller that cancels `run` finds in `drawing`
the requests that the engine still holds. With an `EarlyStop`, siblings that can no longer change
the group's verdict are stopped while they are drawn; such siblings are trajectories without a
reward. A sample that the engine did not finish is never scored, and neither is one whose
environment failed. The module knows neither the algorithm nor the step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from workers.data.prompts import PromptEncoder
from workers.data.requests import GroupRequest, Sample
from workers.data.trajectory import STOPPED_EARLY, Trajectory
from workers.engines.vllm.answers import UnusableAnswerError
from workers.engines.vllm.engine import VLLMEngine
from workers.reward.base import RewardResult, RewardSample
from workers.reward.client import RewardClient
from workers.reward.siblings import SiblingScores
from workers.rollout.early_stop import EarlyStop
from workers.rollout.environments.guarded_play import EnvironmentFaultError, play_guarded
from workers.rollout.environments.single_turn import Environment, Interaction
from workers.spans import SpanLog


@dataclass(frozen=True, kw_only=True)
class RolloutContext:
    """Parts that all groups of one worker share."""

    run_id: str
    engine: VLLMEngine
    encoder: PromptEncoder
    environment: Environment
    environment_s: float  # longest time that an environment takes beside its draws, in seconds
    rewards: RewardClient
    early_stop: EarlyStop | None
    spans: SpanLog
    scores_together: bool = False  # True if the scorer wants all siblings in one call
    include_prefill: bool = False  # the scorer sees what the template opened of the response


class _StoppedError(Exception):
    """A turn that the environment asked for after its sibling was stopped."""


class GroupPlay:
    """Siblings of one prompt, from the first token to the last score.

    Args:
        request: the samples that are wanted.
        context: engine, environment and rewards of the worker.

    Attributes:
        drawing: ids of the requests that are with the engine.
    """

    def __init__(self, request: GroupRequest, context: RolloutContext) -> None:
        self._request, self._context = request, context
        self.drawing: set[str] = set()
        self._rewards: list[float] = []
        self._left = request.num_samples  # siblings without an outcome
        self._scores = SiblingScores(
            context.rewards, num_samples=request.num_samples, together=context.scores_together
        )
        self._stopped = False

    async def run(self) -> list[Trajectory]:
        """Sample and score all siblings; return them in order."""
        request = self._request
        prompt_tokens, fault = self._context.encoder.encode(request.prompt)
        siblings = range(request.num_samples)
        if fault is not None:
            nothing = _prompt_only(prompt_tokens)
            return [
                self._unscored(k, nothing, f"dropped:{request.prompt_uid}: {fault}")
                for k in siblings
            ]
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
            with self._context.spans.doing("environment"):
                played = await play_guarded(
                    self._context.environment,
                    prompt_tokens,
                    draw,
                    limit_s=self._context.environment_s,
                )
        except _StoppedError:
            played = _prompt_only(prompt_tokens)
        except UnusableAnswerError as fault:
            self._left -= 1
            await self._scores.leave_out()
            return self._unscored(k, _prompt_only(prompt_tokens), f"failed:{fault}")
        except EnvironmentFaultError as fault:
            self._left -= 1
            await self._scores.leave_out()
            outcome = f"failed:{self._request.prompt_uid}: {fault}"
            return self._unscored(k, _prompt_only(prompt_tokens), outcome)
        drawn = time.perf_counter()
        if played.finish_reason == "abort":
            self._left -= 1
            await self._scores.leave_out()
            return self._unscored(
                k, played, STOPPED_EARLY if self._stopped else "failed:engine aborted"
            )
        result = await self._score(k, played)
        timings = {"generate": drawn - began, "reward": time.perf_counter() - drawn}
        await self._stop_if_settled(result)
        return self._trajectory(k, played, result, timings)

    async def _draw(self, k: int, turn: int, tokens: list[int]) -> Sample:
        request_id = f"{self._request.group_id}/{k}/{turn}"
        self.drawing.add(request_id)
        try:
            with self._context.spans.doing("generate"):
                return await self._context.engine.generate(
                    tokens,
                    request_id=request_id,
                    sampling=self._request.sampling,
                    seed=self._request.seed + k,
                )
        finally:
            self.drawing.discard(request_id)

    async def _score(self, k: int, played: Interaction) -> RewardResult:
        context, prompt = self._context, self._request.prompt
        opened = context.encoder.prefill(prompt) if context.include_prefill else ""
        finished = RewardSample(
            prompt=context.encoder.text(prompt),
            response=opened + played.response_text,
            ground_truth=self._request.ground_truth,
            columns=dict(self._request.columns),
            messages=() if isinstance(prompt, str) else tuple(prompt),
        )
        with self._context.spans.doing("wait_for_reward"):
            return await self._scores.score(k, finished)

    async def _stop_if_settled(self, result: RewardResult) -> None:
        """Count a result; stop the siblings still being drawn if the verdict is settled."""
        self._left -= 1
        if result.reward is not None:
            self._rewards.append(result.reward)
        rule = self._context.early_stop if self._request.may_stop_early else None
        if rule is None or self._stopped or not rule(self._rewards, self._left):
            return
        self._stopped = True
        if self.drawing:
            await self._context.engine.abort(sorted(self.drawing))

    def _unscored(self, k: int, played: Interaction, outcome: str) -> Trajectory:
        result = RewardResult(outcome=outcome, reward=None, parts={}, seconds=0.0)
        return self._trajectory(k, played, result, {})

    def _trajectory(
        self, k: int, played: Interaction, result: RewardResult, timings: Mapping[str, float]
    ) -> Trajectory:
        request = self._request
        return Trajectory(
            run_id=self._context.run_id,
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
            reward_notes=result.notes,
            num_turns=played.num_turns,
            response_text=played.response_text,
            timings=timings,
        )


def _prompt_only(prompt_tokens: list[int]) -> Interaction:
    """Return an aborted interaction that holds the P tokens of the prompt and no response."""
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
