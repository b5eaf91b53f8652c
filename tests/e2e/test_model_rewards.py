"""Whole runs whose rewards come from models: judges behind services, and a reward model."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from tests.e2e.command import run_ballast
from tests.workers.reward.scorers.models.vllm_server import serving_smollm2
from workers.models.tokenizer import VOCABULARY, build_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
SHORT = ("trainer.total_steps=2", "trainer.prompts_per_step=8", "trainer.eval_every=0")


def run_of(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    common = [f"output_dir={folder}", f"run_name={name}"]
    return run_ballast("train", *common, *arguments, cwd=folder, timeout_s=600)


def tiny(folder: Path, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return run_of(folder, name, "experiment=tiny", *SHORT, *overrides)


def recorded(run: Path) -> list[dict[str, object]]:
    files = sorted((run / "rollouts").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


class Ranks(BaseHTTPRequestHandler):
    """Ranks the answers of a prompt at random, and answers every tenth call with an error."""

    protocol_version = "HTTP/1.1"
    chance = random.Random(0)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        places = list(range(1, body["messages"][-1]["content"].count("<answer number=") + 1))
        self.chance.shuffle(places)
        verdict = json.dumps({"reason": "chance", "ranking": places})
        content = json.dumps({"choices": [{"message": {"content": verdict}}]}).encode()
        self.send_response(503 if self.chance.random() < 0.1 else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def kept_calls(run: Path) -> list[tuple[str, str]]:
    """Return answer and error of every call that a run kept."""
    (calls,) = run.glob("judge_calls.*.sqlite")
    with closing(sqlite3.connect(calls)) as connection:
        return connection.execute("SELECT answer, error FROM calls").fetchall()


VERDICT = """# @package _global_
defaults: [tiny, {override /reward: judge}]
reward:
  scorer:
    judges: {judge: {model: smollm2}}
    prompt: "Question {{ prompt }}, answer {{ response }}. Grade it from 0 to 10, as JSON."
    verdict:
      type: object
      properties: {score: {type: integer, minimum: 0, maximum: 10}}
      required: [score]
      additionalProperties: false
    sampling: {temperature: 0.0, max_tokens: 16}
"""


def test_a_model_behind_vllm_judges_every_response_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "my_conf" / "experiment").mkdir(parents=True)
    (tmp_path / "my_conf" / "experiment" / "judged.yaml").write_text(VERDICT)
    with serving_smollm2(tmp_path) as url:
        done = run_of(
            tmp_path,
            "judged",
            *("--config-dir", f"{tmp_path}/my_conf", "experiment=judged"),
            *(f"reward.scorer.judges.judge.url={url}", "trainer.prompts_per_step=4"),
            *("trainer.total_steps=2", "trainer.eval_every=0", "rollout.samples_per_prompt=4"),
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    rows = recorded(tmp_path / "judged")
    assert len(rows) == 2 * 4 * 4
    assert {row["outcome"] for row in rows} == {"scored"}
    tenths = {round(tenth / 10, 6) for tenth in range(11)}
    assert {round(row["reward"], 6) for row in rows} <= tenths  # type: ignore[call-overload]
    calls = kept_calls(tmp_path / "judged")
    assert calls  # equal answers are asked about once
    assert all(error == "" for _, error in calls)


def test_a_judge_ranks_the_siblings_of_a_run_and_every_call_is_kept(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ranks)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    judge = "reward.scorer.judges.judge"
    url = f"{judge}.url=http://127.0.0.1:{server.server_port}/v1"
    chosen = ["reward=judge_ranking", url, f"{judge}.model=m", "reward.scorer.patience.pause_s=0.1"]
    try:
        done = tiny(tmp_path, "ranked", *chosen)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    rows = recorded(tmp_path / "ranked")
    assert {row["outcome"] for row in rows} == {"scored"}
    assert all(0.0 <= row["reward"] <= 1.0 for row in rows)  # type: ignore[operator]
    assert "Compare the answers" in str(rows[0]["reward_notes"])
    calls = kept_calls(tmp_path / "ranked")
    assert all(error == "" for _, error in calls)
    ranked = [len(json.loads(answer)["ranking"]) for answer, _ in calls]
    assert ranked.count(8) == 2 * 2 * 8  # steps, repeats, prompts; held-out answers stand alone


def test_a_reward_model_scores_a_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_labels": 1}
    config = LlamaConfig(vocab_size=len(VOCABULARY), max_position_embeddings=128, **sizes, **heads)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "model")
    build_tokenizer(model_max_length=128).save_pretrained(tmp_path / "model")
    done = tiny(tmp_path, "modelled", "reward=reward_model", f"reward.scorer.path={tmp_path}/model")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    rows = recorded(tmp_path / "modelled")
    assert {row["outcome"] for row in rows} == {"scored"}
    assert len({row["reward"] for row in rows}) > len(rows) / 2
