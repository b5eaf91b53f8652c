"""A failure is one line for the user and a traceback in a file."""

from pathlib import Path

import pytest
from ray.exceptions import ObjectLostError

from orchestrator.cli import commands
from orchestrator.cli.parser import main
from orchestrator.stop import StoppedError
from orchestrator.telemetry.failure_log import FailureLog, describe

LOST = ObjectLostError("ab" * 28, None, "")


def fail_with(error):
    def command(options):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (KeyError("reward"), "KeyError: 'reward'", 1),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left", 1),
        (LOST, "ObjectLostError: Failed to retrieve object abab", 1),
        (RuntimeError("no engine is left"), "RuntimeError: no engine is left", 1),
        (ValueError("seed=-1: must be positive"), "seed=-1: must be positive", 2),
    ],
)
def test_every_failure_is_one_line(error, line, code, capsys, monkeypatch):
    monkeypatch.setattr(commands, "jobs", fail_with(error))
    assert main(["jobs"]) == code
    said = capsys.readouterr().err
    assert said.startswith(f"ballast jobs: {line}")
    assert said.count("\n") == 1
    if not isinstance(error, (RuntimeError, ValueError)):  # nobody expected it
        log = Path(said.rstrip().rpartition("traceback: ")[2])
        assert "in command\n    raise error" in log.read_text()
        log.unlink()


def test_a_run_keeps_the_traceback_of_its_end(tmp_path):
    with pytest.raises(KeyError) as caught, FailureLog(tmp_path):
        raise KeyError("reward")
    assert describe(caught.value) == f"KeyError: 'reward'; traceback: {tmp_path / 'failure.log'}"
    assert 'raise KeyError("reward")' in (tmp_path / "failure.log").read_text()


def test_a_run_that_was_asked_to_stop_has_not_failed(tmp_path):
    with pytest.raises(StoppedError), FailureLog(tmp_path, ignore=(StoppedError,)):
        raise StoppedError("stopped after step 2")
    assert not (tmp_path / "failure.log").exists()


def test_a_traceback_that_cannot_be_written_does_not_hide_the_failure(tmp_path):
    with pytest.raises(KeyError) as caught, FailureLog(tmp_path / "gone"):
        raise KeyError("reward")
    assert "its traceback could not be written: [Errno 2]" in describe(caught.value)
