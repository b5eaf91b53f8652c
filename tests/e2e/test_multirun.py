"""Several runs by one command, on real engines."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_runs_by_one_command_and_their_table(tmp_path):
    words = [
        "experiment=tiny",
        "algorithm=grpo,rloo",
        "trainer.total_steps=2",
        "data.eval_limit=8",
        f"output_dir={tmp_path}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "train", "--multirun", *words],
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = sorted(path.name for path in (tmp_path / "tiny").iterdir())
    assert runs == ["algorithm-grpo", "algorithm-rloo"]
    table = done.stdout.splitlines()[-2:]
    assert [line.split()[:4] for line in table] == [
        ["algorithm-grpo", "grpo", "finished", "2"],
        ["algorithm-rloo", "rloo", "finished", "2"],
    ]
    assert all((tmp_path / "tiny" / run / "report.html").exists() for run in runs)
