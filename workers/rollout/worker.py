"""Run the rollout role: one vLLM engine in a Ray actor, with environments and a reward client.

Data flows one way: `submit` takes groups of prompts, each group is played (`group_play`), and
`collect` returns finished groups: metadata to the driver, one Arrow record batch to the object
store. Weights arrive through vLLM's own weight-transfer calls, at any time. The worker knows
neither the algorithm nor the step.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa
import ray.util

from workers.data.images.decoding import ImageFaultError
from workers.data.images.prompt_images import NO_IMAGES, PromptImages
from workers.data.probe import ProbeSequence
from workers.data.prompts import ChatTemplate, PromptEncoder
from workers.data.requests import Collected, GroupRequest
from workers.data.sources.source import Prompt
from workers.data.trajectory import Trajectory, describe, to_record_batch
from workers.engines.vllm.engine import EngineTimeoutError, VLLMEngine, VLLMSettings
from workers.importing import import_ahead
from workers.reward.client import RewardClient
from workers.reward.process import START_LIMIT_S
from workers.reward.worker import RewardWorker
from workers.rollout.early_stop import EarlyStop
from workers.rollout.environments.unended import Unended
from workers.rollout.group_play import GroupPlay, RolloutContext
from workers.rollout.limits import BoundedEnvironment
from workers.rollout.turn_texts import TurnTexts
from workers.spans import Activity, Recorded, SpanLog
from workers.worker_group import EngineDiedError, WorkerGroup


class RolloutWorker:
    """Rollout worker: one engine, prompts in, scored trajectories out."""

    def __init__(
        self,
        *,
        run_id: str,
        settings: VLLMSettings,
        max_prompt_tokens: int,
        environments: Mapping[str, BoundedEnvironment],
        reward_timeout_s: float,
        reward_start_s: float = START_LIMIT_S,
        reward_answer_s: float | None = None,
        template: ChatTemplate | None = None,
        scores_together: bool = False,
        include_prefill: bool = False,
        images_for_reward: bool = False,
        early_stop: EarlyStop | None = None,
        end_token_ids: Sequence[int] = (),
    ) -> None:
        import_ahead("vllm.v1.engine.async_llm")
        self._run_id = run_id
        self._engine = VLLMEngine(settings)
        self._encoder = PromptEncoder(
            settings.model_path, max_prompt_tokens, template, images=settings.images
        )
        self._texts = TurnTexts(self._encoder, end_token_ids=end_token_ids)
        self._environments = dict(environments)
        self._reward_timeout_s, self._reward_start_s = reward_timeout_s, reward_start_s
        self._reward_answer_s = reward_answer_s
        self._early_stop = early_stop
        self._scores_together, self._include_prefill = scores_together, include_prefill
        self._images_for_reward = images_for_reward and settings.images is not None
        self._context: RolloutContext
        self._finished: asyncio.Queue[list[Trajectory]] = asyncio.Queue()
        self._groups: dict[str, tuple[GroupPlay, asyncio.Task[None]]] = {}
        self._unended = Unended()
        self._fault: Exception | None = None  # what kept groups from beginning
        self.spans = SpanLog()

    async def start(self, version: int, rewards: WorkerGroup[RewardWorker]) -> str:
        """Load the model, whose weights are called `version`; return this node's address.

        What this process still holds of an engine that was given up is ended first.

        Args:
            version: label until the first publication.
            rewards: processes that score.
        """
        # Once: what the first call returns needs no preparation any more.
        for name, each in self._environments.items():
            self._environments[name] = await asyncio.to_thread(
                each.prepared, self._encoder.tokenizer
            )
        self._context = RolloutContext(
            run_id=self._run_id,
            engine=self._engine,
            encoder=self._encoder,
            texts=self._texts,
            environments=self._environments,
            rewards=RewardClient(
                rewards,
                timeout_s=self._reward_timeout_s,
                start_s=self._reward_start_s,
                answer_s=self._reward_answer_s,
            ),
            scores_together=self._scores_together,
            include_prefill=self._include_prefill,
            images_for_reward=self._images_for_reward,
            early_stop=self._early_stop,
            spans=self.spans,
            unended=self._unended,
        )
        # Groups that the driver submitted before it gave this engine up were submitted to other
        # workers since.
        await self.shutdown()
        self._groups.clear()
        self._fault = None
        self._finished = asyncio.Queue()
        await self._engine.start(version)
        # A full collection over all that the engine imported would stall sampling for 0.3 s, again
        # and again; the objects of this moment stay until the end.
        gc.collect()
        gc.freeze()
        return ray.util.get_node_ip_address()

    async def submit(self, requests: list[GroupRequest], together: bool) -> None:
        """Begin to sample groups, all in one batch or one by one; return when all have begun.

        The driver does not wait for this call: an error that keeps the groups from beginning is
        raised by `collect`.
        """
        if not together:
            self._begin(requests)
            return
        try:
            async with self._engine.together(sum(request.num_samples for request in requests)):
                self._begin(requests)
        except (EngineTimeoutError, EngineDiedError) as error:
            self._fault = error

    def _begin(self, requests: list[GroupRequest]) -> None:
        for request in requests:
            play = GroupPlay(request, self._context)
            task = asyncio.get_running_loop().create_task(self._play(request.group_id, play))
            self._groups[request.group_id] = (play, task)

    async def collect(self, wait_s: float) -> tuple[Collected, pa.RecordBatch]:
        """Return the finished groups, at least one unless `wait_s` passes first.

        Returns:
            Metadata with the engine's load, and one record batch with the rows of the metadata.

        Raises:
            EngineDiedError: the engine's own process is gone, or hung and was ended.
            RuntimeError: the engine gives no usable answer any more.
            Exception: the error that ended the sampling of a group.
        """
        groups: list[list[Trajectory]] = []
        try:
            groups.append(await asyncio.wait_for(self._finished.get(), wait_s))
        except TimeoutError:
            self._engine.check_health()
            await self._raise_failures()
        self._engine.answers.check()
        while not self._finished.empty():
            groups.append(self._finished.get_nowait())
        trajectories = [trajectory for group in groups for trajectory in group]
        metas = [describe(trajectory) for trajectory in trajectories]
        collected = Collected(metas=metas, load=self._engine.load())
        return collected, to_record_batch(trajectories)

    async def _raise_failures(self) -> None:
        ended = [task.exception() for _, task in self._groups.values() if task.done()]
        for error in (self._fault, *ended):
            if isinstance(error, EngineTimeoutError):
                await self._engine.shutdown()  # it hangs: what it holds is sampled again
                raise EngineDiedError(str(error)) from error
            if error is not None:
                raise error

    async def _play(self, group_id: str, play: GroupPlay) -> None:
        self._finished.put_nowait(await play.run())
        del self._groups[group_id]

    async def abort(self, group_ids: list[str]) -> None:
        """Abort groups; return when the engine holds none of their samples.

        None of the groups is collected afterwards, except in a `collect` that was answered already.
        """
        running = [self._groups.pop(name) for name in group_ids if name in self._groups]
        drawing = [request_id for play, _ in running for request_id in sorted(play.drawing)]
        for _, task in running:
            task.cancel()
        if drawing:
            async with self._calling("generate"):
                await self._engine.abort(drawing)
        if running:
            await asyncio.wait([task for _, task in running])
        finished = [self._finished.get_nowait() for _ in range(self._finished.qsize())]
        for siblings in finished:
            if siblings[0].group_id not in group_ids:
                self._finished.put_nowait(siblings)

    async def attest(
        self, probe: list[ProbeSequence]
    ) -> tuple[int, dict[str, list[int]], dict[str, list[list[int]]], list[list[float]]]:
        """Return evidence of a publication.

        Returns:
            Version, fingerprints of what arrived, blocks of the weights in use, probe log-probs.
        """
        calls = (
            self._engine.prompt_logprobs(
                one.tokens, request_id=f"probe/{number}", images=self._shown(one)
            )
            for number, one in enumerate(probe)
        )
        async with self._calling("attest"):
            version, received, used, logprobs = await asyncio.gather(
                self._engine.version(),
                self._engine.attest_received(),
                self._engine.attest_used(),
                asyncio.gather(*calls),
            )
        return version, received, used, logprobs

    def _shown(self, sequence: ProbeSequence) -> PromptImages:
        """Return the images of a sequence of a probe, with their pixels."""
        if not sequence.images:
            return NO_IMAGES
        loaded = tuple(self._encoder.load(sequence.files))
        return PromptImages(
            spans=sequence.images, loaded=loaded, settings=self._encoder.image_settings
        )

    async def encode(self, prompts: list[Prompt]) -> list[ProbeSequence]:
        """Return the tokens and images of some prompts, from which a probe is chosen.

        A prompt that can't be sent is an empty sequence.
        """
        found = []
        for prompt in prompts:
            try:
                loaded = self._encoder.load(prompt.images) if prompt.images else ()
            except ImageFaultError:
                loaded = ()
            tokens, images, _ = self._encoder.encode_shown(prompt.prompt, loaded)
            found.append(
                ProbeSequence(
                    tokens=tokens,
                    images=images.spans,
                    files=tuple(image.file for image in images.loaded),
                )
            )
        return found

    # ---- the engine's memory and weights ----

    async def sleep(self, level: int) -> None:
        """Free device memory: level 1 keeps the weights in host memory, level 2 drops them."""
        async with self._calling("switch"):
            await self._engine.sleep(level)

    async def wake(self, tags: list[str]) -> None:
        """Take back device memory for "weights", "kv_cache", or both."""
        async with self._calling("switch"):
            await self._engine.wake(tags)

    async def version(self) -> int:
        """Return the label of the weights in use."""
        async with self._calling("publish"):
            return await self._engine.version()

    async def set_version(self, version: int) -> None:
        """Label the weights in use without changing them."""
        async with self._calling("publish"):
            await self._engine.set_version(version)

    async def init_weight_transfer_engine(self, init_info: dict[str, Any], place: int) -> None:
        """Connect the engine to the trainer, in its place among the engines that do."""
        async with self._calling("publish"):
            await self._engine.init_weight_transfer_engine(init_info, place)

    async def start_weight_update(self) -> None:
        """Freeze running requests, so that no token is sampled between weights and label."""
        async with self._calling("publish"):
            await self._engine.start_weight_update()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive weights."""
        async with self._calling("publish"):
            await self._engine.update_weights(update_info)

    async def finish_weight_update(self, weight_version: str | None) -> None:
        """Label the new weights and continue the frozen requests."""
        async with self._calling("publish"):
            await self._engine.finish_weight_update(weight_version)

    async def diagnose(self, expected: dict[str, list[int]]) -> dict[str, str]:
        """Return a reason for every weight in use that differs from what was last received.

        Args:
            expected: fingerprints that ought to have arrived, by parameter name.
        """
        async with self._calling("publish"):
            return await self._engine.diagnose(expected)

    def take_spans(self) -> Recorded:
        """Return the spans of this engine since the last call."""
        return self.spans.take()

    @asynccontextmanager
    async def _calling(self, activity: Activity) -> AsyncIterator[None]:
        """Record a call of the engine; an engine that hangs in it is ended, like one that died.

        Raises:
            EngineDiedError: it hung, or its process is gone.
        """
        with self.spans.doing(activity):
            try:
                yield
            except EngineTimeoutError as error:
                await self._engine.shutdown()  # what it holds is sampled again
                raise EngineDiedError(str(error)) from error

    async def shutdown(self) -> None:
        """End the engine and the processes that it started."""
        for _, task in self._groups.values():
            task.cancel()
        await self._engine.shutdown()
