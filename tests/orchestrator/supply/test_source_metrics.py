"""Rewards and groups of every source, by the uid of the prompt."""

from dataclasses import replace

from orchestrator.supply.source_metrics import SourceMetrics, pass_rate
from workers.data.trajectory import TrajectoryMeta

META = TrajectoryMeta(
    prompt_uid="sums:7",
    group_id="0-7",
    rollout_id="0-7/0",
    num_tokens=4,
    num_trained=2,
    num_sampled=2,
    finish_reason="stop",
    outcome="scored",
    reward=1.0,
    reward_parts={},
    min_version=7,
    max_version=7,
    generate_s=0.8,
    reward_s=0.01,
)
FAILED = replace(META, outcome="failed:timeout", reward=None)
RIGHT = replace(META, reward=0.9, reward_parts={"correct": 1.0})
WRONG = replace(META, reward=1.0, reward_parts={"correct": 0.0})


def test_the_pass_rate_counts_what_the_scorer_calls_correct():
    assert pass_rate([META, replace(META, reward=0.0), FAILED]) == 0.5
    assert pass_rate([RIGHT, WRONG, WRONG, WRONG]) == 0.25
    assert pass_rate([FAILED]) is None


def test_each_source_has_its_own():
    metrics = SourceMetrics(["sums", "words"])
    metrics.count([META, replace(META, reward=0.0)], trains=True)
    metrics.count([META, META], trains=False)  # filtered
    metrics.count([replace(FAILED, prompt_uid="words:1")] * 2, trains=False)
    assert metrics.metrics() == {
        "source/sums/groups": 1.0,
        "source/sums/reward": 0.75,
        "source/sums/pass_rate": 0.75,
        "source/words/groups": 0.0,
    }
    metrics.begin_step()
    assert metrics.metrics() == {}


def test_one_source_has_no_metrics_of_its_own():
    metrics = SourceMetrics(["train"])
    metrics.count([META], trains=True)
    assert metrics.metrics() == {}
