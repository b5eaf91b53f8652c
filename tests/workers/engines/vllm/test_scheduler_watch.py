"""The load that a vLLM engine reports: what counts as a preemption, and what a publication costs.

First the watch alone, given vLLM's statistics step by step; then a real engine whose key/value
cache is small.
"""

import asyncio
import os
import time

import pytest
from vllm.v1.metrics.stats import IterationStats, PrefixCacheStats, SchedulerStats

from workers.data.requests import Sampling
from workers.engines.vllm.engine import (
    VLLMEngine,
    VLLMSettings,
    engine_env,
)
from workers.engines.vllm.scheduler_watch import SchedulerWatch
from workers.models.tiny import build_tiny

PROMPT = [5, 17, 9]
LONG = Sampling(max_tokens=400, ignore_eos=True)


def step(watch, *, running, waiting=0, preempted=0, tokens=None, finished=0, reset=False):
    """Give one step's statistics; every request that runs or finishes gives a token by default."""
    told = IterationStats()
    told.num_preempted_reqs = preempted
    told.finished_requests = [None] * finished
    gave = running + finished if tokens is None else tokens
    told.inter_token_latencies_iter = [0.01] * gave
    watch.record(
        SchedulerStats(
            num_running_reqs=running,
            num_waiting_reqs=waiting,
            kv_cache_usage=0.25,
            prefix_cache_stats=PrefixCacheStats(reset=reset),
        ),
        told if gave else None,
    )


def counted(watch):
    load = watch.report()
    return load.preemptions, load.waiting


@pytest.fixture
def watch():
    return SchedulerWatch(None)


def test_a_preemption_for_lack_of_blocks_is_counted(watch):
    step(watch, running=3)
    step(watch, running=2, waiting=1)
    step(watch, running=3, preempted=1)
    assert counted(watch) == (1, 0)
    step(watch, running=2, waiting=1)
    assert counted(watch) == (0, 1)


def test_what_a_reset_preempts_is_not_counted_however_late_the_reports_come(watch):
    """All reports of the steps before the reset arrive after the pause was ordered."""
    step(watch, running=1)
    step(watch, running=3)
    step(watch, running=3, preempted=3, reset=True)
    step(watch, running=3, preempted=1)  # the next one is a true one
    assert counted(watch) == (1, 0)


def test_what_a_reset_preempts_may_be_told_over_many_steps(watch):
    """Three long samples are read again in parts: nothing waits long before all have told."""
    step(watch, running=3)
    step(watch, running=1, waiting=2, tokens=0, reset=True)
    step(watch, running=2, waiting=1, tokens=1, preempted=1)
    step(watch, running=3, tokens=1)
    step(watch, running=3, tokens=1)
    step(watch, running=3, tokens=2, preempted=1)
    step(watch, running=3, preempted=1)
    assert counted(watch) == (0, 0)
    step(watch, running=3, preempted=1)
    assert counted(watch) == (1, 0)


def test_what_was_aborted_excuses_no_later_preemption(watch):
    step(watch, running=4)
    step(watch, running=2, preempted=2, reset=True)  # two of the four were aborted
    step(watch, running=2, preempted=2)
    assert counted(watch) == (2, 0)


def test_what_was_aborted_hides_no_queue(watch):
    """More requests than slots: a queue is there at every step, before the reset and after it."""
    step(watch, running=4, waiting=5)
    step(watch, running=4, waiting=3, tokens=2, preempted=2, reset=True)  # two were aborted
    assert counted(watch) == (0, 1)
    step(watch, running=4, waiting=3)
    step(watch, running=4, waiting=3, preempted=1)
    assert counted(watch) == (1, 3)


def test_a_second_reset_may_come_before_all_have_told_of_the_first(watch):
    step(watch, running=4)
    step(watch, running=2, waiting=2, preempted=2, reset=True)
    step(watch, running=3, waiting=1, tokens=2, preempted=2, reset=True)
    step(watch, running=4, preempted=2)
    assert counted(watch) == (0, 0)
    step(watch, running=4, preempted=1)
    assert counted(watch) == (1, 0)


def test_a_reset_of_an_idle_engine_excuses_nothing(watch):
    step(watch, running=0, finished=2)
    step(watch, running=2, preempted=1, reset=True)
    assert counted(watch) == (1, 0)


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


@pytest.fixture(scope="module")
def begin(engine, sample_group):
    """Begin `count` long samples and leave them to run."""

    async def begun(name, count):
        task = asyncio.create_task(
            sample_group(engine, PROMPT, request_id=name, sampling=LONG, seeds=range(count))
        )
        steps = 0
        while steps < 3 and not task.done():
            await asyncio.sleep(0.01)
            steps += engine.load().steps
        return task

    return begun


def test_a_cache_that_is_too_small_preempts(engine, loop, begin):
    async def run():
        task = await begin("full", 8)
        await task
        return engine.load()

    load = loop.run_until_complete(run())
    assert load.preemptions > 0
    assert 0.9 < load.kv_usage <= 1.0
    assert engine.load().preemptions == 0  # told once


def test_what_exceeds_the_slots_waits_and_what_fits_does_not(engine, loop, begin):
    async def run(name, count, waiting):
        task = await begin(name, count)
        load = engine.load()
        # The last requests may still be on their way to the engine.
        while (load.steps == 0 or load.waiting < waiting) and not task.done():
            await asyncio.sleep(0.01)
            load = engine.load()
        await engine.abort([f"{name}/{number}" for number in range(count)])
        await task
        return load

    crowded = loop.run_until_complete(run("many", 20, waiting=12))
    calm = loop.run_until_complete(run("few", 2, waiting=0))
    assert 12 <= crowded.waiting < 20
    assert (calm.waiting, calm.preemptions) == (0, 0)
    assert 0 < calm.kv_usage < 0.5


@pytest.mark.parametrize("late_s", [0.0, 0.05])
def test_an_update_of_the_weights_is_not_taken_for_a_full_cache(engine, loop, begin, late_s):
    async def run():
        task = await begin(f"update {late_s}", 3)
        time.sleep(late_s)  # the engine goes on alone; its reports wait to be read
        await engine.pause()  # recomputes what runs
        await engine.resume()
        await task
        return engine.load()

    load = loop.run_until_complete(run())
    assert load.steps > 3
    assert (load.preemptions, load.waiting) == (0, 0)


def test_updates_that_follow_each_other_are_not_taken_for_a_full_cache(engine, loop, begin):
    async def run():
        task = await begin("updates", 3)
        for _ in range(10):
            await engine.pause()
            await engine.resume()
            await asyncio.sleep(0.01)
        await task
        return engine.load()

    load = loop.run_until_complete(run())
    assert (load.preemptions, load.waiting) == (0, 0)
