"""`ballast diff` and `ballast compare`, as scripts call them."""

import pytest

from orchestrator.cli.parser import main

LINE = '{"step": 1, "reward/mean": 0.5, "time/step_s": 1.0}\n'


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs of one step without recorded rollouts, and one without a step."""
    for name, text in (("first", LINE), ("second", LINE.replace("0.5", "0.75")), ("empty", "")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text(f"run_name: {name}\n")
        (tmp_path / "runs" / name / "manifest.json").write_text("{}")
        (tmp_path / "runs" / name / "metrics.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)


def test_diff_tells_scripts_by_its_exit_code(runs, capsys):
    assert main(["diff", "runs/first", "runs/second"]) == 1
    assert "reward/mean: 0.5 | 0.75" in capsys.readouterr().out
    assert main(["diff", "runs/first", "runs/empty"]) == 2
    assert "empty has no finished step" in capsys.readouterr().err


def test_compare_prints_a_row_for_every_run(runs, capsys):
    assert main(["compare", "runs", "--goal", "0.6"]) == 0
    head, empty, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["run", "algorithm", "state", "steps"]
    assert [line.split()[0] for line in (empty, first, second)] == ["empty", "first", "second"]
    assert main(["compare", "runs/first", "--csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("first,,ended early,1,0.5,")
