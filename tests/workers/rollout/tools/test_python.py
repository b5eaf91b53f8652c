import pytest

from workers.reward.scorers.programs.sandbox import Limits, NoIsolationError, check_isolation
from workers.rollout.tools.python import PythonInterpreter


@pytest.fixture(scope="module")
def interpreter() -> PythonInterpreter:
    try:
        check_isolation()
    except NoIsolationError as error:
        pytest.skip(str(error))
    tool = PythonInterpreter(limits=Limits(wall_s=1.5, output_kib=4))
    tool.prepare()
    return tool


def test_code_runs_in_the_sandbox_and_its_output_comes_back(interpreter: PythonInterpreter):
    code = "def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\nprint(f(20))"
    assert interpreter.call("python", {"code": code}) == "6765\n"


def test_an_error_is_shown_with_what_was_printed_before(interpreter: PythonInterpreter):
    shown = str(interpreter.call("python", {"code": "print('so far')\n1/0"}))
    assert shown.startswith("so far\nTraceback")
    assert "ZeroDivisionError: division by zero" in shown
    assert shown.endswith("[ended early: exit 1]")


def test_code_that_never_ends_or_writes_without_end_is_stopped(interpreter: PythonInterpreter):
    assert interpreter.call("python", {"code": "while True: pass"}) == (
        "[ended early: the time was over]"
    )
    shown = str(interpreter.call("python", {"code": "while True: print('x' * 999)"}))
    assert shown.endswith("[ended early: there was too much output]")
