"""The watch counts steps with nothing to learn from, and names the likely cause."""

from __future__ import annotations

from typing import Any

import pytest

from conf.schema import TrainConfig, TrainerConfig
from orchestrator.step.learning_watch import LearningWatch, cause, verdict

GOOD = {
    "reward/mean": 0.5,
    "reward/std": 0.5,
    "rollout/truncated_frac": 0.0,
    "credit/informative_groups_frac": 0.5,
    "credit/zero_frac": 0.5,
    "learner/grad_norm": 0.1,
}
EQUAL = {"reward/mean": 0.0, "reward/std": 0.0}


def config(**trainer: Any) -> TrainConfig:
    return TrainConfig(trainer=TrainerConfig(**trainer))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (EQUAL, "every sample earns 0; "),
        (EQUAL | {"rollout/truncated_frac": 1.0}, "every response is cut off at rollout.sampling"),
        ({"credit/informative_groups_frac": 0.0}, "the siblings of every prompt earn the same"),
        ({"credit/zero_frac": 1.0}, "every advantage is 0"),
        ({"learner/grad_norm": 0.0}, "the gradient is 0: a correction, gate or clip"),
    ],
)
def test_each_cause_has_its_words(changes: dict[str, float], words: str) -> None:
    why = cause(GOOD | changes, config())
    assert why is not None
    assert why.startswith(words)


def test_a_step_that_learns_has_no_cause() -> None:
    assert cause(GOOD, config()) is None
    assert cause({"reward/mean": 0.5, "reward/std": 0.5}, config()) is None  # rollout_only


def test_a_task_that_is_solved_is_no_cause() -> None:
    assert cause(GOOD | {"reward/mean": 1.0, "reward/std": 0.0}, config()) is None


def test_steps_in_a_row_are_counted() -> None:
    watch = LearningWatch(config())
    counts = []
    for metrics in [EQUAL, EQUAL, GOOD, EQUAL, EQUAL]:
        assert watch.ending(metrics) is None  # trainer.stop_if_stuck_steps is 0
        counts.append(watch.num_stuck)
    assert counts == [1, 2, 0, 1, 2]


def test_the_run_ends_where_it_was_told_to() -> None:
    watch = LearningWatch(config(stop_if_stuck_steps=2))
    assert watch.ending(EQUAL) is None
    assert (watch.ending(EQUAL) or "").startswith("2 steps in a row had nothing to learn from")


def test_the_verdict_of_the_last_page() -> None:
    assert verdict([], config()) is None
    assert verdict([GOOD, EQUAL], config()) is None
    assert verdict([EQUAL, GOOD], config()) is None
    whole = verdict([EQUAL] * 2, config())
    assert whole is not None
    assert whole.startswith("in none of 2 steps was there anything to learn: every sample")
    end = verdict([GOOD, *[EQUAL] * 3], config())
    assert end is not None
    assert end.startswith("the last steps had nothing to learn from: every sample")
