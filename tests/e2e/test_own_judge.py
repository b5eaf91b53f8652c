"""A whole run whose judge is a model on an engine of the run's own, which is killed twice."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from workers.models import smollm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
SERVER = "vllm.entrypoints.openai.api_server"
STEPS = 4
JUDGED = """# @package _global_
defaults: [tiny, {override /reward: judge}]
reward:
  scorer:
    prompt: "Question {{ prompt }}, answer {{ response }}. Grade it from 0 to 10, as JSON."
    verdict:
      type: object
      properties: {score: {type: integer, minimum: 0, maximum: 10}}
      required: [score]
      additionalProperties: false
    sampling: {temperature: 0.0, max_tokens: 16}
    patience: {max_repeats: 10}
  timeout_s: 900.0
  engine:
    kv_cache_gib: 0.25
    dtype: float32
    arguments:  # a model of random weights fills JSON with spaces
      - --structured-outputs-config
      - '{"backend": "xgrammar", "disable_any_whitespace": true}'
"""


def build_small_judge(folder: Path) -> Path:
    """Write a random model with two narrow layers and the vocabulary of SmolLM2."""
    whole = smollm2.build_smollm2()
    config = AutoConfig.from_pretrained(whole)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 2, 128, 128
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 2, 1, 64
    config.layer_types = None
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder)
    return folder


def start(folder: Path, said: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """Start a run with the small judge; what it prints goes into a file."""
    (folder / "my_conf" / "experiment").mkdir(parents=True, exist_ok=True)
    (folder / "my_conf" / "experiment" / "judged.yaml").write_text(JUDGED)
    arguments = ["--config-dir", f"{folder}/my_conf", "experiment=judged", *overrides]
    arguments += [f"reward.engine.model={build_small_judge(folder / 'judge')}"]
    arguments += [f"output_dir={folder}", "run_name=judged"]
    with said.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "train", *arguments],
            cwd=folder,
            stdout=file,
            stderr=file,
        )


def server_of(driver: psutil.Process) -> list[psutil.Process]:
    """Return the server of the judge below a driver, then the processes beside and below it."""
    for each in driver.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            guard = each.parent()
            if each.cmdline()[1:3] == ["-m", SERVER] and guard is not None:
                return [each, guard, *guard.children(recursive=True)]
    return []


def num_steps(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return sum("reward/mean" in json.loads(line) for line in lines)


def test_a_run_serves_its_judge_and_starts_it_again_when_it_is_killed(tmp_path: Path) -> None:
    run, said = tmp_path / "judged", tmp_path / "said.txt"
    sizes = ["trainer.prompts_per_step=4", f"trainer.total_steps={STEPS}", "trainer.eval_every=0"]
    started = start(tmp_path, said, *sizes, "rollout.samples_per_prompt=4")
    driver = psutil.Process(started.pid)
    lives: list[list[psutil.Process]] = []  # of the server
    try:
        for step in (1, 2):
            while num_steps(run) < step or not (life := server_of(driver)):
                assert started.poll() is None, said.read_text()[-3000:]
                time.sleep(0.2)
            lives.append(life)
            server, guard, *_ = life
            worker = guard.parent()  # a Ray actor
            assert worker is not None
            (server if step == 1 else worker).kill()
        while started.poll() is None:
            lives += [life] if (life := server_of(driver)) else []
            time.sleep(0.5)
    finally:
        started.kill()
    assert started.returncode == 0, said.read_text()[-3000:]
    assert "starting the judge" in said.read_text()
    assert num_steps(run) == STEPS
    assert len({life[0].pid for life in lives}) == 3
    assert not [each.pid for life in lives for each in life if each.is_running()]
    rows = [
        row
        for file in sorted((run / "rollouts").glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]
    assert len(rows) == STEPS * 4 * 4
    # No failure became a zero; nor was there one: calls were repeated until the server was back.
    assert [row["outcome"] for row in rows if row["reward"] is None] == []
    assert {row["outcome"] for row in rows} == {"scored"}
    scored = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "eval", str(run / "final")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert scored.returncode == 0, scored.stdout[-2000:] + scored.stderr[-3000:]
    assert "failed_frac" in scored.stdout
