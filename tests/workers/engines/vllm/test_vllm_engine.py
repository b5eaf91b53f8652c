"""A real vLLM engine on a tiny float32 model: log-probs, seeds, groups, limits and its end."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workers.data.requests import Sampling
from workers.engines.vllm.answers import UnusableAnswerError
from workers.engines.vllm.engine import (
    EngineTimeoutError,
    VLLMEngine,
    VLLMSettings,
    engine_env,
)
from workers.engines.vllm.leftovers import clear_dead
from workers.models.tiny import build_tiny

PROMPT = [5, 17, 9, 30, 8, 41]
EXACT = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.fixture(scope="module")
def reference(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def engine(folder, loop) -> Iterator[VLLMEngine]:
    settings = VLLMSettings(model_path=str(folder), kv_cache_memory_bytes=64 << 20)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in engine_env(settings, 1).items():
            patch.setitem(os.environ, key, value)
        engine = VLLMEngine(settings)
        loop.run_until_complete(engine.start(version=4))
        yield engine
        loop.run_until_complete(engine.shutdown())
        loop.run_until_complete(engine.shutdown())
        for child in multiprocessing.active_children():
            child.join(10)  # killed after the limit of `shutdown`, on a busy machine
        assert multiprocessing.active_children() == []
        with pytest.raises(RuntimeError, match=r"call start\(\)"):
            loop.run_until_complete(engine.version())


@torch.no_grad()
def logprobs(model, tokens, temperature=1.0):
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0] / temperature  # [T, V]
    picked = logits[:-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])
    return [0.0, *picked[:, 0].tolist()]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_tempered_policy(engine, loop, reference, temperature):
    sampling = Sampling(max_tokens=16, temperature=temperature, ignore_eos=True)
    sample = loop.run_until_complete(
        engine.generate(PROMPT, request_id=f"t{temperature}", sampling=sampling, seed=1)
    )
    assert len(sample.tokens) == 16
    assert sample.finish_reason == "length"
    assert sample.weight_versions == [4] * 16
    expected = logprobs(reference, PROMPT + sample.tokens, temperature)[len(PROMPT) :]
    torch.testing.assert_close(sample.logprobs, expected, **EXACT)


def test_a_seed_decides_a_response_whatever_is_batched(engine, loop, sample_group):
    sampling = Sampling(max_tokens=12)
    seeds = [11, 12, 13, 14, 15, 16, 17, 11]
    group = loop.run_until_complete(
        sample_group(engine, PROMPT, request_id="group", sampling=sampling, seeds=seeds)
    )
    alone = [
        loop.run_until_complete(
            engine.generate(PROMPT, request_id=f"alone{i}", sampling=sampling, seed=seed)
        )
        for i, seed in enumerate(seeds)
    ]
    assert [sample.tokens for sample in group] == [sample.tokens for sample in alone]
    for together, single in zip(group, alone, strict=True):
        torch.testing.assert_close(together.logprobs, single.logprobs, **EXACT)
    assert group[0].tokens == group[-1].tokens
    assert len({tuple(sample.tokens) for sample in group}) == 7


def test_a_prompt_that_is_read_in_parts_draws_as_one_that_is_not(
    folder, engine, loop, sample_group
):
    """vLLM's CPU engine would end at the second part of a seeded request."""
    prompt = [3 + (7 * i) % 40 for i in range(100)]
    sampling = Sampling(max_tokens=8, ignore_eos=True)
    parts = {"max_num_batched_tokens": 32, "max_num_seqs": 4}
    settings = VLLMSettings(
        model_path=str(folder), kv_cache_memory_bytes=64 << 20, engine_kwargs=parts
    )
    with pytest.MonkeyPatch.context() as patch:
        for key, value in engine_env(settings, 1).items():
            patch.setitem(os.environ, key, value)
        in_parts = VLLMEngine(settings)
        loop.run_until_complete(in_parts.start())
        try:
            found = [
                loop.run_until_complete(
                    sample_group(one, prompt, request_id="long", sampling=sampling, seeds=[5, 6])
                )
                for one in (engine, in_parts)
            ]
        finally:
            loop.run_until_complete(in_parts.shutdown())
    whole, parted = ([sample.tokens for sample in samples] for samples in found)
    assert parted == whole
    assert whole[0] != whole[1]


def test_what_is_begun_together_gives_the_same_bits_however_it_arrives(engine, loop):
    """One batch of 48, its requests sent at once or in three bursts with pauses between them."""
    sampling = Sampling(max_tokens=8)
    prompts = [[5 + i % 40, 17, 9, 30][: 2 + i % 3] for i in range(48)]

    async def sample(label, pause_s):
        async def one(number):
            await asyncio.sleep(pause_s * (number % 3))
            return await engine.generate(
                prompts[number], request_id=f"{label}{number}", sampling=sampling, seed=number
            )

        await engine.reset_prefix_cache()
        order = sorted(range(48), key=lambda number: number % 3)  # as they arrive in bursts
        async with engine.together(48):
            tasks = {number: asyncio.create_task(one(number)) for number in order}
        return [await tasks[number] for number in range(48)]

    first, second, third = (
        loop.run_until_complete(sample(label, pause_s))
        for label, pause_s in (("once", 0.0), ("bursts", 0.03), ("again", 0.01))
    )
    for other in (second, third):
        assert [one.tokens for one in first] == [one.tokens for one in other]
        assert [one.logprobs for one in first] == [one.logprobs for one in other]


def test_requests_that_stay_away_are_not_waited_for(engine, loop, monkeypatch):
    monkeypatch.setattr("workers.engines.vllm.engine.TOGETHER_S", 0.2)
    sampling = Sampling(max_tokens=3, ignore_eos=True)

    async def fewer():
        async with engine.together(2):
            task = asyncio.create_task(
                engine.generate(PROMPT, request_id="one", sampling=sampling, seed=1)
            )
        return await task

    assert len(loop.run_until_complete(fewer()).tokens) == 3


def test_a_stop_token_is_part_of_the_response_and_not_of_its_text(
    engine, loop, folder, sample_group
):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    group = loop.run_until_complete(
        sample_group(
            engine, PROMPT, request_id="stop", sampling=Sampling(max_tokens=300), seeds=range(8)
        )
    )
    stopped = [sample for sample in group if sample.finish_reason == "stop"]
    assert stopped
    for sample in stopped:
        assert sample.tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in sample.tokens[:-1]
        assert sample.text == tokenizer.decode(sample.tokens, skip_special_tokens=True)
        assert tokenizer.eos_token not in sample.text
        assert len(sample.logprobs) == len(sample.weight_versions) == len(sample.tokens)


def test_a_stop_string_ends_a_response(engine, loop, folder, sample_group):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    free = Sampling(max_tokens=12, ignore_eos=True)
    cut = Sampling(max_tokens=12, ignore_eos=True, stop=(tokenizer.decode([21]),))
    group = loop.run_until_complete(
        sample_group(engine, PROMPT, request_id="free", sampling=free, seeds=range(32))
    )
    seed = next(i for i, sample in enumerate(group) if 21 in sample.tokens[:-1])
    sample = loop.run_until_complete(
        engine.generate(PROMPT, request_id="cut", sampling=cut, seed=seed)
    )
    end = group[seed].tokens.index(21) + 1
    assert (sample.finish_reason, sample.tokens) == ("stop", group[seed].tokens[:end])


def test_prompt_logprobs_are_untempered_and_not_cached(engine, loop, reference):
    tokens = [5 + i % 40 for i in range(200)]  # longer than a cache block
    expected = logprobs(reference, tokens)
    for attempt in range(2):
        scored = loop.run_until_complete(
            engine.prompt_logprobs(tokens, request_id=f"probe{attempt}")
        )
        torch.testing.assert_close(scored, expected, **EXACT)


async def begun(engine: VLLMEngine, request_id: str) -> None:
    """Wait until the request has a token, however fast the machine is."""
    while True:
        states = engine._live().output_processor.request_states.values()
        if any(
            s.external_req_id == request_id and s.detokenizer.num_output_tokens() for s in states
        ):
            return
        await asyncio.sleep(0.001)


def test_an_aborted_request_returns_what_it_has(engine, loop):
    async def run():
        sampling = Sampling(max_tokens=450, ignore_eos=True)
        task = asyncio.create_task(
            engine.generate(PROMPT, request_id="long", sampling=sampling, seed=1)
        )
        await begun(engine, "long")
        await engine.abort(["long"])
        return await task

    sample = loop.run_until_complete(run())
    assert sample.finish_reason == "abort"
    assert len(sample.logprobs) == len(sample.tokens) < 450


def test_a_pause_may_last_and_an_engine_that_stands_still_is_named(engine, loop, monkeypatch):
    monkeypatch.setattr(engine._progress, "limit_s", 1.0)

    async def run():
        sampling = Sampling(max_tokens=400, ignore_eos=True)
        paused = asyncio.create_task(
            engine.generate(PROMPT, request_id="paused", sampling=sampling, seed=1)
        )
        await begun(engine, "paused")
        await engine.pause()
        await asyncio.sleep(2.5)
        await engine.resume()
        assert len((await paused).tokens) == 400
        await engine._live().pause_generation(mode="keep")  # of which the account is not told
        try:
            await engine.generate(PROMPT, request_id="slow", sampling=Sampling(), seed=1)
        finally:
            await engine.resume()

    with pytest.raises(EngineTimeoutError, match=r"'slow' \(6 prompt tokens\) within 1 s"):
        loop.run_until_complete(run())
    loop.run_until_complete(
        engine.generate(PROMPT, request_id="next", sampling=Sampling(max_tokens=2), seed=1)
    )


def test_a_response_that_the_scheduler_forgets_is_a_failed_sample(engine, loop, monkeypatch):
    """As if a request had been lost inside vLLM, while others go on."""
    monkeypatch.setattr(engine._progress, "limit_s", 1.5)
    processor = engine._live().output_processor
    process = processor.process_outputs

    def forget(outputs, *arguments, **options):
        def is_lost(output):
            state = processor.request_states.get(output.request_id)
            if state is None or state.external_req_id != "lost":
                return False
            return state.detokenizer.num_output_tokens() >= 7

        return process([o for o in outputs if not is_lost(o)], *arguments, **options)

    monkeypatch.setattr(processor, "process_outputs", forget)

    async def run():
        sampling = Sampling(max_tokens=450, ignore_eos=True)
        lost = asyncio.create_task(
            engine.generate(PROMPT, request_id="lost", sampling=sampling, seed=2)
        )
        others = 0
        while not lost.done():  # however fast the machine is, another one runs beside
            other = await engine.generate(
                PROMPT, request_id=f"other{others}", sampling=sampling, seed=1
            )
            assert len(other.tokens) == 450
            others += 1
        with pytest.raises(UnusableAnswerError, match="stalled"):
            await lost
        return others

    assert loop.run_until_complete(run()) > 0


def test_an_engine_samples_only_when_all_its_memory_is_back(engine, loop):
    sampling = Sampling(max_tokens=4, ignore_eos=True)

    async def run():
        before = await engine.generate(PROMPT, request_id="awake", sampling=sampling, seed=1)
        await engine.sleep(2)
        task = asyncio.create_task(
            engine.generate(PROMPT, request_id="asleep", sampling=sampling, seed=1)
        )
        await asyncio.sleep(0.2)
        done = [task.done()]
        await engine.wake(["weights"])
        await asyncio.sleep(0.2)
        done.append(task.done())
        await engine.wake(["kv_cache"])
        return done, before, await task

    done, before, after = loop.run_until_complete(run())
    assert done == [False, False]
    assert after == before


def test_the_prefix_cache_is_not_reset_under_running_requests(engine, loop):
    async def run():
        sampling = Sampling(max_tokens=400, ignore_eos=True)
        task = asyncio.create_task(
            engine.generate(PROMPT * 30, request_id="busy", sampling=sampling, seed=1)
        )
        await begun(engine, "busy")
        try:
            await engine.reset_prefix_cache()
        finally:
            await engine.abort(["busy"])
            await task

    with pytest.raises(RuntimeError, match="pause"):
        loop.run_until_complete(run())
    loop.run_until_complete(engine.reset_prefix_cache())


def test_a_prompt_that_fills_the_context_is_refused(engine, loop):
    for prompt in ([5] * 512, []):
        with pytest.raises(ValueError, match=f"'full' has {len(prompt)} tokens, the context 512"):
            loop.run_until_complete(
                engine.generate(prompt, request_id="full", sampling=Sampling(), seed=1)
            )


def test_a_response_ends_where_the_context_does(engine, loop):
    sampling = Sampling(max_tokens=1000, ignore_eos=True)
    sample = loop.run_until_complete(
        engine.generate([5] * 500, request_id="end", sampling=sampling, seed=1)
    )
    assert (len(sample.tokens), sample.finish_reason) == (12, "length")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_owner_leaves_no_process_and_one_folder(folder, workers):
    temporary = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # pytest's are too long for sockets
    script = Path(__file__).with_name("killed_owner.py")
    root = Path(__file__).parents[4]
    owner = subprocess.run(
        [sys.executable, str(script), str(folder), str(workers)],
        env=os.environ | {"PYTHONPATH": str(root), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        timeout=240,
        check=False,
    )
    assert owner.returncode == -signal.SIGKILL
    # Reading to the end succeeded: EngineCore, which inherits the pipe, has ended too.
    assert b"EngineCore is running" in owner.stdout
    (left,) = (path for path in temporary.iterdir() if path.is_socket() or "ballast" in path.name)
    names = (left / "shared_memory").read_text().split()
    assert [path for path in left.iterdir() if path.is_socket()]
    assert any((Path("/dev/shm") / name).exists() for name in names) == (workers == 2)
    clear_dead(temporary)
    assert not left.exists()
    assert not any((Path("/dev/shm") / name).exists() for name in names)
    shutil.rmtree(temporary)


def test_labels_without_new_weights(engine, loop):
    assert loop.run_until_complete(engine.version()) == 4
    loop.run_until_complete(engine.set_version(9))
    assert loop.run_until_complete(engine.version()) == 9
    loop.run_until_complete(engine.set_version(4))


@pytest.mark.parametrize("key", ["logprobs_mode", "weight_transfer_config", "seed"])
def test_keywords_that_break_invariants_are_refused(key):
    with pytest.raises(ValueError, match=f"{key}.*'mine'"):
        VLLMSettings(model_path="m", engine_kwargs={key: "mine"})


def test_raw_keywords_win_over_derived_ones():
    settings = VLLMSettings(
        model_path="m", engine_kwargs={"enforce_eager": False, "block_size": 32}
    )
    args = settings.engine_args()
    assert (args["enforce_eager"], args["block_size"]) == (False, 32)


def test_stale_keys_and_values_may_not_meet_a_shared_prefix():
    with pytest.raises(ValueError, match="enable_prefix_caching=False"):
        VLLMSettings(model_path="m", recompute_kv=False)


def test_environment_follows_the_settings():
    env = engine_env(VLLMSettings(model_path="m"), 2)
    assert env["OMP_NUM_THREADS"] == "2"
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    sharded = engine_env(VLLMSettings(model_path="m", tensor_parallel_size=2), 1)
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in sharded
    assert "TORCHDYNAMO_DISABLE" not in engine_env(VLLMSettings(model_path="m", device="cuda"), 1)
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        engine_env(VLLMSettings(model_path="m"), 0)


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_impossible_sampling_is_refused(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"{name}.*got {value}"):
        Sampling(**wrong)
