"""A run is recorded and trained again from its record: to the bit, and by another algorithm."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from workers.trajectory import SCHEMA

STEPS = 3
SHAPE = ["trainer.prompts_per_step=8", "rollout.samples_per_prompt=4"]
GRPO = ["algorithm=grpo", "~algorithm.regularizers.kl"]


def train(folder, name, *overrides):
    command = [
        *(sys.executable, "-m", "orchestrator.cli", "train", "experiment=tiny"),
        *(f"output_dir={folder}", f"run_name={name}", f"trainer.total_steps={STEPS}"),
        *("data.eval_limit=4", *SHAPE, *overrides),
    ]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def finished(folder, name, *overrides):
    done = train(folder, name, *overrides)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / name, done.stdout


def steps(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "time/step_s" in line]


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
    for own, other in zip(steps(original), steps(run), strict=True):
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
