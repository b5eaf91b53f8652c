"""Several runs by one command, on real engines."""

import pytest

from tests.e2e.command import finish_ballast


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
    output = finish_ballast("train", "--multirun", *words, timeout_s=800)
    runs = sorted(path.name for path in (tmp_path / "tiny").iterdir())
    assert runs == ["algorithm-grpo", "algorithm-rloo"]
    table = output.splitlines()[-2:]
    assert [line.split()[:4] for line in table] == [
        ["algorithm-grpo", "grpo", "finished", "2"],
        ["algorithm-rloo", "rloo", "finished", "2"],
    ]
    assert all((tmp_path / "tiny" / run / "report.html").exists() for run in runs)
