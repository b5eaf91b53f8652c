"""Inspection reads every row: what would be dropped, doubled or unscorable is said with its row."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from conf.compose import compose
from orchestrator.planning.inspection import inspect
from orchestrator.planning.sources import Sources
from workers.data.prompts import PromptSet
from workers.models.tiny import build_tiny
from workers.reward.scorers.positions import Positions


def prompt_set(path: Path, prompts: list[str], truths: list[str]) -> PromptSet:
    pq.write_table(pa.table({"prompt": prompts, "ground_truth": truths}), path)
    return PromptSet(path, prompt_column="prompt", ground_truth_column="ground_truth")


def test_every_row_is_read(tmp_path: Path) -> None:
    """Of 200 rows, 150 is too long, 160 has no truth, and the last three repeat the first."""
    prompts = [f"{number:03d}=" for number in range(200)]
    truths = [prompt[:-1] for prompt in prompts]
    prompts[150], truths[160], prompts[197:] = "1" * 50, "", [prompts[0]] * 3
    truths[197:] = [truths[0]] * 3
    sources = Sources(
        model_path=Path(build_tiny(tmp_path / "model")),
        critic_path=tmp_path,
        train=prompt_set(tmp_path / "train.parquet", prompts, truths),
        heldout=prompt_set(tmp_path / "eval.parquet", ["007=", "xyz="], ["007", "1"]),
    )
    _, config = compose(["experiment=tiny", "data.max_prompt_tokens=20"])
    text = "\n".join(inspect(config, Positions(), sources))
    assert "train: 200 rows of" in text
    assert "train:0, 4 tokens: '000='" in text
    assert "up to      4 tokens      199 ####" in text
    assert "1 row would not be sampled (train:150; data.max_prompt_tokens=20): " in text
    assert "1 x prompt of N tokens, limit N" in text
    assert "duplicates: 3 rows repeat a prompt of this file" in text
    assert "1 row can't be scored (train:160): 2 x failed:ValueError (the ground truth is" in text
    assert "the ground truth as the response earns 1.000 on average" in text
    assert "overlap: 1 held-out prompt also in the training file" in text
