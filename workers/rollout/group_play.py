"""Sample one group in a rollout worker: draw every sibling, play it to its end, and score it.

`GroupPlay.run` returns all siblings as trajectories; a caller that cancels `run` finds in `drawing`
the requests that the engine still holds. With an `EarlyStop`, siblings that can no longer change
the group's verdict are stopped while they are drawn; such siblings are trajectories without a
reward. A sample that the engine did not finish is never scored, and neither is one whose
environment failed; the turns that were finished are recorded. The module knows neither the
algorithm nor the step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from workers.data.images.decoding import ImageFaultError
from workers.data.images.prompt_images import NO_IMAGES, PromptImages
from workers.data.prompts import PromptEncoder
from workers.data.requests import GroupRequest, Sample, Sampling
from workers.data.trajectory import SCORED, STOPPED_EARLY, Trajectory, recordable
from workers.engines.vllm.answers import UnusableAnswerError
from workers.engines.vllm.engine import VLLMEngine
from workers.reward.base import RewardResult, RewardSample
from workers.reward.client import RewardClient
from workers.reward.siblings import SiblingScores
from workers.rollout.early_stop import EarlyStop
from workers.rollout.environments.contract import Outcome, SpentError, Task
from workers.rollout.environments.guarded_play import (
    EnvironmentClock,
    EnvironmentFaultError,
    play_guarded,
)
from workers.rollout.environments.unended import Unended
from workers.rollout.limits import BoundedEnvironment
from workers.rollout.session import AbortedError, Rollout
from workers.rollout.turn_texts import TurnTexts
from workers.spans import SpanLog


@dataclass(frozen=True, kw_only=True)
class RolloutContext:
    """Parts that all groups of one worker share."""

    run_id: str
    engine: VLLMEngine
    encoder: PromptEncoder
    texts: TurnTexts
    environments: Mapping[str, BoundedEnvironment]  # by the key of a request; "": the run's
    rewards: RewardClient
    early_stop: EarlyStop | None
    spans: SpanLog
    unended: Unended = field(default_factory=Unended)
    scores_together: bool = False  # True if the scorer wants all siblings in one call
    include_prefill: bool = False  # the scorer sees what the template opened of the response
    images_for_reward: bool = False  # the scorer gets the files of the prompt's images


class GroupPlay:
    """Siblings of one prompt, from the first token to the last score.

    Args:
        request: the samples that are wanted.
        context: engine, environments and rewards of the worker.

    Attributes:
        drawing: ids of the requests that are with the engine.
    """

    def __init__(self, request: GroupRequest, context: RolloutContext) -> None:
        self._request, self._context = request, context
        self._bounded = context.environments[request.environment]
        self.drawing: set[str] = set()
        self._rewards: list[float] = []
        self._left = request.num_samples  # siblings without an outcome
        self._scores = SiblingScores(
            context.rewards, num_samples=request.num_samples, together=context.scores_together
        )
        self._stopped = False
        self._images = NO_IMAGES

    async def run(self) -> list[Trajectory]:
        """Sample and score all siblings; return their rows, in the order of the siblings."""
        request = self._request
        prompt_tokens, self._images, fault = await self._read_prompt()
        siblings = range(request.num_samples)
        if fault is not None:
            outcome = f"dropped:{request.prompt_uid}: {fault}"
            plays = [self._open(k, prompt_tokens)[0] for k in siblings]
            rows = [self._unscored(k, play, outcome) for k, play in enumerate(plays)]
        else:
            rows = await asyncio.gather(*(self._sibling(k, prompt_tokens) for k in siblings))
        return [row for own in rows for row in own]

    async def _read_prompt(self) -> tuple[list[int], PromptImages, str | None]:
        """Return the prompt's tokens, its images, and the reason against sampling, or None."""
        request, encoder = self._request, self._context.encoder
        if not request.images:
            tokens, fault = encoder.encode(request.prompt)
            return tokens, NO_IMAGES, fault
        try:  # in a thread: decoding takes the time of many tokens
            loaded = await asyncio.to_thread(encoder.load, request.images)
        except ImageFaultError as fault:
            return [], NO_IMAGES, str(fault)
        return encoder.encode_shown(request.prompt, loaded)

    def _open(self, k: int, prompt_tokens: list[int]) -> tuple[Rollout, EnvironmentClock]:
        """Return the rollout of a sibling before its first turn, and its clock."""
        context, limits = self._context, self._bounded.limits
        clock = EnvironmentClock(stretch_s=limits.stretch_s, total_s=limits.total_s)

        async def sample(
            tokens: list[int], turn: int, sampling: Sampling, images: PromptImages
        ) -> Sample:
            if self._stopped:
                raise AbortedError("the sibling was stopped between two turns")
            return await self._draw(k, turn, tokens, sampling, images)

        rollout = Rollout(
            self._task(k),
            prompt_tokens,
            sampling=self._request.sampling,
            limits=limits,
            texts=context.texts,
            sample=sample,
            clock=clock,
            images=self._images,
        )
        return rollout, clock

    def _task(self, k: int) -> Task:
        request = self._request
        return Task(
            uid=request.prompt_uid,
            prompt=request.prompt,
            ground_truth=request.ground_truth,
            columns=request.columns,
            sibling=k,
        )

    async def _sibling(self, k: int, prompt_tokens: list[int]) -> list[Trajectory]:
        rollout, clock = self._open(k, prompt_tokens)
        began = time.perf_counter()
        try:
            with self._context.spans.doing("environment"):
                ended = await play_guarded(
                    self._bounded.environment,
                    self._task(k),
                    rollout.first,
                    clock,
                    self._context.unended,
                )
        except SpentError:
            ended = Outcome()
        except (AbortedError, UnusableAnswerError, EnvironmentFaultError) as fault:
            self._left -= 1
            await self._scores.leave_out()
            return self._unscored(k, rollout, self._outcome_of(fault))
        drawn = time.perf_counter()
        result = await self._score(k, rollout, ended)
        timings = {"generate": drawn - began, "reward": time.perf_counter() - drawn}
        await self._stop_if_settled(result)
        return self._trajectories(k, rollout, ended, result, timings)

    def _outcome_of(self, fault: Exception) -> str:
        """Return the outcome of a sibling that a fault ended."""
        if isinstance(fault, AbortedError):
            return STOPPED_EARLY if self._stopped else "failed:engine aborted"
        if isinstance(fault, EnvironmentFaultError):
            return f"failed:environment:{fault}"
        return f"failed:{fault}"

    async def _draw(
        self, k: int, turn: int, tokens: list[int], sampling: Sampling, images: PromptImages
    ) -> Sample:
        request_id = f"{self._request.group_id}/{k}/{turn}"
        self.drawing.add(request_id)
        try:
            with self._context.spans.doing("generate"):
                return await self._context.engine.generate(
                    tokens,
                    request_id=request_id,
                    sampling=sampling,
                    seed=turn_seed(self._request.seed + k, turn),
                    images=images,
                )
        finally:
            self.drawing.discard(request_id)

    async def _score(self, k: int, rollout: Rollout, ended: Outcome) -> RewardResult:
        """Return the environment's own reward, or that of the scorer."""
        if ended.reward is not None:
            await self._scores.leave_out()
            return RewardResult(
                outcome=SCORED, reward=float(ended.reward), parts=ended.parts, notes=ended.notes
            )
        context, prompt = self._context, self._request.prompt
        opened = context.encoder.prefill(prompt) if context.include_prefill else ""
        finished = RewardSample(
            prompt=context.encoder.text(prompt),
            response=opened + _response(rollout, ended),
            ground_truth=self._request.ground_truth,
            columns=dict(self._request.columns),
            messages=() if isinstance(prompt, str) else tuple(prompt),
            images=tuple(image.file for image in self._images.loaded)
            if context.images_for_reward
            else None,
        )
        with self._context.spans.doing("wait_for_reward"):
            result = await self._scores.score(k, finished)
        return replace(
            result,
            parts={**ended.parts, **result.parts},
            notes={**ended.notes, **result.notes},
        )

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

    def _unscored(self, k: int, rollout: Rollout, outcome: str) -> list[Trajectory]:
        """Return the rows of a sibling without a reward; its finished turns are among them."""
        result = RewardResult(outcome=outcome, reward=None)
        return self._trajectories(k, rollout, None, result, {})

    def _history_notes(self, rollout: Rollout) -> dict[str, str]:
        """Return a note where the ids of several turns are not those of the rendered history."""
        drops = self._context.texts.drops(self._request.prompt) if len(rollout.turns) > 1 else ()
        return {"template_drops": ", ".join(drops)} if drops else {}

    def _trajectories(
        self,
        k: int,
        rollout: Rollout,
        ended: Outcome | None,
        result: RewardResult,
        timings: Mapping[str, float],
    ) -> list[Trajectory]:
        """Return the rows of a sibling; `ended` is None where its environment came to no end."""
        request = self._request
        parts = {recordable(name): value for name, value in result.parts.items()}
        notes = {**self._history_notes(rollout), **result.notes}
        return [
            Trajectory(
                run_id=self._context.run_id,
                begun_version=request.begun_version,
                prompt_uid=request.prompt_uid,
                group_id=request.group_id,
                rollout_id=f"{request.group_id}/{k}",
                branch=row.branch,
                dataset=request.dataset,
                tokens=row.tokens,
                loss_mask=row.loss_mask,
                rollout_logprobs=row.rollout_logprobs,
                weight_versions=row.weight_versions,
                finish_reason="abort" if ended is None else rollout.finish_reason,
                outcome=recordable(result.outcome),
                reward=result.reward,
                reward_parts=parts,
                reward_notes={recordable(name): recordable(text) for name, text in notes.items()},
                num_turns=len(rollout.turns),
                turns=row.turns,
                response_text=recordable(_response(rollout, ended)),
                timings=timings,
                images=row.images.spans,
                image_files=[image.file for image in row.images.loaded],
            )
            for row in rollout.rows(() if ended is None else ended.turn_rewards)
        ]


def _response(rollout: Rollout, ended: Outcome | None) -> str:
    """Return the text that the scorer sees: the environment's choice, or all turns."""
    if ended is None or ended.response is None:
        return rollout.text
    return ended.response


def turn_seed(seed: int, turn: int) -> int:
    """Return the seed of a turn: that of the sample for the first, another for every later one."""
    if turn == 1:
        return seed
    return int(np.random.SeedSequence([seed, turn]).generate_state(1)[0]) >> 1
