"""What a real vLLM engine says of its load when its key/value cache is too small for it."""

import asyncio
import os

import pytest

from workers.data.requests import Sampling
from workers.engines.vllm.engine import (
    VLLMEngine,
    VLLMSettings,
    engine_env,
)
from workers.models.tiny import build_tiny

PROMPT = [5, 17, 9]
LONG = Sampling(max_tokens=400, ignore_eos=True)


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def engine(tmp_path_factory, loop):
    folder = build_tiny(tmp_path_factory.mktemp("models") / "tiny", seed=3)
    # 64 blocks of 32 positions; a sequence of 403 needs 13 of them, and 8 are decoded together.
    settings = VLLMSettings(model_path=str(folder), kv_cache_memory_bytes=4 << 20, max_num_seqs=8)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in engine_env(settings, 1).items():
            patch.setitem(os.environ, key, value)
        engine = VLLMEngine(settings)
        loop.run_until_complete(engine.start())
        yield engine
        loop.run_until_complete(engine.shutdown())


async def begin(engine, name, count):
    """`count` long samples that have begun, and are left to run."""
    task = asyncio.create_task(
        engine.generate_group(PROMPT, request_id=name, sampling=LONG, seeds=range(count))
    )
    while engine.load().steps < 3:
        await asyncio.sleep(0.01)
    return task


def test_a_cache_that_is_too_small_preempts(engine, loop):
    async def run():
        task = await begin(engine, "full", 8)
        await task
        return engine.load()

    load = loop.run_until_complete(run())
    assert load.preemptions > 0
    assert 0.9 < load.kv_usage <= 1.0
    assert engine.load().steps <= 1  # told once


def test_what_exceeds_the_slots_waits_and_what_fits_does_not(engine, loop):
    async def run(name, count):
        task = await begin(engine, name, count)
        engine.load()
        await asyncio.sleep(0.05)
        load = engine.load()
        await engine.abort([f"{name}/{number}" for number in range(count)])
        await task
        return load

    crowded, calm = loop.run_until_complete(run("many", 20)), loop.run_until_complete(run("few", 2))
    assert crowded.waiting == 12
    assert (calm.waiting, calm.preemptions) == (0, 0)
    assert 0 < calm.kv_usage < 0.5


def test_an_update_of_the_weights_is_not_taken_for_a_full_cache(engine, loop):
    async def run():
        task = await begin(engine, "update", 3)
        await engine.pause()  # recomputes what runs
        await engine.resume()
        await task
        return engine.load()

    load = loop.run_until_complete(run())
    assert (load.preemptions, load.waiting) == (0, 0)
