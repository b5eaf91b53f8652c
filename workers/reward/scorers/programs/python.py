"""Run the response's Python program against the tests of its row, shut in by bubblewrap.

Runs in a scoring process, which starts a sandbox for each test with input and output, or one for
all assertions. An expected value never enters the sandbox: outputs and values come out and are
compared here. The sandbox is `sandbox.py`; what a program means is not looked at.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from workers.reward.base import RewardSample
from workers.reward.scorers.exact import check_stop, cut_at, truth_of
from workers.reward.scorers.programs.row_tests import (
    EVALUATE,
    PROGRAM,
    RUN,
    TESTS,
    Expressions,
    InputOutput,
    read_tests,
)
from workers.reward.scorers.programs.sandbox import Limits, check_isolation, run

FENCE = re.compile(r"```(?:python|py|python3)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Python:
    """1 if the program passes all tests of its row, else 0; or the share of tests that pass.

    The program is the last fenced block of the response, or the whole response without a fence.
    The tests are the ground truth: see `row_tests.read_tests` for their forms.

    Attributes:
        isolation: "bubblewrap". There is no weaker choice.
        all_or_nothing: False to give the share of tests that pass.
        max_tests: of a row; the first ones count, so that a row's time has a bound.
        limits: of each run: wall_s, memory_mib, output_kib, num_processes.
        stop_at: only the response before this text counts, None for all of it.
    """

    reads_lists: ClassVar[bool] = True  # a list holds tests, all of which must pass

    isolation: Literal["bubblewrap"] = "bubblewrap"
    all_or_nothing: bool = True
    max_tests: int = 16
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    stop_at: str | None = None

    def __post_init__(self) -> None:
        check_stop(self.stop_at)
        if self.isolation != "bubblewrap":
            raise ValueError(
                f"isolation must be bubblewrap, got {self.isolation!r}: programs of a model are "
                "not run with less"
            )
        if self.max_tests < 1:
            raise ValueError(f"max_tests must be at least 1, got {self.max_tests}")

    def prepare(self) -> None:
        """Check that this machine can shut a program in."""
        check_isolation()

    def __call__(self, sample: RewardSample) -> dict[str, float]:
        """Run one response; part "passed" is the share of tests that it passes.

        Raises:
            ValueError: the ground truth holds no test that can be read.
        """
        tests = read_tests(_tests_of(sample))
        program = program_of(cut_at(sample.response, self.stop_at))
        if isinstance(tests, Expressions):
            passed, total = self._evaluate(program, tests)
        else:
            passed, total = self._feed(program, tests[: self.max_tests])
        share = passed / total
        reward = float(share == 1.0) if self.all_or_nothing else share
        return {"reward": reward, "passed": share, "correct": float(share == 1.0)}

    def _feed(self, program: str, tests: list[InputOutput]) -> tuple[int, int]:
        """Run the program once for each test; one that fails ends the row where all must pass."""
        passed = 0
        for test in tests:
            files = {PROGRAM: program}
            ran = run(RUN, stdin=test.given, files=files, limits=self.limits)
            right = ran.ended == "exit 0" and test.accepts(ran.output)
            passed += right
            if not right and self.all_or_nothing:
                break
        return passed, len(tests)

    def _evaluate(self, program: str, tests: Expressions) -> tuple[int, int]:
        """Run the program once and evaluate the left sides of all assertions after it."""
        chosen = tests.first(self.max_tests)
        files = {PROGRAM: program, TESTS: chosen.as_json()}
        ran = run(EVALUATE, files=files, limits=self.limits)
        return chosen.num_right(ran.output), len(chosen.expected)


def _tests_of(sample: RewardSample) -> str:
    """Return the tests of a row as text; MBPP's are a list of assertions."""
    truth = sample.ground_truth
    return json.dumps(truth) if isinstance(truth, list) else truth_of(sample)


def program_of(response: str) -> str:
    """Return the last fenced block of a response; all of it where it has no fence."""
    blocks = FENCE.findall(response)
    return str(blocks[-1]) if blocks else response
