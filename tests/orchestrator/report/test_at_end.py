"""At the end of a run its report is written, whatever the end; a fault of it is one line."""

import contextlib
import json
import shutil

import pytest

from orchestrator.report.at_end import ReportAtEnd
from orchestrator.stop import StoppedError


@pytest.fixture
def run(run_dir, tmp_path):
    return shutil.copytree(run_dir, tmp_path / "run")


def state(path):
    text = path.read_text(encoding="utf-8")
    payload = text.split('id="payload">')[1].split("</script>")[0]
    return json.loads(payload)["runs"][0]["state"]


def ended(run, error=None, wanted=True):
    lines = []
    report = ReportAtEnd(run, wanted=wanted, stops=(StoppedError,), print_line=lines.append)
    with (
        contextlib.suppress(type(error)) if error is not None else contextlib.nullcontext(),
        report,
    ):
        if error is not None:
            raise error
    return report.path, lines


@pytest.mark.parametrize(
    ("error", "told"),
    [(None, "finished"), (StoppedError("step 4"), "stopped"), (RuntimeError("no"), "failed")],
)
def test_the_report_names_the_end(run, error, told):
    path, lines = ended(run, error)
    assert (path, lines) == (run / "report.html", [])
    assert state(path) == told


def test_an_unwanted_report_and_an_interrupted_run_write_none(run):
    assert ended(run, wanted=False) == (None, [])
    assert ended(run, KeyboardInterrupt()) == (None, [])
    assert not (run / "report.html").exists()


def test_a_report_that_can_not_be_written_is_one_line_and_no_end(run):
    (run / "report.html").mkdir()
    path, (line,) = ended(run)
    assert path is None
    assert line.startswith("no report was written after ")
    assert line.endswith(f"ballast report {run} tries again")
    assert "\n" not in line


def test_the_error_that_ended_the_run_is_not_replaced_by_one_of_the_report(run):
    (run / "report.html").mkdir()
    report = ReportAtEnd(run, wanted=True, stops=(), print_line=lambda line: None)
    with pytest.raises(RuntimeError, match="what ended the run"), report:
        raise RuntimeError("what ended the run")
