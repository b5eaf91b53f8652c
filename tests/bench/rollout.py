"""The rollout plane against its parts: the pool against bare vLLM, publication against a copy.

    python tests/bench/rollout.py [--experiment quickstart] [--rounds 8] [--engines 2]

What it is: in one run, on the same cores, (1) generated tokens/s of the pool, from `submit` to the
last group scored and in the object store, beside those of `AsyncLLM` in a plain process with the
same prompts, seeds and settings, and no reward, the two taking turns batch by batch; (2) seconds to
publish the model's weights to the engines by `shm` and by `gloo`, attestation apart, beside a plain
memory copy of the same bytes; by `gloo` also as if each engine stood on a node of its own.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from conf.compose import compose
from orchestrator.cluster.cluster import Cluster, Roles
from orchestrator.cluster.environments import build_environments
from orchestrator.fleet.colocation import Colocation
from orchestrator.fleet.publication import Publisher
from orchestrator.planning.roles import roles_of
from orchestrator.planning.settings import vllm_settings
from orchestrator.planning.sources import prepare
from orchestrator.supply.producer import draw_settings
from workers.data.prompts import PromptEncoder
from workers.data.requests import GroupRequest, Sampling
from workers.engines.vllm.settings import (
    VLLMSettings,
    engine_env,
)

RUN_LIMIT_S = 900.0
ANSWER = "round: "
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
            environments=build_environments(config),
            scorer=instantiate(raw.reward.scorer, _convert_="all"),
            version=0,
            planned=[
                role
                for role in roles_of(config, algorithm)
                if with_policy or role.name in ("rollout", "reward")
            ],
        )
        yield config, sources, roles


Round = tuple[float, int]  # seconds and generated tokens of a batch


def pool_round(roles: Roles, config: Any, sources: Any, number: int) -> Round:
    """A batch through the pool."""
    prompts, samples = sources.train, config.rollout.samples_per_prompt
    requests = [
        GroupRequest(
            group_id=f"{number}-{row}",
            prompt_uid=prompts[row].uid,
            begun_version=0,
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
    roles.fleet.pool.submit(requests)
    groups = roles.fleet.pool.wait([request.group_id for request in requests])
    passed = time.perf_counter() - began
    return passed, sum(meta.num_sampled for group in groups for meta in group.metas)


async def bare_rounds() -> None:
    """The same batches through `AsyncLLM` alone, one for every line of standard input.

    Runs in a process of its own; the first line says what to do.
    """
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    job = json.loads(sys.stdin.readline())
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

    for line in sys.stdin:
        number = int(line)
        began = time.perf_counter()
        counts = await asyncio.gather(
            *(
                draw(tokens, f"{number}-{row}-{k}", (number * len(job["prompts"]) + row) * 8 + k)
                for row, tokens in enumerate(job["prompts"])
                for k in range(job["samples"])
            )
        )
        print(f"{ANSWER}{json.dumps((time.perf_counter() - began, sum(counts)))}", flush=True)
    engine.shutdown()


@contextmanager
def bare_vllm(config: Any, sources: Any) -> Iterator[Callable[[int], Round]]:
    """A process in which vLLM runs alone; yields what has it sample a batch."""
    settings = vllm_settings(config, str(sources.model_path), engine_id=0, transport="shm")
    encoder = PromptEncoder(str(sources.model_path), config.data.max_prompt_tokens)
    rows = range(config.trainer.prompts_per_step)
    job = {
        "settings": asdict(settings),
        "sampling": asdict(draw_settings(config.rollout.sampling)),
        "prompts": [encoder.encode(sources.train[row].prompt)[0] for row in rows],
        "samples": config.rollout.samples_per_prompt,
    }
    process = subprocess.Popen(
        [sys.executable, __file__, "--bare"],
        env={**os.environ, **engine_env(settings, config.cluster.rollout.threads)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    say, answers = process.stdin, process.stdout

    def ask(line: str) -> None:
        say.write(f"{line}\n")
        say.flush()

    def sample(number: int) -> Round:
        ask(str(number))
        for line in answers:  # vLLM prints there too
            if line.startswith(ANSWER):
                seconds, tokens = json.loads(line.removeprefix(ANSWER))
                return seconds, tokens
        raise RuntimeError(f"bare vLLM ended with exit code {process.wait()}")

    ask(json.dumps(job))
    try:
        yield sample
    finally:
        say.close()
        process.wait(RUN_LIMIT_S)


def compare_generation(overrides: list[str], rounds: int) -> None:
    """Prints tokens/s of the pool and of vLLM alone, which take colocation, batch by batch."""
    one = [*overrides, "rollout.num_engines=1"]
    found: dict[str, list[Round]] = {"pool": [], "bare vLLM": []}
    with (
        running(one, with_policy=False) as (config, sources, roles),
        bare_vllm(config, sources) as sample,
    ):
        for number in range(rounds):
            found["pool"].append(pool_round(roles, config, sources, number))
            found["bare vLLM"].append(sample(number))
    rates = {
        name: statistics.median(tokens / seconds for seconds, tokens in taken[WARM_UP:])
        for name, taken in found.items()
    }
    print(f"\n{'generation':<22}{'tokens/s':>10}")
    for name, rate in rates.items():
        print(f"{name:<22}{rate:>10.0f}")
    print(f"the pool reaches {rates['pool'] / rates['bare vLLM']:.2f} of bare vLLM", flush=True)


def compare_publication(overrides: list[str], rounds: int, engines: int) -> None:
    """Prints seconds of a publication by transport, and its share of a plain copy's speed."""
    title = f"publication to {engines} engines"
    print(f"\n{title:<28}{'MB':>8}{'s':>8}{'update':>9}{'of a copy':>11}")
    for transport, apart in (("shm", False), ("gloo", False), ("gloo", True)):
        own = [f"rollout.transport={transport}", f"rollout.num_engines={engines}"]
        with running([*overrides, *own], with_policy=True) as (config, sources, roles):
            if apart:  # every engine receives a copy of its own, as on other nodes
                roles.fleet.launcher.node = lambda number: f"node of {number}"
            colocation = Colocation(roles.fleet.workers, roles.learner.workers, config)
            publisher = Publisher(
                roles.fleet,
                roles.learner.workers,
                config,
                probe_prompts=sources.train,
                colocation=colocation,
            )
            publisher.begin(0)
            found = [publisher.publish(1 + k, stepped=False) for k in range(rounds)]
        seconds = statistics.median(one["publication/total_s"] for one in found)
        num_bytes = int(found[0]["publication/bytes"])
        share = statistics.median(one["publication/copy_frac"] for one in found)
        update = statistics.median(one["publication/update_s"] for one in found)
        name = f"{transport}, nodes apart" if apart else transport
        print(
            f"{name:<28}{num_bytes / 1e6:>8.0f}{seconds:>8.3f}{update:>9.3f}{share:>11.3f}",
            flush=True,
        )


def main() -> int:
    """Both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="quickstart", help="of conf/experiment")
    parser.add_argument("--rounds", type=int, default=8, help="batches, of which two warm up")
    parser.add_argument("--engines", type=int, default=2, help="that are published to")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        asyncio.run(bare_rounds())
        return 0
    os.chdir(Path(__file__).resolve().parents[2])
    overrides = [f"experiment={options.experiment}"]
    compare_generation(overrides, options.rounds)
    compare_publication(overrides, options.rounds, options.engines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
