"""The rollout plane against its parts: the pool against bare vLLM, publication against a copy.

    python tests/bench/rollout.py [--experiment quickstart] [--rounds 8] [--engines 2]

What it is: in one run, on the same cores, (1) generated tokens/s of the pool, from `submit` to the
last group scored and in the object store, beside those of `AsyncLLM` in a plain process with the
same prompts, seeds and settings, and no reward; (2) seconds to publish the model's weights to the
engines by `shm` and by `gloo`, attestation apart, beside a plain memory copy of the same bytes.
What it is not: a measure of vLLM, or of a network.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from conf.compose import compose
from orchestrator.cluster import Cluster, Roles
from orchestrator.colocation import Turns
from orchestrator.producer import draw_settings
from orchestrator.publication import Publisher
from orchestrator.settings import vllm_settings
from orchestrator.sources import prepare
from workers.engines.vllm_settings import Sampling, VLLMSettings, engine_env
from workers.prompts import PromptEncoder
from workers.requests import GroupRequest

RUN_LIMIT_S = 900.0
WARM_UP = 2  # rounds that are not counted


@contextmanager
def running(overrides: list[str], *, with_policy: bool) -> Iterator[tuple[Any, Any, Roles]]:
    """Configuration, prompts and roles of an experiment, ended afterwards."""
    raw, config = compose(overrides)
    sources = prepare(config)
    algorithm = instantiate(raw.algorithm, _convert_="all")
    path = str(sources.model_path)
    with Cluster(config, algorithm, run_id="bench", model_path=path) as cluster:
        roles = cluster.launch(
            environment=instantiate(raw.environment, _convert_="all"),
            scorer=instantiate(raw.reward.scorer, _convert_="all"),
            version=0,
            with_policy=with_policy,
        )
        yield config, sources, roles


Round = tuple[float, int]  # seconds and generated tokens of a batch


def pool_rounds(roles: Roles, config: Any, sources: Any, rounds: int) -> list[Round]:
    """Batches through the pool, one after the other."""
    prompts, samples = sources.train, config.rollout.samples_per_prompt
    found = []
    for number in range(rounds):
        requests = [
            GroupRequest(
                group_id=f"{number}-{row}",
                prompt_uid=prompts[row].uid,
                step=0,
                dataset=prompts[row].dataset,
                prompt=prompts[row].prompt,
                ground_truth=prompts[row].ground_truth,
                num_samples=samples,
                seed=(number * config.trainer.prompts_per_step + row) * samples,
                sampling=draw_settings(config.rollout.sampling),
                columns=prompts[row].columns,
            )
            for row in range(config.trainer.prompts_per_step)
        ]
        began = time.perf_counter()
        roles.rollouts.submit(requests)
        groups = roles.rollouts.wait([request.group_id for request in requests])
        passed = time.perf_counter() - began
        found.append((passed, sum(meta.num_sampled for group in groups for meta in group.metas)))
    return found


async def bare_rounds(job: dict[str, Any]) -> list[Round]:
    """The same batches through `AsyncLLM` alone; runs in a process of its own."""
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    settings, sampling = VLLMSettings(**job["settings"]), Sampling(**job["sampling"])
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**settings.engine_args()))

    async def draw(tokens: list[int], name: str, seed: int) -> int:
        params = SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop),
            seed=seed,
            logprobs=0,
            flat_logprobs=True,
            detokenize=bool(sampling.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        async for output in engine.generate({"prompt_token_ids": tokens}, params, name):
            drawn = len(output.outputs[0].token_ids)
        return drawn

    found = []
    for number in range(job["rounds"]):
        began = time.perf_counter()
        counts = await asyncio.gather(
            *(
                draw(tokens, f"{number}-{row}-{k}", (number * len(job["prompts"]) + row) * 8 + k)
                for row, tokens in enumerate(job["prompts"])
                for k in range(job["samples"])
            )
        )
        found.append((time.perf_counter() - began, sum(counts)))
    engine.shutdown()
    return found


def measure_bare(config: Any, sources: Any, rounds: int) -> list[Round]:
    """Starts the process in which vLLM runs alone."""
    settings = vllm_settings(config, str(sources.model_path), engine_id=0, transport="shm")
    encoder = PromptEncoder(str(sources.model_path), config.data.max_prompt_tokens)
    rows = range(config.trainer.prompts_per_step)
    job = {
        "settings": asdict(settings),
        "sampling": asdict(draw_settings(config.rollout.sampling)),
        "prompts": [encoder.encode(sources.train[row].prompt)[0] for row in rows],
        "samples": config.rollout.samples_per_prompt,
        "rounds": rounds,
    }
    done = subprocess.run(
        [sys.executable, __file__, "--bare"],
        input=json.dumps(job),
        env={**os.environ, **engine_env(settings, config.cluster.rollout.threads)},
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"bare vLLM exited {done.returncode}:\n{done.stderr[-2000:]}")
    return [(seconds, tokens) for seconds, tokens in json.loads(done.stdout.splitlines()[-1])]


def copy_seconds(num_bytes: int) -> float:
    """A plain copy of so many bytes from memory to memory, best of five."""
    source, target = (torch.ones(num_bytes, dtype=torch.uint8) for _ in range(2))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def compare_generation(overrides: list[str], rounds: int) -> None:
    """Prints tokens/s of the pool and of vLLM alone."""
    one = [*overrides, "rollout.num_engines=1"]
    with running(one, with_policy=False) as (config, sources, roles):
        pool = pool_rounds(roles, config, sources, rounds)[WARM_UP:]
    bare = measure_bare(config, sources, rounds)[WARM_UP:]
    rates = {
        name: statistics.median(tokens / seconds for seconds, tokens in found)
        for name, found in (("pool", pool), ("bare vLLM", bare))
    }
    print(f"\n{'generation':<22}{'tokens/s':>10}")
    for name, rate in rates.items():
        print(f"{name:<22}{rate:>10.0f}")
    print(f"the pool reaches {rates['pool'] / rates['bare vLLM']:.2f} of bare vLLM", flush=True)


def compare_publication(overrides: list[str], rounds: int, engines: int) -> None:
    """Prints seconds of a publication by transport, and its share of a plain copy's speed."""
    print(
        f"\n{'publication to ' + str(engines) + ' engines':<28}{'MB':>8}{'s':>8}{'of a copy':>11}"
    )
    for transport in ("shm", "gloo"):
        own = [f"rollout.transport={transport}", f"rollout.num_engines={engines}"]
        with running([*overrides, *own], with_policy=True) as (config, sources, roles):
            turns = Turns(roles.rollout_workers, roles.learner.workers, config)
            publisher = Publisher(roles, config, probe_prompts=sources.train, turns=turns)
            publisher.begin(0)
            found = [publisher.publish(1 + k, stepped=False) for k in range(rounds)]
        seconds = statistics.median(one["publication/total_s"] for one in found)
        num_bytes = int(found[0]["publication/bytes"])
        share = copy_seconds(num_bytes) / seconds
        print(f"{transport:<28}{num_bytes / 1e6:>8.0f}{seconds:>8.3f}{share:>11.2f}", flush=True)


def main() -> int:
    """Both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="quickstart", help="of conf/experiment")
    parser.add_argument("--rounds", type=int, default=8, help="batches, of which two warm up")
    parser.add_argument("--engines", type=int, default=2, help="that are published to")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(json.dumps(asyncio.run(bare_rounds(json.load(sys.stdin)))))
        return 0
    os.chdir(Path(__file__).resolve().parents[2])
    overrides = [f"experiment={options.experiment}"]
    compare_generation(overrides, options.rounds)
    compare_publication(overrides, options.rounds, options.engines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
