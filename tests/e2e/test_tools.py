"""`experiment=tiny_tools` on the real stack: calls are made, shown, and recorded token by token."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from workers.models.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two steps: folder, metrics of both."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "orchestrator.cli", "train", "experiment=tiny_tools"]
    command += ["trainer.total_steps=2", "learner.optimizer.warmup_steps=0", "data.eval_limit=8"]
    command += [f"output_dir={folder}"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = (folder / "tiny_tools" / "metrics.jsonl").read_text().splitlines()
    return folder / "tiny_tools", [m for m in map(json.loads, lines) if "reward/mean" in m]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_policy_calls_the_calculator_and_only_its_own_tokens_train(run):
    folder, steps = run
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
@pytest.mark.timeout(1200)
def test_engine_and_learner_agree_over_both_turns(run):
    _, steps = run
    assert all(step["mismatch/abs_max"] < 1e-4 for step in steps)
    assert all(step["mismatch/abs_mean"] < 1e-5 for step in steps)
