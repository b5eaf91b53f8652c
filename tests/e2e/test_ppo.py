"""`algorithm=ppo` on the real stack: a critic beside the learner, its warm-up, its checkpoint."""

import shutil

import pyarrow.parquet as pq
import pytest

from tests.e2e.command import finish_ballast, step_metrics

OVERRIDES = (
    "experiment=tiny",
    "algorithm=ppo",
    "data.eval_limit=8",
    "trainer.prompts_per_step=8",
    "trainer.checkpoint_every=1",
    "critic.zero_stage=2",
    "critic.token_budget=96",
    "critic.updates_per_step=2",
    "critic.warmup_steps=1",
    "critic.optimizer.lr=1e-3",
)


def train(folder, *overrides):
    named = (f"output_dir={folder}", "run_name=ppo")
    finish_ballast("train", *OVERRIDES, *overrides, *named, cwd=folder)
    return step_metrics(folder / "ppo")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two steps; then, as if the second checkpoint had never been written, on to the third.

    The first process shares the learner's placement, the second gives the critic its own.
    """
    folder = tmp_path_factory.mktemp("runs")
    before = train(folder, "trainer.total_steps=2")
    checkpoints = folder / "ppo" / "checkpoints"
    parts = {path.name for path in (checkpoints / "step_000001").iterdir()}
    shutil.rmtree(checkpoints / "step_000002")
    dedicated = "cluster.critic.placement=dedicated"
    after = train(folder, "trainer.total_steps=3", "resume=auto", dedicated)
    return folder / "ppo", before, after, parts


def test_the_critic_learns_alone_and_then_beside_the_policy(run):
    _, before, after, _ = run
    first, second = before
    assert "learner/steps" not in first
    assert "publication/bytes" not in first
    assert (second["learner/steps"], after[2]["learner/steps"]) == (1, 1)
    assert [line["critic/steps"] for line in after] == [2, 2, 2]
    assert [line["critic/lr"] for line in after] == [1e-3] * 3
    assert first["critic/value_mean"] == 0.0  # the head starts at zero
    assert second["critic/value_mean"] != 0.0
    assert first["staleness/max"] == second["staleness/max"] == 0
    assert all(line["critic/grad_norm"] > 0 for line in after)


def test_values_and_returns_are_recorded_and_are_those_of_gae(run):
    folder, *_ = run
    for step in (1, 2):
        rows = pq.read_table(folder / "rollouts" / f"step_{step:06d}.parquet").to_pylist()
        assert len(rows) == 64
        for row in rows:
            trained = [i for i, mask in enumerate(row["loss_mask"]) if mask]
            values = [row["values"][i] for i in trained]
            assert any(values) == (step == 2)
            # returns_t = V_t + sum_k (0.95)^k delta_{t+k}, with V = 0 after the last token
            following, advantage = 0.0, 0.0
            for i, value in zip(reversed(trained), reversed(values), strict=True):
                reward = row["reward"] if i == trained[-1] else 0.0
                advantage = reward + following - value + 0.95 * advantage
                following = value
                assert row["returns"][i] == pytest.approx(advantage + value, abs=1e-5)


def test_the_critic_resumes_to_the_bit(run):
    _, before, after, parts = run
    assert {"learner", "critic", "state.json"} <= parts
    assert [line["step"] for line in after] == [1, 2, 3]
    for name in ("reward/mean", "critic/loss", "critic/explained_variance", "value/mean"):
        assert after[1][name] == before[1][name], name
