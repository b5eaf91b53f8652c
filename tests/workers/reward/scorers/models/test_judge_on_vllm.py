"""A judge behind vLLM's own OpenAI-compatible server, on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.models import smollm2
from workers.reward.base import RewardSample
from workers.reward.pool import RewardPool
from workers.reward.scorers.models.judge import Judge, JudgeModel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SCORE = {"type": "integer", "minimum": 0, "maximum": 10}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    arguments = ["--model", str(smollm2.build_smollm2()), "--served-model-name", "smollm2"]
    arguments += ["--max-model-len", "512", "--dtype", "float32", "--enforce-eager"]
    arguments += ["--host", "127.0.0.1", "--port", str(port)]
    env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments],
            stdout=file,
            stderr=file,
            env=env,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 600
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_a_model_behind_vllm_judges_siblings_alone(url: str, tmp_path: Path) -> None:
    scorer = Judge(
        judges={"small": JudgeModel(url=url, model="smollm2")},
        prompt="Grade the answer {{ response }} to {{ prompt }} from 0 to 10, as JSON.",
        verdict={
            "type": "object",
            "properties": {"score": SCORE},
            "required": ["score"],
            "additionalProperties": False,
        },
        sampling={"temperature": 0.0, "max_tokens": 64},
    )
    samples = [RewardSample(prompt="2+3=", response=text, ground_truth="5") for text in "56"]
    with RewardPool(scorer, num_processes=2, timeout_s=300.0, folder=str(tmp_path)) as pool:
        first = asyncio.run(pool.score(samples))
        began = time.perf_counter()
        again = asyncio.run(pool.score(samples))
        assert time.perf_counter() - began < 1.0  # from the file of calls
    for result in (*first, *again):
        assert result.outcome == "scored", result.outcome
        assert result.reward in [tenth / 10 for tenth in range(11)]
        assert "score" in result.notes["small/answer"]
    assert [r.reward for r in again] == [r.reward for r in first]
