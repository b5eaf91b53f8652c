"""Data as users have them train with one command; two weighted sources under a curriculum resume.

Each run starts in a folder that holds nothing but what the test writes there.
"""

import json
import os
import re
import signal
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.command import finish_ballast, start_ballast

pytestmark = pytest.mark.slow
TIMEOUT_S = 400
REWARD = """
def score(prompt, response, ground_truth, level=0):
    right = response.strip() == ground_truth
    shared = sum(a == b for a, b in zip(response, ground_truth))
    return {
        "reward": 0.5 * right + 0.5 * shared / len(ground_truth),
        "correct": right,
        "level": level,
    }
"""


ON_PATH = {"PYTHONPATH": str(Path(__file__).parents[2])}


def command(*overrides):
    return [
        *("train", "experiment=tiny", "data=files"),
        *("output_dir=runs", "trainer.prompts_per_step=4", "trainer.checkpoint_every=2"),
        *("tracking.report=false", *overrides),
    ]


def train(folder, *overrides):
    """A finished run, with the folder on the path as a shell has it."""
    return finish_ballast(*command(*overrides), cwd=folder, timeout_s=TIMEOUT_S, variables=ON_PATH)


def digits(count):
    return [f"{number * 7919 % 100000:05d}" for number in range(count)]


def test_a_users_json_lines_and_ten_line_reward_train_with_one_command(tmp_path):
    rows = [{"prompt": f"{text}=", "ground_truth": text, "level": 3} for text in digits(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "my_rewards.py").write_text(REWARD)
    reward = ("reward=function", "reward.scorer.path=my_rewards.score")
    train(tmp_path, "data.train_path=train.jsonl", *reward, "trainer.total_steps=2")
    run = tmp_path / "runs" / "tiny"
    step = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert step["reward/part/level"] == 3.0
    assert step["samples/failed"] == 0.0
    assert (run / "final" / "model.safetensors").exists()


def test_a_parquet_file_in_verls_layout_trains_as_published(tmp_path):
    rows = [
        {
            "data_source": "digits",
            "prompt": [{"role": "user", "content": f"{text}=", "name": None}],
            "ability": "copy",
            "reward_model": {"style": "rule", "ground_truth": text},
            "extra_info": {"split": "train", "index": number},
        }
        for number, text in enumerate(digits(40))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    (tmp_path / "plain.jinja").write_text("{{ messages[0].content }}")
    train(
        tmp_path,
        "data.train_path=train.parquet",
        "data.ground_truth_column=reward_model.ground_truth",
        "data.chat_template=plain.jinja",
        "trainer.total_steps=2",
    )
    run = tmp_path / "runs" / "tiny"
    table = pq.read_table(run / "rollouts" / "step_000001.parquet")
    assert set(table["outcome"].to_pylist()) == {"scored"}
    versions = table["weight_versions"].to_pylist()
    assert {row.count(-1) for row in versions} == {6}  # tokens of "12345=", and no more


CURRICULUM = (
    "data.sources=[{name: long, path: long.jsonl, weight: 3}, "
    "{name: short, path: short.jsonl, weight: 1}]",
    "data.curriculum.skip_solved=true",
    "data.curriculum.windows=[{from_step: 1}, {from_step: 3, max_pass_rate: 0.9}]",
    "data.curriculum.weights=[{from_step: 4, sources: {long: 1, short: 1}}]",
    "trainer.total_steps=4",
)


def saved_ledger(run):
    return json.loads((run / "checkpoints/step_000004/state.json").read_text())["parts"]["ledger"]


@pytest.mark.timeout(1500)
def test_two_weighted_sources_under_a_curriculum_are_killed_and_resumed(tmp_path):
    for name, count in (("long", 12), ("short", 6)):
        rows = [{"prompt": f"{text}=", "ground_truth": text} for text in digits(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train(tmp_path, *CURRICULUM, "run_name=whole")
    killed = command(*CURRICULUM, "run_name=killed")
    with start_ballast(*killed, cwd=tmp_path, variables=ON_PATH, own_group=True) as process:
        for line in process.stdout:
            if re.search(r"^step 3/", line):
                break
        os.killpg(process.pid, signal.SIGKILL)
    train(tmp_path, *CURRICULUM, "run_name=killed", "resume=auto")
    whole, resumed = (saved_ledger(tmp_path / "runs" / name) for name in ("whole", "killed"))
    assert resumed == whole
    trained = [
        (int(row), int(status.partition(":")[2]))
        for rows in resumed["fate"].values()
        for row, status in rows.items()
        if status.startswith("trained")
    ]
    assert Counter(step for _, step in trained) == dict.fromkeys(range(1, 5), 4)
    long = Counter(step for row, step in trained if row < 12)
    assert long == {1: 3, 2: 3, 3: 3, 4: 2}
    for name in ("whole", "killed"):
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        assert [s["source/long/groups"] for s in steps if "source/long/groups" in s] == [
            *(3.0, 3.0, 3.0, 2.0)
        ]
