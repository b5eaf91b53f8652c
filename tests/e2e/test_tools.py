"""`experiment=tiny_tools` on the real stack: a policy learns to call, and to copy what is shown."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.e2e.command import finish_ballast
from workers.models.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The whole experiment: folder, metrics of every step, what was printed."""
    folder = tmp_path_factory.mktemp("runs")
    command = ("train", "experiment=tiny_tools", f"output_dir={folder}")
    output = finish_ballast(*command, cwd=folder, timeout_s=1500)
    lines = (folder / "tiny_tools" / "metrics.jsonl").read_text().splitlines()
    steps = [m for m in map(json.loads, lines) if "reward/mean" in m]
    return folder / "tiny_tools", steps, output


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_tiny_model_learns_to_call_the_calculator_and_to_copy_its_result(run):
    _, steps, output = run
    rewards = [step["reward/mean"] for step in steps]
    assert rewards[0] < 0.3
    assert np.mean(rewards[-10:]) > 0.8
    heldout = [line for line in output.splitlines() if line.startswith("held-out at step")]
    assert float(heldout[-1].split("mean ")[1].split()[0]) > 0.8


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_policy_calls_the_calculator_and_only_its_own_tokens_train(run):
    folder, steps, _ = run
    assert 0.05 < steps[0]["reward/mean"] < 0.3  # what the warm start leaves to learn
    assert steps[0]["reward/part/tool_calls"] > 0.3
    tokenizer = build_tokenizer(model_max_length=512)
    rows = pq.read_table(folder / "rollouts" / "step_000001.parquet").to_pylist()
    assert len(rows) == 128
    right = [row for row in rows if row["reward"] == 1.0]
    assert right
    for row in right:
        assert row["num_turns"] == 2  # no model of this size computes a product by itself
        kept = zip(row["tokens"], row["loss_mask"], strict=True)
        call, answer, rest = tokenizer.decode([t for t, own in kept if own]).split("<|im_end|>")
        assert (call[:10], rest) == ("[calculate", "")
        assert answer == row["response_text"]
        text = tokenizer.decode(row["tokens"])
        assert f"{call}<|im_end|>\n<|im_start|>tool\n{answer}<|im_end|>\n" in text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_engine_and_learner_agree_over_both_turns(run):
    _, steps, _ = run
    assert all(step["mismatch/abs_max"] < 1e-4 for step in steps)
    assert all(step["mismatch/abs_mean"] < 1e-5 for step in steps)
