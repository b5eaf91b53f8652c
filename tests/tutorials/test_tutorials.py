"""The tutorials, run as a reader would run them; the record that one leaves is read by another."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LONGEST = 70  # lines of a tutorial, its docstring included


def run(script: str, argument: Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(HERE / script), str(argument)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_every_tutorial_is_short_and_run_by_a_test():
    scripts = {path.name for path in HERE.glob("*.py")} - {Path(__file__).name}
    assert scripts == {
        "own_algorithm.py",
        "own_environment.py",
        "own_reward.py",
        "read_record.py",
        "resume_after_kill.py",
        "reward_server.py",  # tests/workers/reward/scorers/test_remote.py
    }
    for name in scripts:
        text = (HERE / name).read_text()
        assert len(text.splitlines()) <= LONGEST, name
        assert f"python tests/tutorials/{name}" in text


def test_own_algorithm(tmp_path):
    output = run("own_algorithm.py", tmp_path, tmp_path)
    assert "SoftClip(sharpness=4.0)" in output
    assert "11 checks, 0 failed" in output


@pytest.mark.timeout(900)
def test_own_reward_and_reading_the_record(tmp_path):
    output = run("own_reward.py", tmp_path, tmp_path)
    assert "step 2/2" in output
    output = run("read_record.py", tmp_path / "own_reward", tmp_path)
    assert output.startswith("64 samples, columns: run_id, begun_version, prompt_uid")
    assert "parts of its reward: {'first':" in output
    gap = float(output.splitlines()[-1].rpartition(" ")[2])
    assert gap < 1e-4  # float32 on both sides


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_own_environment(tmp_path):
    assert len((HERE / "own_environment.py").read_text().splitlines()) <= 40
    output = run("own_environment.py", tmp_path, tmp_path)
    assert "step 2/2" in output
    output = run("read_record.py", tmp_path / "own_environment", tmp_path)
    assert output.startswith("64 samples, columns: run_id")
    assert float(output.splitlines()[-1].rpartition(" ")[2]) < 1e-4  # over all turns


@pytest.mark.timeout(900)
def test_resume_after_kill(tmp_path):
    output = run("resume_after_kill.py", tmp_path, tmp_path)
    assert "killed; checkpoints:" in output
    assert "steps in metrics.jsonl: [1, 2, 3, 4]" in output
