"""A response's program against its row's tests, which no program can read."""

from __future__ import annotations

import json
import shutil

import pytest

from workers.reward.base import RewardResult, RewardSample, score_sample
from workers.reward.scorers.programs.python import Python, program_of
from workers.reward.scorers.programs.row_tests import read_tests
from workers.reward.scorers.programs.sandbox import Limits

pytestmark = [
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
    pytest.mark.timeout(60),
]
APPS = json.dumps({"inputs": ["2 3\n", "4 5\n"], "outputs": ["5\n", "9\n"]})
PAIRS = json.dumps([{"input": "2 3", "output": "5"}, {"input": "4 5", "output": "9"}])
CALLS = json.dumps({"fn_name": "add", "inputs": [[2, 3], [4, 5]], "outputs": [[5], 9]})
ASSERTS = json.dumps(["assert add(2, 3) == 5", "assert add(4, 5) == 9"])
TEXT = "import math\nassert add(2, 3) == 5\nassert math.isclose(add(4, 5), 9)\n"
READS = "print(sum(map(int, input().split())))"
ADDS = "def add(a, b):\n    return a + b\n"


def score(program: str, tests: str, **options: object) -> RewardResult:
    sample = RewardSample(
        prompt="", response=f"Here:\n```python\n{program}\n```", ground_truth=tests
    )
    scorer = Python(**{"limits": Limits(wall_s=3.0), **options})  # type: ignore[arg-type]
    return score_sample(scorer, sample)


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        (READS, APPS),
        (READS, PAIRS),
        (ADDS, CALLS),
        ("class Solution:\n    def add(self, a, b):\n        return a + b", CALLS),
        (ADDS, ASSERTS),
        (ADDS, TEXT),
        (f"print('a line of its own')\n{ADDS}", ASSERTS),
    ],
)
def test_a_right_program_passes(program: str, tests: str) -> None:
    result = score(program, tests)
    assert (result.reward, result.parts) == (1.0, {"passed": 1.0, "correct": 1.0})


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("print(5)", APPS),
        ("print(6)", PAIRS),
        ("def add(a, b):\n    return 5", CALLS),
        ("def add(a, b):\n    return 5", ASSERTS),
        ("", ASSERTS),
        ("syntax error", ASSERTS),
        (f"{READS}\nraise SystemExit(3)", APPS),
        ("import os\nos._exit(0)", ASSERTS),
        (f"{ADDS}\nexit()", TEXT),
        ("while True: pass", ASSERTS),
    ],
)
def test_a_wrong_program_earns_nothing_and_is_no_failure(program: str, tests: str) -> None:
    assert score(program, tests).reward == 0.0


def test_a_program_that_looks_for_its_tests_finds_no_expected_value() -> None:
    """The answer 918273 is only in the row, and the program prints all that it can read."""
    cheat = (
        "import os, sys, glob\n"
        "seen = ' '.join(sys.orig_argv) + open('/proc/1/cmdline').read()\n"
        "for name in glob.glob('/run/*') + ['/proc/self/environ']:\n"
        "    seen += open(name).read()\n"
        "def add(a, b):\n    return 918273 if '918273' in seen.replace(CODE, '') else 0\n"
        "print(918273 if '918273' in seen.replace(CODE, '') else 0)\n"
    )
    cheat = "CODE = open('/run/program.py').read()\n" + cheat
    assert score(cheat, json.dumps(["assert add(2, 3) == 918273"])).reward == 0.0
    assert score(cheat, json.dumps({"inputs": ["1"], "outputs": ["918273"]})).reward == 0.0


def test_the_share_of_tests() -> None:
    half = score("def add(a, b):\n    return 5", ASSERTS, all_or_nothing=False)
    assert (half.reward, half.parts["correct"]) == (0.5, 0.0)
    assert score("print(9)", APPS, all_or_nothing=False).reward == 0.5


@pytest.mark.parametrize("tests", ["", "[]", "{}", "x = 1", "no python", '{"inputs": []}', "[1]"])
def test_a_row_without_tests_fails(tests: str) -> None:
    assert score(READS, tests).reward is None


def test_an_expected_literal_stays_outside() -> None:
    tests = read_tests("assert sorted(f(3)) == [1, 2]\nassert not g()")
    assert tests.as_json() == json.dumps(  # type: ignore[union-attr]
        {"setup": "", "expressions": ["sorted(f(3))", "bool(not g())"]}
    )


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```\nx = 1\n```\nbetter:\n```py\nx = 2\n```", "x = 2\n"),
    ],
)
def test_the_last_block_is_the_program(response: str, program: str) -> None:
    assert program_of(response) == program


def test_there_is_no_weaker_isolation() -> None:
    with pytest.raises(ValueError, match="isolation must be bubblewrap, got 'none'"):
        Python(isolation="none")  # type: ignore[arg-type]
