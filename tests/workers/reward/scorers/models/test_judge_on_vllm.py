"""A judge behind vLLM's own OpenAI-compatible server, on this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.reward.scorers.models.vllm_server import serving_smollm2
from workers.reward.base import RewardSample
from workers.reward.pool import RewardPool
from workers.reward.scorers.models.judge import Judge, JudgeModel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SCORE = {"type": "integer", "minimum": 0, "maximum": 10}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_smollm2(tmp_path_factory.mktemp("server")) as url:
        yield url


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
