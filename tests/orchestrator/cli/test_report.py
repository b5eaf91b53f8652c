"""`ballast report`: where the file goes, and what is refused."""

from pathlib import Path

import pytest

from orchestrator.cli.parser import main


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs that ended before their first step, in the folder that the command starts in."""
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text(f"run_name: {name}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_run_and_two_runs(runs, capsys):
    assert main(["report", "runs/first"]) == 0
    assert (runs / "runs" / "first" / "report.html").exists()
    assert main(["report", "runs/first", "runs/second", "--output", "both.html"]) == 0
    assert "first · second" in (runs / "both.html").read_text()
    assert str(runs / "both.html") in capsys.readouterr().out
    assert main(["report", "runs/first", "runs/second"]) == 0
    assert (runs / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["runs"], "holds 2 runs and is none itself"),
        (["runs/third"], "is not a folder; name the folder of a run"),
        (["runs/first", "--output", "no/such/file.html"], "its folder does not exist"),
    ],
)
def test_a_wrong_path_is_one_line_with_the_remedy(runs: Path, capsys, words, told):
    assert main(["report", *words]) == 2
    printed = capsys.readouterr().err
    assert told in printed
    assert printed.count("\n") == 1
