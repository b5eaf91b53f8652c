"""A vLLM engine for rollouts: asyncio in, `Sample`s out, weights published into it.

Not a Ray actor (`workers.rollout_worker` wraps it) and not the transports (`workers.weight_sync`).
Data flows: prompt token ids to vLLM's EngineCore process; sampled ids, log-probs and weight
versions back. Weights arrive inside EngineCore through vLLM's weight-transfer API and never pass
through here.

Every wait is bounded, because a dead EngineCore leaves its callers pending for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from workers.engines.lifeline import declare_owner
from workers.engines.vllm_settings import Sample, Sampling, VLLMSettings, engine_env
from workers.health import EngineDiedError
from workers.weight_sync.attestation import EngineEvidence

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["EngineTimeoutError", "Sample", "Sampling", "VLLMEngine", "VLLMSettings", "engine_env"]


SHUTDOWN_TIMEOUT_S = 10.0  # EngineCore is killed after it
TOGETHER_S = 5.0  # longest that requests wait for those they are to be batched with
ADAPTER_ID = 1  # vLLM's number of the only adapter


class EngineTimeoutError(TimeoutError):
    """The engine did not answer in time; the message names what was waited for."""


class VLLMEngine:
    """One vLLM engine.

    Args:
        settings: what to run. The process must have been started with `engine_env(settings, ...)`.
    """

    def __init__(self, settings: VLLMSettings) -> None:
        self.settings = settings
        self._engine: AsyncLLM | None = None
        self._adapter: LoRARequest | None = None

    # ---- life ----

    async def start(self, version: int = 0) -> None:
        """Starts EngineCore and labels the weights of the model folder.

        Args:
            version: the label until the first publication.
        """
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        declare_owner()
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**self.settings.engine_args()))
        await self.set_version(version)

    async def shutdown(self) -> None:
        """Ends EngineCore and its workers; safe to call twice."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown(timeout=SHUTDOWN_TIMEOUT_S)

    async def sleep(self, level: int = 1) -> None:
        """Frees device memory: 1 keeps the weights in host memory, 2 drops them."""
        async with self._bounded(f"sleep(level={level})"):
            await self._live().sleep(level)

    async def wake(self, tags: list[str] | None = None) -> None:
        """Takes device memory back ("weights", "kv_cache", or both with None)."""
        async with self._bounded(f"wake(tags={tags})"):
            await self._live().wake_up(tags)

    def check_health(self) -> None:
        """Looks whether EngineCore lives; asks it nothing.

        Raises:
            EngineDiedError: it is gone, or was never started.
        """
        if self._live().errored:
            raise self._death()

    # ---- sampling ----

    async def generate(
        self, prompt_token_ids: list[int], *, request_id: str, sampling: Sampling, seed: int
    ) -> Sample:
        """Samples one response.

        Args:
            prompt_token_ids: [P] token ids.
            request_id: unique among the running requests.
            sampling: how to sample.
            seed: of this request alone; the response does not depend on what else is batched.

        Raises:
            EngineTimeoutError: no response within `request_timeout_s`; the request is aborted.
            ValueError: a prompt that leaves no room for a response.
        """
        self._check_prompt(prompt_token_ids, request_id)
        output = await self._finish(prompt_token_ids, request_id, _params(sampling, seed))
        return self._sample(output.outputs[0], request_id)

    async def generate_group(
        self,
        prompt_token_ids: list[int],
        *,
        request_id: str,
        sampling: Sampling,
        seeds: Sequence[int],
    ) -> list[Sample]:
        """Samples one response per seed to the same prompt, whose keys and values are shared.

        Equal to `generate` called with each seed; request ids are `<request_id>/<i>`.
        """
        return list(
            await asyncio.gather(
                *(
                    self.generate(
                        prompt_token_ids,
                        request_id=f"{request_id}/{index}",
                        sampling=sampling,
                        seed=seed,
                    )
                    for index, seed in enumerate(seeds)
                )
            )
        )

    async def prompt_logprobs(
        self, token_ids: list[int], *, request_id: str = "probe"
    ) -> list[float]:
        """Scores a given sequence under the weights of this moment, at temperature 1.

        vLLM does not read the prefix cache for a request that asks for prompt log-probs.

        Args:
            token_ids: [T] token ids.
            request_id: unique among the running requests.

        Returns:
            [T] log p(token_i | tokens_<i); 0.0 for the first token.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=1,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._finish(token_ids, request_id, params)
        flat = output.prompt_logprobs
        # The actual token comes first at every position; the first position has none.
        starts = flat.start_indices[1:]  # type: ignore[union-attr]
        return [0.0, *(flat.logprobs[start] for start in starts)]  # type: ignore[union-attr]

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Ends running requests; their `generate` returns what was sampled, reason "abort"."""
        async with self._bounded(f"abort of {len(request_ids)} requests"):
            await self._live().abort(list(request_ids))

    @asynccontextmanager
    async def together(self, count: int) -> AsyncIterator[None]:
        """The `count` requests that are begun inside enter the same batch, all of them.

        What is computed beside what decides how a processor rounds. Begun one by one while the
        engine runs, equal requests would meet in other company every time; begun together, equal
        requests give equal bits. Requests that stay away for `TOGETHER_S` are not waited for.
        """
        async with self._bounded("together"):
            await self._freeze(clear_cache=False)
        arrived = self._live().output_processor.get_num_unfinished_requests
        wanted, deadline = arrived() + count, time.monotonic() + TOGETHER_S
        try:
            yield
            while arrived() < wanted and time.monotonic() < deadline:
                await asyncio.sleep(0)
        finally:
            await self.resume()

    # ---- weights: the four methods of vLLM's weight-sync client, and what surrounds them ----

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connects to the trainer; blocks until the transport's rendezvous is complete.

        Args:
            init_info: of the transport, equal for all engines. A `rank_offset` in it is engine 0's.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        if "rank_offset" in init_info:
            shift = self.settings.engine_id * self.settings.tensor_parallel_size
            init_info = {**init_info, "rank_offset": init_info["rank_offset"] + shift}
        async with self._bounded("init_weight_transfer_engine"):
            await self._live().init_weight_transfer_engine(
                WeightTransferInitRequest(init_info=init_info)
            )
            await self._live().collective_rpc("record_receipts")

    async def start_weight_update(self) -> None:
        """Freezes running requests, so that no token is sampled between weights and label."""
        async with self._bounded("start_weight_update"):
            await self.pause()
            await self._live().start_weight_update()

    async def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Receives weights: one round for `shm` and `gloo`, chunks for the others."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._bounded("update_weights"):
            await self._live().update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Labels the new weights, forgets keys and values of the old ones, and goes on."""
        async with self._bounded("finish_weight_update"):
            await self._live().finish_weight_update(weight_version)
            if self.settings.adapter_rank is not None:
                await self._apply_adapter()
            if self.settings.recompute_kv:
                await self.reset_prefix_cache()
            await self.resume()

    async def _apply_adapter(self) -> None:
        """Puts the adapter that arrived in the place of the last one.

        After vLLM's own end of an update, which forgets every adapter.
        """
        from vllm.lora.request import LoRARequest

        await self._live().collective_rpc("apply_adapter", args=(ADAPTER_ID,))
        # The path is never read: vLLM looks there only for an id that it does not hold.
        self._adapter = LoRARequest("policy", ADAPTER_ID, "published")

    async def pause(self) -> None:
        """Freezes running requests in place; with `recompute_kv` their cache is dropped too."""
        async with self._bounded("pause"):
            await self._freeze(clear_cache=self.settings.recompute_kv)

    async def resume(self) -> None:
        """Continues frozen requests."""
        async with self._bounded("resume"):
            await self._live().resume_generation()

    async def reset_prefix_cache(self) -> None:
        """Forgets shared prefixes, which hold keys and values of older weights.

        Raises:
            RuntimeError: the engine refused, because requests are running and not paused.
        """
        async with self._bounded("reset_prefix_cache"):
            if not await self._live().reset_prefix_cache():
                raise RuntimeError(
                    "vLLM refused to reset its prefix cache while requests are running: "
                    "pause() first, with recompute_kv=True"
                )

    async def version(self) -> int:
        """Returns the label of the weights in use."""
        async with self._bounded("version"):
            return int(await self._live().get_weight_version())

    async def set_version(self, version: int) -> None:
        """Labels the weights in use without changing them."""
        async with self._bounded("set_version"):
            await self._live().update_weight_version(str(version))

    async def attest_received(self) -> dict[str, list[int]]:
        """Returns the fingerprint of every tensor that arrived in the last update.

        Raises:
            RuntimeError: the tensor-parallel workers received different bytes.
        """
        async with self._bounded("attest_received"):
            per_worker = await self._live().collective_rpc("attest_received")
        for worker, received in enumerate(per_worker):
            if received != per_worker[0]:
                raise RuntimeError(
                    f"worker {worker} of engine {self.settings.engine_id} received other weights "
                    f"than worker 0"
                )
        return {name: list(value) for name, value in per_worker[0].items()}

    async def evidence(self, probe_token_ids: list[int]) -> EngineEvidence:
        """Returns all that attestation wants to know of this engine after a publication.

        Args:
            probe_token_ids: [T] the fixed probe.
        """
        return EngineEvidence(
            engine_id=self.settings.engine_id,
            version=await self.version(),
            received=await self.attest_received(),
            probe_logprobs=await self.prompt_logprobs(probe_token_ids),
        )

    async def diagnose(self, expected: dict[str, list[int]] | None = None) -> dict[str, str]:
        """Names the weights in use that differ from what was last received.

        Args:
            expected: fingerprints that ought to have arrived, by parameter name.

        Returns:
            Reason by parameter name; empty if every live weight is the received one.
        """
        async with self._bounded("diagnose"):
            per_worker = await self._live().collective_rpc("diagnose", args=(expected,))
        merged: dict[str, str] = {}
        for found in per_worker:
            merged.update(found)
        return merged

    # ---- inside ----

    def _death(self) -> EngineDiedError:
        return EngineDiedError(f"the EngineCore of engine {self.settings.engine_id} is gone")

    def _live(self) -> AsyncLLM:
        if self._engine is None:
            raise EngineDiedError("the engine is not running: call start() first")
        return self._engine

    @asynccontextmanager
    async def _bounded(self, what: str, timeout_s: float | None = None) -> AsyncIterator[None]:
        from vllm.v1.engine.exceptions import EngineDeadError

        seconds = timeout_s or self.settings.control_timeout_s
        try:
            async with asyncio.timeout(seconds):
                yield
        except EngineTimeoutError:
            raise
        except EngineDeadError as error:
            raise self._death() from error
        except TimeoutError as error:
            raise EngineTimeoutError(
                f"engine {self.settings.engine_id} ({self.settings.model_path}) did not answer "
                f"{what} within {seconds:g} s"
            ) from error

    async def _freeze(self, *, clear_cache: bool) -> None:
        # AsyncLLM.pause_generation adds a sleep of 20 ms that is only for its callers' comfort.
        await self._live().engine_core.pause_scheduler_async(mode="keep", clear_cache=clear_cache)

    async def _finish(
        self, prompt_token_ids: list[int], request_id: str, params: SamplingParams
    ) -> RequestOutput:
        from vllm.inputs import tokens_input

        what = f"request {request_id!r} ({len(prompt_token_ids)} prompt tokens)"
        last: RequestOutput | None = None
        async with self._bounded(what, self.settings.request_timeout_s):
            outputs = self._live().generate(
                tokens_input(prompt_token_ids), params, request_id, lora_request=self._adapter
            )
            async for output in outputs:
                last = output
        assert last is not None, what
        assert last.finished, what
        return last

    def _check_prompt(self, prompt_token_ids: list[int], request_id: str) -> None:
        limit = self._live().model_config.max_model_len
        if not 0 < len(prompt_token_ids) < limit:
            raise ValueError(
                f"prompt of request {request_id!r} has {len(prompt_token_ids)} tokens, the context "
                f"{limit}: shorten or filter the prompt, or raise max_model_len"
            )

    def _sample(self, output: CompletionOutput, request_id: str) -> Sample:
        tokens = list(output.token_ids)
        logprobs = list(output.logprobs.logprobs) if output.logprobs else []  # type: ignore[union-attr]
        versions: list[int] = []
        for span in output.weight_versions or ():
            versions.extend([int(span.version)] * (span.end - span.start))
        if not len(tokens) == len(logprobs) == len(versions):
            raise RuntimeError(
                f"vLLM returned {len(tokens)} tokens, {len(logprobs)} log-probs and "
                f"{len(versions)} weight versions for request {request_id!r}"
            )
        tokenizer = self._live().tokenizer
        text = tokenizer.decode(tokens, skip_special_tokens=True) if tokenizer else ""
        return Sample(
            tokens=tokens,
            logprobs=logprobs,
            weight_versions=versions,
            finish_reason=output.finish_reason or "abort",
            text=text,
        )


def _params(sampling: Sampling, seed: int) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        stop_token_ids=list(sampling.stop_token_ids),
        stop=list(sampling.stop),
        ignore_eos=sampling.ignore_eos,
        seed=seed,
        logprobs=0,
        flat_logprobs=True,
        detokenize=bool(sampling.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )
