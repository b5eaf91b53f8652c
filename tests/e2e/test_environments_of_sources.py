"""Two sources, one answered in one turn and one played with a tool: trained, killed and resumed."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.command import run_ballast

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

MIXED = """# @package _global_
defaults: [tiny, {override /model: tiny_tools}, {override /data: files}]
run_name: mixed
data:
  max_prompt_tokens: 32
  sources:
    - {name: sums, path: sums.jsonl, weight: 1}
    - name: products
      path: products.jsonl
      weight: 3
      environment:
        player:
          _target_: workers.rollout.tools.environment.ToolEnvironment
          tool_parser: pythonic
          num_processes: 2
          toolsets:
            calculator:
              _target_: workers.rollout.tools.toolset.Functions
              paths: [workers.rollout.tools.calculator.calculate]
        max_turns: 2
evaluation:
  sets:
    tools:
      path: products.jsonl
      limit: 4
      environment: ${data.sources.1.environment}
    plain: {path: products.jsonl, limit: 4}
trainer: {total_steps: 4, prompts_per_step: 8, checkpoint_every: 1, eval_every: 4}
rollout:
  samples_per_prompt: 8
  max_model_len: 128
  sampling: {max_new_tokens: 80}
  eval_sampling: {temperature: 0.0, max_new_tokens: 80}
learner: {token_budget: 8192, optimizer: {warmup_steps: 0}}
"""


def rows_of(folder: Path) -> list[dict[str, object]]:
    """Rows of training, in the order of steps."""
    files = sorted((folder / "rollouts").glob("step_*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = ("train", "--config-dir", "my_conf", "experiment=mixed")
    return run_ballast(*command, f"output_dir={folder}/runs", *overrides, cwd=folder, timeout_s=600)


def test_each_source_is_played_in_its_environment_across_a_resume(tmp_path: Path) -> None:
    (tmp_path / "my_conf" / "experiment").mkdir(parents=True)
    (tmp_path / "my_conf" / "experiment" / "mixed.yaml").write_text(MIXED)
    for name, sign in (("sums", "+"), ("products", "*")):
        lines = [
            {
                "prompt": [{"role": "user", "content": f"{a}{sign}{b}"}],
                "ground_truth": str(a + b if sign == "+" else a * b),
            }
            for a in range(10, 20)
            for b in range(10, 20)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first = train(tmp_path, "trainer.total_steps=2", "trainer.eval_every=0")
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert "data.sources.products: up to 2 turns" in first.stdout
    resumed = train(tmp_path, "resume=changed")
    assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr[-3000:]
    rows = rows_of(tmp_path / "runs" / "mixed")
    by_source = Counter((row["dataset"], row["num_turns"]) for row in rows)
    prompts = Counter(row["dataset"] for row in rows)
    assert prompts == {"sums": 4 * 2 * 8, "products": 4 * 6 * 8}  # steps, prompts, siblings
    assert by_source["sums", 1] == prompts["sums"]
    assert by_source["products", 2] > prompts["products"] / 10
    assert len({row["prompt_uid"] for row in rows}) == 4 * 8  # none begun twice
    metrics = (tmp_path / "runs" / "mixed" / "metrics.jsonl").read_text().splitlines()
    steps = [m for m in map(json.loads, metrics) if "mismatch/abs_max" in m]
    assert max(step["mismatch/abs_max"] for step in steps) < 1e-4
    assert any("eval/tools/mean" in m and "eval/plain/mean" in m for m in map(json.loads, metrics))
