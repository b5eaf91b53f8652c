"""`experiment=tiny_tools` on the real stack: a tiny model learns to use the calculator."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from workers.models.tokenizer import build_tokenizer

OVERRIDES = ("experiment=tiny_tools", "run_name=tools")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_tiny_model_learns_to_call_a_tool_and_to_copy_its_result(tmp_path):
    command = [sys.executable, "-m", "orchestrator.cli", "train", *OVERRIDES]
    done = subprocess.run(
        [*command, f"output_dir={tmp_path}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=2400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = tmp_path / "tools"
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if "reward/mean" in line]
    rewards = [step["reward/mean"] for step in steps]
    assert rewards[0] < 0.3
    assert sum(rewards[-5:]) / 5 > 0.8
    assert steps[-1]["reward/part/tool_calls"] > 0.9
    last = sorted((folder / "rollouts").glob("step_*.parquet"))[-1]
    right = [row for row in pq.read_table(last).to_pylist() if row["reward"] == 1.0]
    assert all(row["num_turns"] == 2 for row in right)  # no model computes a product by itself
    row = right[0]
    tokenizer = build_tokenizer(model_max_length=512)
    trained = [t for t, trains in zip(row["tokens"], row["loss_mask"], strict=True) if trains]
    call, answer = tokenizer.decode(trained).split("<|im_end|>")[:2]
    assert call.startswith('[calculate(expression="')
    assert answer == row["response_text"]
    assert f"<|im_start|>tool\n{answer}<|im_end|>" in tokenizer.decode(row["tokens"])
