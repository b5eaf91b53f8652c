"""A run of skipped optimizer steps ends the run, with the tensors; a single one does not."""

import numpy as np
import pytest

from orchestrator.step.skipped_steps import NonFiniteGradientsError, check_skipped
from workers.data.results import UpdateResult
from workers.learner.passes import Trained
from workers.learner.policy_worker import _report


def report(pattern, before=0):
    """The report of updates, "x" where one was skipped, after `before` skipped ones."""
    updates = tuple(
        UpdateResult(
            metrics={"loss": 1.0},
            grad_norm=float("nan") if mark == "x" else 1.0,
            lr=0.1,
            skipped=mark == "x",
            non_finite=("lm_head.weight", "model.norm.weight") if mark == "x" else (),
        )
        for mark in pattern
    )
    gaps = np.zeros(0, np.float32)
    return _report(Trained(updates=updates, logprobs=(), flags=(), gaps=gaps), before)


@pytest.mark.parametrize(
    ("pattern", "before", "longest"),
    [("...", 2, 0), ("x..", 2, 3), (".xx", 2, 2), ("xxx.", 0, 3), ("x.xx", 0, 2), ("xx", 3, 5)],
)
def test_the_longest_run_is_counted_across_steps(pattern, before, longest):
    assert report(pattern, before).skipped_in_a_row == longest


def test_a_run_ends_at_the_limit_and_names_the_tensors():
    check_skipped([report("xx"), report("xx")], limit=3)
    with pytest.raises(NonFiniteGradientsError) as caught:
        check_skipped([report("xxx."), report("xxx.")], limit=3)
    text = str(caught.value)
    assert "3 optimizer steps in a row" in text
    assert "learner.max_skipped_steps=3" in text
    assert "worst in lm_head.weight, model.norm.weight." in text
