"""A whole run whose rollouts programs play over HTTP, one of which fails in every group."""

import sys
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.e2e.command import finish_ballast, step_metrics

pytestmark = pytest.mark.slow
TIMEOUT_S = 400
# Knows OpenAI's completions and the rules of the game, and nothing of this project.
GUESSER = """
import json, os, re, subprocess, sys, urllib.error, urllib.request

task = json.load(open(os.environ["BALLAST_TASK"]))
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", "left behind"])
if task["sibling"] == 3:
    sys.exit("no luck today")
history, hidden, reward = task["prompt"], int(task["ground_truth"]), 0.0
try:
    while not reward:
        request = urllib.request.Request(
            os.environ["OPENAI_BASE_URL"] + "/completions",
            data=json.dumps({"model": "any", "prompt": history}).encode(),
            headers={"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]},
        )
        said = json.load(urllib.request.urlopen(request))["choices"][0]["text"]
        found = re.search(r"[0-9]+", said)
        reward = float(bool(found) and int(found[0]) == hidden)
        history += said + ("?" if not found else "<" if int(found[0]) > hidden else ">")
except urllib.error.HTTPError as error:
    assert json.load(error)["error"]["code"] == "budget_spent"
json.dump({"reward": reward}, open(os.environ["BALLAST_RESULT"], "w"))
"""


def test_programs_play_a_run_and_a_program_that_fails_costs_its_sample(tmp_path):
    (tmp_path / "guesser.py").write_text(GUESSER)
    finish_ballast(
        *("train", "experiment=tiny_guessing"),
        *("environment=agent", "environment.max_turns=3", "output_dir=runs"),
        f"environment.player.command='{sys.executable} {tmp_path / 'guesser.py'}'",
        *("trainer.total_steps=2", "trainer.prompts_per_step=2", "trainer.eval_every=0"),
        *("rollout.samples_per_prompt=4", "tracking.report=false"),
        cwd=tmp_path,
        timeout_s=TIMEOUT_S,
        variables={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    run = tmp_path / "runs" / "tiny_guessing"
    files = sorted(run.glob("rollouts/**/*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert {row["outcome"] for row in rows} == {"scored"}  # what trains is recorded
    assert len(rows) == 12
    assert {row["rollout_id"][-2:] for row in rows} == {"/0", "/1", "/2"}
    for row in rows:
        assert 1 <= row["num_turns"] <= 3
        drawn = [version >= 0 for version in row["weight_versions"]]
        assert drawn == row["loss_mask"]
    assert [line["samples/failed"] for line in step_metrics(run)] == [2.0, 2.0]
    commands = [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]
    assert not [line for line in commands if "left behind" in line and "time.sleep(3600)" in line]
