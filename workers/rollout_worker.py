"""The rollout role: one vLLM engine in a Ray actor, with its environment and its way to rewards.

Data flows one way: `submit` takes groups of prompts, every sample is drawn, played to its end and
scored as soon as it finishes, and `collect` hands finished groups out, metadata to the driver and
one Arrow record batch to the object store. Weights arrive through vLLM's own weight-transfer calls,
at any time. The worker knows neither the algorithm nor the step.
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pyarrow as pa
import ray.util

from workers.engines.vllm_engine import Sample, VLLMEngine, VLLMSettings
from workers.environments.single_turn import Environment
from workers.prompts import PromptEncoder
from workers.requests import Collected, GroupRequest
from workers.reward_client import RewardClient
from workers.rewards.base import RewardSample
from workers.spans import Recorded, SpanLog
from workers.trajectory import Trajectory, describe, to_record_batch


class RolloutWorker:
    """One engine: prompts in, scored trajectories out."""

    def __init__(
        self,
        *,
        run_id: str,
        settings: VLLMSettings,
        max_prompt_tokens: int,
        environment: Environment,
        reward_timeout_s: float,
    ) -> None:
        self._run_id = run_id
        self._engine = VLLMEngine(settings)
        self._encoder = PromptEncoder(settings.model_path, max_prompt_tokens)
        self._environment = environment
        self._reward_timeout_s = reward_timeout_s
        self._rewards: RewardClient
        self._finished: asyncio.Queue[list[Trajectory]] = asyncio.Queue()
        self._groups: dict[str, asyncio.Task[None]] = {}
        self.spans = SpanLog()

    async def start(self, version: int, reward_workers: list[Any]) -> str:
        """Load the model, whose weights are called `version`; return this node's address.

        Args:
            version: label until the first publication.
            reward_workers: handles of who scores.
        """
        self._rewards = RewardClient(reward_workers, timeout_s=self._reward_timeout_s)
        # What was asked of this worker before, by a driver that did not yet know of its death, was
        # given to others since.
        self._groups.clear()
        self._finished = asyncio.Queue()
        await self._engine.start(version)
        # A full collection over all that the engine imported would stall sampling for 0.3 s, again
        # and again; what lives now lives until the end.
        gc.collect()
        gc.freeze()
        return ray.util.get_node_ip_address()

    async def submit(self, requests: list[GroupRequest], together: bool) -> None:
        """Begin to sample, all in one batch or as they come; returns when all have begun."""
        if not together:
            self._begin(requests)
            return
        async with self._engine.together(sum(request.num_samples for request in requests)):
            self._begin(requests)

    def _begin(self, requests: list[GroupRequest]) -> None:
        for request in requests:
            task = asyncio.get_running_loop().create_task(self._sample_group(request))
            self._groups[request.group_id] = task

    async def collect(self, wait_s: float) -> tuple[Collected, pa.RecordBatch]:
        """Groups that finished, at least one unless `wait_s` passes first.

        Raises:
            EngineDiedError: the engine's own process is gone.
            Exception: what ended the sampling of a group.
        """
        groups: list[list[Trajectory]] = []
        try:
            groups.append(await asyncio.wait_for(self._finished.get(), wait_s))
        except TimeoutError:
            self._engine.check_health()
            self._raise_failures()
        while not self._finished.empty():
            groups.append(self._finished.get_nowait())
        trajectories = [trajectory for group in groups for trajectory in group]
        metas = [describe(trajectory) for trajectory in trajectories]
        collected = Collected(metas=metas, load=self._engine.load())
        return collected, to_record_batch(trajectories)

    def _raise_failures(self) -> None:
        for task in self._groups.values():
            if task.done() and (error := task.exception()) is not None:
                raise error

    async def _sample_group(self, request: GroupRequest) -> None:
        prompt_tokens, fault = self._encoder.encode(request.prompt)
        if fault is not None:
            siblings = [
                self._unsampled(request, k, prompt_tokens, fault)
                for k in range(request.num_samples)
            ]
        else:
            siblings = await asyncio.gather(
                *(self._sample(request, k, prompt_tokens) for k in range(request.num_samples))
            )
        self._finished.put_nowait(siblings)
        del self._groups[request.group_id]

    async def _sample(self, request: GroupRequest, k: int, prompt_tokens: list[int]) -> Trajectory:
        rollout_id = f"{request.group_id}/{k}"
        turn = 0

        async def draw(tokens: list[int]) -> Sample:
            nonlocal turn
            turn += 1
            with self.spans.doing("generate"):
                return await self._engine.generate(
                    tokens,
                    request_id=f"{rollout_id}/{turn}",
                    sampling=request.sampling,
                    seed=request.seed + k,
                )

        began = time.perf_counter()
        with self.spans.doing("environment"):
            played = await self._environment.play(prompt_tokens, draw)
        drawn = time.perf_counter()
        finished = RewardSample(
            prompt=self._encoder.text(request.prompt),
            response=played.response_text,
            ground_truth=request.ground_truth,
            columns=dict(request.columns),
        )
        with self.spans.doing("wait_for_reward"):
            result = await self._rewards.score(finished)
        return Trajectory(
            run_id=self._run_id,
            step=request.step,
            prompt_uid=request.prompt_uid,
            group_id=request.group_id,
            rollout_id=rollout_id,
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
            timings={"generate": drawn - began, "reward": time.perf_counter() - drawn},
        )

    def _unsampled(
        self, request: GroupRequest, k: int, prompt_tokens: list[int], fault: str
    ) -> Trajectory:
        length = len(prompt_tokens)
        return Trajectory(
            run_id=self._run_id,
            step=request.step,
            prompt_uid=request.prompt_uid,
            group_id=request.group_id,
            rollout_id=f"{request.group_id}/{k}",
            dataset=request.dataset,
            tokens=prompt_tokens,
            loss_mask=[False] * length,
            rollout_logprobs=[0.0] * length,
            weight_versions=[-1] * length,
            finish_reason="abort",
            outcome=f"dropped:{fault}",
            reward=None,
        )

    async def attest(
        self, probe: list[list[int]]
    ) -> tuple[int, dict[str, list[int]], list[list[float]]]:
        """Evidence after a publication: version, fingerprints that arrived, probe log-probs."""
        calls = (
            self._engine.prompt_logprobs(tokens, request_id=f"probe/{number}")
            for number, tokens in enumerate(probe)
        )
        with self.spans.doing("attest"):
            version, received, logprobs = await asyncio.gather(
                self._engine.version(), self._engine.attest_received(), asyncio.gather(*calls)
            )
        return version, received, logprobs

    async def encode(self, prompts: list[Any]) -> list[list[int]]:
        """Token ids of some prompts, for choosing a probe."""
        return [self._encoder.encode(prompt)[0] for prompt in prompts]

    async def engine_call(self, method: str, *args: Any) -> Any:
        """One of the engine's methods for weights, attestation or sleep, by name."""
        with self.spans.doing("switch" if method in ("sleep", "wake") else "publish"):
            return await getattr(self._engine, method)(*args)

    async def take_spans(self) -> Recorded:
        """What this engine did since the last call."""
        return self.spans.take()

    async def shutdown(self) -> None:
        """End the engine and what it started."""
        for task in self._groups.values():
            task.cancel()
        await self._engine.shutdown()
