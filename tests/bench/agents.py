"""Rollouts that are played over HTTP against bare vLLM, given the same requests.

    python tests/bench/agents.py [--experiment quickstart] [--rollouts 64] [--rounds 5]

What it is: tokens/s of concurrent rollouts of three turns, played through the endpoint by a client
in a process of its own, beside those of the same engine given the same token ids, limits and seeds
without endpoint, session or client. The two take turns, and each starts with an empty prefix cache,
which the turns of a rollout share.
What it is not: the time that agents need to start and to think.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from conf.compose import compose
from orchestrator.planning.settings import vllm_settings
from orchestrator.planning.sources import prepare
from workers.data.images.prompt_images import PromptImages
from workers.data.prompts import PromptEncoder
from workers.data.requests import Sample, Sampling
from workers.engines.vllm.settings import VLLMSettings, engine_env

TURNS = 3
TURN_TOKENS = 32
WARM_UP = 1  # rounds that are not counted
MARK = "BALLAST_BENCH_ENGINE"  # set in the process that runs the engine


async def play_all(sessions: list[tuple[str, str, str]]) -> None:
    """Play every session as an agent would: the whole text so far with every call."""
    import aiohttp

    async def play(client: aiohttp.ClientSession, url: str, token: str, prompt: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        for turn in range(TURNS):
            body = {"model": "policy", "prompt": prompt}
            async with client.post(f"{url}/v1/completions", json=body, headers=headers) as answer:
                answer.raise_for_status()
                said = (await answer.json())["choices"][0]["text"]
            prompt += f"{said}\nThat was turn {turn + 1}. Go on:"

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as client:
        await asyncio.gather(*(play(client, *session) for session in sessions))


def client() -> None:
    """Play the sessions of every line of standard input; answer each line."""
    for line in sys.stdin:
        asyncio.run(play_all(json.loads(line)))
        print("played", flush=True)


class Bench:
    """One engine, asked in two ways.

    Args:
        settings: of the engine.
        rollouts: played at the same time.
    """

    def __init__(self, settings: VLLMSettings, rollouts: int) -> None:
        from workers.engines.vllm.engine import VLLMEngine
        from workers.rollout.turn_texts import TurnTexts

        self.engine, self.rollouts = VLLMEngine(settings), rollouts
        self.texts = TurnTexts(PromptEncoder(settings.model_path, 256))
        self.sampling = Sampling(max_tokens=TURNS * (TURN_TOKENS + 32), ignore_eos=True)
        self.asked: list[list[tuple[list[int], Sampling, int]]] = []  # by rollout and turn

    async def over_http(self, endpoint: Any, agents: subprocess.Popen[str]) -> float:
        """Return tokens/s of rollouts that a client plays, and keep what the engine was asked."""
        from workers.rollout.endpoint.conversation import Conversation
        from workers.rollout.endpoint.rollout_calls import RolloutCalls
        from workers.rollout.environments.contract import Task
        from workers.rollout.environments.guarded_play import EnvironmentClock
        from workers.rollout.limits import RolloutLimits
        from workers.rollout.session import Rollout

        self.asked, drawn = [[] for _ in range(self.rollouts)], 0
        sessions, opened = [], []
        for number in range(self.rollouts):
            prompt = f"Rollout {number}. Tell a story about the number {number} and its friends:"

            async def sample(
                tokens: list[int],
                turn: int,
                sampling: Sampling,
                images: PromptImages,
                number: int = number,
            ) -> Sample:
                nonlocal drawn
                self.asked[number].append((tokens, sampling, 1000 * number + turn))
                found = await self.engine.generate(
                    tokens,
                    request_id=f"{number}/{turn}",
                    sampling=sampling,
                    seed=1000 * number + turn,
                )
                drawn += len(found.tokens)
                return found

            rollout = Rollout(
                Task(uid=str(number), prompt=prompt, ground_truth=None),
                self.texts.opening(prompt, None)[0],
                sampling=self.sampling,
                limits=RolloutLimits(max_turns=TURNS, max_turn_tokens=TURN_TOKENS),
                texts=self.texts,
                sample=sample,
                clock=EnvironmentClock(stretch_s=600.0),
            )
            calls = RolloutCalls(
                token=f"token {number}",
                conversation=Conversation(rollout.first, prompt, reader=None),
                max_calls=TURNS,
                over=asyncio.get_running_loop().create_future(),
            )
            opened.append(endpoint.open(calls))
            sessions.append((opened[-1], calls.token, prompt))
        assert agents.stdin is not None and agents.stdout is not None
        began = time.perf_counter()
        agents.stdin.write(json.dumps(sessions) + "\n")
        agents.stdin.flush()
        assert await asyncio.to_thread(agents.stdout.readline) == "played\n"
        passed = time.perf_counter() - began
        for url in opened:
            await endpoint.close(url)
        assert all(len(turns) == TURNS for turns in self.asked)
        return drawn / passed

    async def bare(self) -> float:
        """Return tokens/s of the same requests, given to vLLM itself."""
        from vllm.inputs import tokens_input

        from workers.engines.vllm.engine import _params

        async def play(number: int) -> int:
            drawn = 0
            for turn, (tokens, sampling, seed) in enumerate(self.asked[number]):
                params = _params(sampling, seed)
                name = f"bare {number}/{turn}"
                async for output in self.engine._live().generate(
                    tokens_input(tokens), params, name
                ):
                    last = output
                drawn += len(last.outputs[0].token_ids)
            return drawn

        began = time.perf_counter()
        drawn = sum(await asyncio.gather(*(play(number) for number in range(self.rollouts))))
        return drawn / (time.perf_counter() - began)


async def compare(settings: VLLMSettings, rollouts: int, rounds: int) -> None:
    """Print tokens/s of both, and the quotient."""
    from workers.rollout.endpoint.server import Endpoint

    bench = Bench(settings, rollouts)
    await bench.engine.start(0)
    endpoint = Endpoint(max_body_bytes=1 << 20)
    await endpoint.start("127.0.0.1")
    agents = subprocess.Popen(
        [sys.executable, __file__, "--client"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: list[tuple[float, float]] = []
    try:
        for _ in range(WARM_UP + rounds):
            await bench.engine._live().reset_prefix_cache()
            over_http = await bench.over_http(endpoint, agents)
            await bench.engine._live().reset_prefix_cache()
            found.append((over_http, await bench.bare()))
            print("endpoint {:.0f} tokens/s, bare vLLM {:.0f}".format(*found[-1]), flush=True)
    finally:
        agents.terminate()
        await endpoint.stop()
        await bench.engine.shutdown()
    counted = found[WARM_UP:]
    quotient = statistics.median(over_http / bare for over_http, bare in counted)
    print(f"{rollouts} rollouts of {TURNS} turns: the endpoint reaches {quotient:.2f} of bare vLLM")


def main() -> int:
    """Start the engine in a process whose environment is the engine's, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="quickstart", help="of conf/experiment")
    parser.add_argument("--rollouts", type=int, default=64, help="played at the same time")
    parser.add_argument("--rounds", type=int, default=5, help="of each, beside one that warms up")
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        client()
        return 0
    own = [f"experiment={options.experiment}", "rollout.max_model_len=512"]
    _, config = compose([*own, "rollout.kv_cache_gib=1"])
    path = str(prepare(config).model_path)
    settings = vllm_settings(config, path, engine_id=0, transport="shm")
    if MARK not in os.environ:  # variables of the engine must be there before torch is imported
        variables = engine_env(settings, config.cluster.rollout.threads)
        return subprocess.call(
            [sys.executable, __file__, *sys.argv[1:]], env={**os.environ, **variables, MARK: "1"}
        )
    asyncio.run(compare(settings, options.rollouts, options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
