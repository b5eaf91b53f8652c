"""A run is recorded and trained again from its record: to the bit, and by another algorithm."""

import json
import os
import signal
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.e2e.command import finish_ballast, start_ballast, step_metrics
from workers.data.trajectory import SCHEMA

STEPS = 3
SHAPE = ["trainer.prompts_per_step=8", "rollout.samples_per_prompt=4"]
GRPO = ["algorithm=grpo", "~algorithm.regularizers.kl"]


def command(folder, name, *overrides):
    return [
        *("train", "experiment=tiny"),
        *(f"output_dir={folder}", f"run_name={name}", f"trainer.total_steps={STEPS}"),
        *("data.eval_limit=4", *SHAPE, *overrides),
    ]


def finished(folder, name, *overrides):
    output = finish_ballast(*command(folder, name, *overrides), cwd=folder)
    return folder / name, output


def recorded(run, step):
    return pq.read_table(run / "rollouts" / f"step_{step:06d}.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("replay")


@pytest.fixture(scope="module")
def original(folder):
    return finished(folder, "original", *GRPO)[0]


@pytest.fixture(scope="module")
def again(folder, original):
    return finished(folder, "again", *GRPO, "rollout=replay", f"rollout.replay.folder={original}")


@pytest.mark.slow
def test_replay_reproduces_the_run(original, again):
    run, output = again
    assert "starting the learner" in output
    assert "held-out" not in output
    mine, theirs = (load_file(one / "final" / "model.safetensors") for one in (original, run))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.numpy().tobytes() == theirs[name].numpy().tobytes(), name
    for own, other in zip(step_metrics(original), step_metrics(run), strict=True):
        for metric in ("learner/loss", "learner/grad_norm", "reward/mean", "mismatch/abs_mean"):
            assert own[metric] == other[metric], metric
        assert other["ledger/trained"] == own["ledger/trained"]
        assert "publication/total_s" not in other
    for step in range(1, STEPS + 1):
        one, other = recorded(original, step), recorded(run, step)
        assert one.column_names == other.column_names
        for column in one.column_names:
            same = one[column].combine_chunks().equals(other[column].combine_chunks())
            assert same, f"step {step}: {column}"


@pytest.mark.slow
def test_shared_prompts_give_the_same_run(folder, original):
    apart, output = finished(
        folder,
        "apart",
        *GRPO,
        "rollout=replay",
        f"rollout.replay.folder={original}",
        "learner.shared_prefix=false",
    )
    assert "each sequence computes its own (learner.shared_prefix=false)" in output
    for own, other in zip(step_metrics(original), step_metrics(apart), strict=True):
        assert own["learner/shared_prefix_frac"] > 0.3
        assert other["learner/shared_prefix_frac"] == 0
        for metric in ("learner/loss", "learner/grad_norm"):
            assert own[metric] == pytest.approx(other[metric], rel=1e-4, abs=1e-6), metric
    for step in range(1, STEPS + 1):
        one, other = (
            np.concatenate(recorded(run, step)["logprobs"].to_numpy()) for run in (original, apart)
        )
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_two_algorithms_train_on_identical_batches(folder, original, again):
    grpo, _ = again
    cpgd, output = finished(
        folder,
        "cpgd",
        "algorithm=cpgd",
        "rollout=replay",
        f"rollout.replay.folder={original}",
        "trainer.total_steps=5",
    )
    assert f"ended after step {STEPS}: the recording {original} is at its end" in output
    for step in range(1, STEPS + 1):
        one, other = recorded(grpo, step), recorded(cpgd, step)
        for column in SCHEMA.names:
            same = one[column].combine_chunks().equals(other[column].combine_chunks())
            assert same, f"step {step}: {column}"
        assert not one["advantages"].equals(other["advantages"])
    ledgers = [
        json.loads((run / f"checkpoints/step_{STEPS:06d}/state.json").read_text())["parts"]
        for run in (original, grpo, cpgd)
    ]
    fates = [parts["ledger"]["fate"] for parts in ledgers]
    assert fates[0] == fates[1] == fates[2]
    assert ledgers[2]["recording"] == {"run": "original", "position": STEPS}


@pytest.mark.slow
def test_rollouts_alone_are_recorded_once_across_a_kill_and_train_afterwards(folder):
    alone = ["trainer=rollout_only", "trainer.total_steps=400", "schedule=async"]
    process = start_ballast(*command(folder, "alone", *alone), cwd=folder, own_group=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step 5/"):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    run = folder / "alone"
    saved = max(int(path.name[5:]) for path in (run / "checkpoints").glob("step_??????"))
    assert saved >= 2, "".join(lines)
    before = {step: recorded(run, step).to_pydict() for step in range(1, saved + 1)}
    more = saved + 3
    _, output = finished(folder, "alone", *alone, f"trainer.total_steps={more}", "resume=auto")
    assert "rollout=replay" in output
    for step, columns in before.items():
        assert recorded(run, step).to_pydict() == columns  # not sampled again
    metrics = step_metrics(run)
    assert [line["step"] for line in metrics] == list(range(1, more + 1))
    groups = Counter()
    for step in range(1, more + 1):
        table = recorded(run, step)
        groups.update(set(table["group_id"].to_pylist()))
        drawn = {v for row in table["weight_versions"].to_pylist() for v in row if v >= 0}
        assert drawn == {0}  # the model folder's weights, whatever happened
        assert table.column_names == SCHEMA.names
    assert set(groups.values()) == {1}
    assert len(groups) == 8 * more
    for line in metrics:
        assert line["rollout/sequences"] == 32
        assert line["rollout/tokens_per_s"] > 0
        assert "learner/loss" not in line and "publication/total_s" not in line
    assert not (run / "final").exists()
    source = ["rollout=replay", f"rollout.replay.folder={run}"]
    trained, _ = finished(folder, "offline", *GRPO, "algorithm/correction=tis", *source)
    # Weights move, the record's version does not.
    assert [line["staleness/max"] for line in step_metrics(trained)] == [0, 1, 2]
    assert all(line["learner/steps"] == 1 for line in step_metrics(trained))
    assert [line["groups/recorded_steps_left"] for line in step_metrics(trained)] == [
        more - 1,
        more - 2,
        more - 3,
    ]
