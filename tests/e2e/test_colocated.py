"""Engines and learner in turn on the real stack: the run is the one without turns, to the bit."""

import json

import pyarrow.parquet as pq
import pytest

from tests.e2e.command import finish_ballast

SAMPLED = ("tokens", "rollout_logprobs", "weight_versions", "reward", "advantages", "logprobs")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("turns")
    for name in ("apart", "colocated"):
        finish_ballast(
            *("train", "experiment=tiny"),
            *(f"output_dir={folder}", f"run_name={name}", "data.eval_limit=4"),
            *("trainer.total_steps=3", "trainer.prompts_per_step=4", "trainer.checkpoint_every=2"),
            *("trainer.export=false", f"cluster.colocated={name == 'colocated'}"),
            cwd=folder,
        )
    return folder / "apart", folder / "colocated"


def test_rollouts_are_equal_to_the_bit(runs):
    for step in (1, 2, 3):
        apart, together = (
            pq.read_table(run / "rollouts" / f"step_{step:06d}.parquet", columns=list(SAMPLED))
            for run in runs
        )
        assert apart.equals(together), step
    assert apart.column("weight_versions")[0].as_py()[-1] == 2  # sampled after two publications


def test_the_learner_learned_the_same(runs):
    lines = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in runs
    ]
    apart, together = ([line for line in run if "time/step_s" in line] for run in lines)
    assert len(apart) == len(together) == 3
    for one, other in zip(apart, together, strict=True):
        for name in ("learner/loss", "learner/grad_norm", "reward/mean"):
            assert one[name] == other[name], name
        assert other["publication/probe_gap_max"] <= 1e-5
