"""A rollout worker over a vLLM that hangs, or that answers garbage: reported, counted, ended.

vLLM's engine is a stand-in of the test's; the worker and all that it calls are the product's.
"""

import asyncio
import gc
import math
from types import SimpleNamespace

import pytest
from vllm.v1.engine.async_llm import AsyncLLM

from workers.data.probe import ProbeSequence
from workers.data.requests import EngineLoad, GroupRequest, Sampling
from workers.engines.vllm.answers import MAX_IN_A_ROW
from workers.engines.vllm.settings import VLLMSettings
from workers.models.tiny import build_tiny
from workers.rollout.environments.single_turn import SingleTurn
from workers.rollout.limits import BoundedEnvironment, RolloutLimits
from workers.rollout.worker import RolloutWorker
from workers.worker_group import EngineDiedError, WorkerGroup


class Watch:
    """An engine's scheduler, which makes a step between any two looks at it, or none."""

    num_waiting = 0

    def __init__(self, *, steps):
        self._steps, self._made = steps, 0

    @property
    def num_steps(self):
        self._made += self._steps
        return self._made

    def report(self):
        return EngineLoad()


class StandIn:
    """What of `AsyncLLM` a worker touches; answers with `outputs`, or not at all.

    With `sampled` every request has so many tokens and the engine goes on without it.
    """

    def __init__(self, output=None, *, sampled=None):
        self.output, self.ended = output, False
        self.output_processor = SimpleNamespace(request_states={})
        self.sampled = sampled
        self.errored, self.tokenizer = False, None
        self.model_config = SimpleNamespace(max_model_len=32, get_vocab_size=lambda: 64)
        self.logger_manager = SimpleNamespace(stat_loggers=[Watch(steps=int(sampled is not None))])
        self.engine_core = SimpleNamespace(pause_scheduler_async=self.hang)
        self.get_weight_version = self.collective_rpc = self.hang

    async def hang(self, *args, **kwargs):
        await asyncio.Event().wait()

    async def update_weight_version(self, version):
        pass

    async def generate(self, prompt, params, request_id, **kwargs):
        if self.sampled is not None:
            self.output_processor.request_states[request_id] = SimpleNamespace(
                external_req_id=request_id,
                detokenizer=SimpleNamespace(num_output_tokens=lambda: self.sampled),
            )
        if self.output is None:
            await self.hang()
        yield SimpleNamespace(finished=True, outputs=[self.output])

    def shutdown(self, timeout):
        self.ended = True


def output(*, tokens=(5, 2), logprobs=(-0.5, -0.1)):
    spans = [SimpleNamespace(version="3", start=0, end=len(tokens))]
    return SimpleNamespace(
        token_ids=tokens,
        logprobs=SimpleNamespace(logprobs=logprobs),
        weight_versions=spans,
        finish_reason="stop",
    )


def group(number=0):
    return GroupRequest(
        group_id=f"0-{number}",
        prompt_uid=f"p:{number}",
        begun_version=0,
        dataset="copy",
        prompt="12=",
        ground_truth="12",
        num_samples=2,
        seed=1,
        sampling=Sampling(max_tokens=4),
    )


async def collect_to_the_end(worker):
    for _ in range(20):
        await worker.collect(0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def run(folder, monkeypatch):
    """Calls `play(worker)` with a worker whose engine is `stand_in`."""

    def run(stand_in, play):
        monkeypatch.setattr(AsyncLLM, "from_engine_args", lambda args, **kwargs: stand_in)

        async def started():
            worker = RolloutWorker(
                run_id="run",
                settings=VLLMSettings(
                    model_path=str(folder), request_timeout_s=0.2, control_timeout_s=0.2
                ),
                max_prompt_tokens=16,
                environments={
                    "": BoundedEnvironment(environment=SingleTurn(), limits=RolloutLimits())
                },
                reward_timeout_s=1.0,
            )
            await worker.start(0, WorkerGroup("reward", []))
            return await play(worker)

        try:
            return asyncio.run(started())
        finally:
            gc.unfreeze()

    return run


@pytest.mark.parametrize(
    ("together", "what"), [(True, "together"), (False, "request '0-0/0/1' .* prompt tokens")]
)
def test_an_engine_that_answers_nothing_is_ended_and_reported_dead(run, together, what):
    stand_in = StandIn()

    async def play(worker):
        await worker.submit([group()], together)
        with pytest.raises(EngineDiedError, match=rf"did not answer {what}.* within 0.2 s"):
            await collect_to_the_end(worker)

    run(stand_in, play)
    assert stand_in.ended


@pytest.mark.parametrize(
    "call",
    [
        lambda worker: worker.start_weight_update(),
        lambda worker: worker.attest([ProbeSequence(tokens=[3, 4, 5])]),
    ],
)
def test_an_engine_that_hangs_in_a_publication_is_ended_and_reported_dead(run, call):
    """A single engine that hung in its attestation ended the run, as a fault of no engine."""
    stand_in = StandIn()

    async def play(worker):
        with pytest.raises(EngineDiedError, match=r"did not answer .* within 0.2 s"):
            await call(worker)

    run(stand_in, play)
    assert stand_in.ended


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (output(tokens=(), logprobs=()), "empty response"),
        (output(logprobs=(-0.5, math.nan)), "non-finite log-prob"),
        (output(logprobs=(-0.5,)), "another number of log-probs than of tokens"),
        (output(tokens=(5, 64)), "token id beyond the vocabulary"),
    ],
)
def test_garbage_is_a_failed_sample_and_no_reward(run, answer, fault):
    async def play(worker):
        await worker.submit([group()], False)
        return await worker.collect(5.0)

    collected, batch = run(StandIn(answer), play)
    assert [meta.outcome for meta in collected.metas] == [f"failed:{fault}"] * 2
    assert [meta.reward for meta in collected.metas] == [None, None]
    assert [meta.num_trained for meta in collected.metas] == [0, 0]
    assert batch["loss_mask"].to_pylist() == [[False] * 3] * 2  # the prompt alone


def test_garbage_without_end_ends_the_run(run):
    async def play(worker):
        await worker.submit([group(number) for number in range(MAX_IN_A_ROW // 2)], False)
        with pytest.raises(RuntimeError, match="engine 0 gave 64 unusable .* non-finite log-prob"):
            await collect_to_the_end(worker)

    run(StandIn(output(logprobs=(math.inf, math.nan))), play)


def test_a_response_that_stands_still_is_a_failed_sample_and_the_engine_lives(run):
    stand_in = StandIn(sampled=3)

    async def play(worker):
        await worker.submit([group()], False)
        return await worker.collect(5.0)

    collected, _ = run(stand_in, play)
    assert [meta.outcome for meta in collected.metas] == ["failed:stalled"] * 2
    assert [meta.reward for meta in collected.metas] == [None, None]
    assert not stand_in.ended


def test_a_response_that_waits_for_a_place_takes_as_long_as_it_takes(run):
    async def play(worker):
        await worker.submit([group()], False)
        collected, _ = await worker.collect(1.5)  # seven times the limit
        return collected

    assert run(StandIn(sampled=0), play).metas == []


def test_a_worker_that_is_started_again_ends_what_it_held(run, monkeypatch):
    """The driver may have given up a worker that lives: one engine, not two."""
    first, second = StandIn(), StandIn(output(tokens=(), logprobs=()))

    async def play(worker):
        await worker.submit([group(1)], False)
        await asyncio.sleep(0)
        (_, task), *_ = worker._groups.values()
        monkeypatch.setattr(AsyncLLM, "from_engine_args", lambda args, **kwargs: second)
        await worker.start(-1, WorkerGroup("reward", []))
        assert first.ended
        await worker.submit([group(2)], False)
        collected, _ = await worker.collect(5.0)
        assert task.cancelled()
        return collected

    collected = run(first, play)
    assert {meta.group_id for meta in collected.metas} == {"0-2"}
