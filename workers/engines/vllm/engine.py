"""Rollout engine on vLLM: asyncio in, `Sample`s out, weights published into it.

Data flows: prompt token ids to vLLM's EngineCore process; sampled ids, log-probs and weight
versions back. Runs in the rollout worker's process. Not a Ray actor (`workers.rollout.worker` wraps
it). Starting and ending vLLM is `process.py`, replacing its weights `weights.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from workers.data.images.prompt_images import NO_IMAGES, PromptImages
from workers.data.requests import Sample, Sampling
from workers.engines.vllm.answers import AnswerCheck
from workers.engines.vllm.process import EngineTimeoutError
from workers.engines.vllm.settings import (
    VLLMSettings,
    engine_env,
)
from workers.engines.vllm.weights import VLLMWeights

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.tokenizers import TokenizerLike

__all__ = ["EngineTimeoutError", "Sample", "Sampling", "VLLMEngine", "VLLMSettings", "engine_env"]

TOGETHER_S = 5.0  # longest that requests wait for those they are to be batched with


class VLLMEngine(VLLMWeights):
    """Rollout engine on one vLLM.

    Attributes:
        answers: check of the engine's latest answers.
    """

    def __init__(self, settings: VLLMSettings) -> None:
        super().__init__(settings)
        self.answers = AnswerCheck(f"engine {settings.engine_id}")

    async def generate(
        self,
        prompt_token_ids: list[int],
        *,
        request_id: str,
        sampling: Sampling,
        seed: int,
        images: PromptImages = NO_IMAGES,
    ) -> Sample:
        """Sample one response.

        Args:
            prompt_token_ids: [P] token ids, those of images expanded.
            request_id: unique among the running requests.
            sampling: temperature, limits and stops of the response.
            seed: of this request alone; the response does not depend on what else is batched.
            images: that the prompt shows.

        Raises:
            EngineTimeoutError: the engine made no step for `request_timeout_s`.
            UnusableAnswerError: the answer is no response of this model, or gained no token for
                `request_timeout_s` while the engine went on; the request is aborted.
            ValueError: a prompt that leaves no room for a response, or tokens that vLLM refuses.
        """
        self._check_prompt(prompt_token_ids, request_id)
        params = _params(sampling, seed)
        output = await self._finish(prompt_token_ids, request_id, params, images)
        sample = self._sample(output.outputs[0])
        return self.answers.accept(sample, vocab_size=self._live().model_config.get_vocab_size())

    async def prompt_logprobs(
        self, token_ids: list[int], *, request_id: str = "probe", images: PromptImages = NO_IMAGES
    ) -> list[float]:
        """Score a given sequence under the weights of this moment, at temperature 1.

        vLLM does not read the prefix cache for a request for prompt log-probs.

        Args:
            token_ids: [T] token ids.
            request_id: unique among the running requests.
            images: that the sequence shows.

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
        output = await self._finish(token_ids, request_id, params, images)
        flat = output.prompt_logprobs
        # The actual token comes first at every position; the first position has none.
        starts = flat.start_indices[1:]  # type: ignore[union-attr]
        return [0.0, *(flat.logprobs[start] for start in starts)]  # type: ignore[union-attr]

    async def abort(self, request_ids: Sequence[str]) -> None:
        """End running requests; their `generate` returns what was sampled, reason "abort"."""
        async with self._bounded(f"abort of {len(request_ids)} requests"):
            await self._live().abort(list(request_ids))

    @asynccontextmanager
    async def together(self, count: int) -> AsyncIterator[None]:
        """Admit all of the `count` requests that are begun inside the block to the same batch.

        The other sequences of a batch decide how a processor rounds. Begun one by one while the
        engine runs, equal requests would be batched with others every time; begun together, equal
        requests give equal bits. Requests that are not begun within `TOGETHER_S` are not waited
        for.
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

    async def _finish(
        self,
        prompt_token_ids: list[int],
        request_id: str,
        params: SamplingParams,
        images: PromptImages,
    ) -> RequestOutput:
        from workers.engines.vllm.images import engine_input

        call = f"request {request_id!r} ({len(prompt_token_ids)} prompt tokens)"
        last: RequestOutput | None = None
        async with self._progressing(request_id, call):
            prompt = engine_input(prompt_token_ids, images)
            outputs = self._live().generate(prompt, params, request_id, lora_request=self._adapter)
            async for output in outputs:
                last = output
        assert last is not None, call
        assert last.finished, call
        return last

    def _check_prompt(self, prompt_token_ids: list[int], request_id: str) -> None:
        limit = self._live().model_config.max_model_len
        if not 0 < len(prompt_token_ids) < limit:
            raise ValueError(
                f"prompt of request {request_id!r} has {len(prompt_token_ids)} tokens, the context "
                f"{limit}: shorten or filter the prompt, or raise max_model_len"
            )

    def _sample(self, output: CompletionOutput) -> Sample:
        tokens = list(output.token_ids)
        logprobs = list(output.logprobs.logprobs) if output.logprobs else []  # type: ignore[union-attr]
        versions: list[int] = []
        for span in output.weight_versions or ():
            versions.extend([int(span.version)] * (span.end - span.start))
        return Sample(
            tokens=tokens,
            logprobs=logprobs,
            weight_versions=versions,
            finish_reason=output.finish_reason or "abort",
            text=text_of(
                output, self._live().tokenizer, keep_special=self.settings.keep_special_tokens
            ),
        )


def text_of(
    output: CompletionOutput, tokenizer: TokenizerLike | None, *, keep_special: bool
) -> str:
    """Return the text of a response, without the special token that ended it.

    Args:
        output: of vLLM.
        tokenizer: None gives an empty text.
        keep_special: keep the other special tokens in the text.
    """
    if tokenizer is None:
        return ""
    tokens = list(output.token_ids)
    if not keep_special:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))
    # vLLM names the text of `Sampling.stop` that ended a response, or the token but for EOS.
    ended_by_token = output.finish_reason == "stop" and not isinstance(output.stop_reason, str)
    if ended_by_token and tokens and tokens[-1] in tokenizer.all_special_ids:
        tokens.pop()
    return str(tokenizer.decode(tokens))


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
