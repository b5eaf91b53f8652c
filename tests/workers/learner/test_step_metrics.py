"""The updates of a step become one number per metric, by its name, without skipped updates."""

import math

import pytest

from workers.data.results import UpdateResult
from workers.learner.step_metrics import merged_metrics


def update(*, skipped: bool = False, grad_norm: float = 0.5, **metrics: float) -> UpdateResult:
    """An update whose metrics are in the area `policy`."""
    named = {f"policy/{name}": value for name, value in metrics.items()}
    return UpdateResult(
        metrics={"loss": 0.5, **named}, grad_norm=grad_norm, lr=1e-6, skipped=skipped
    )


def test_an_extreme_of_a_step_is_that_of_its_updates_and_not_their_mean() -> None:
    values = (1.0, 1.2, 50.0, 1.1)
    merged = merged_metrics(
        [update(ratio=v, ratio_max=v, ratio_min=v) for v in values], area="learner"
    )
    assert merged["policy/ratio_max"] == 50.0
    assert merged["policy/ratio_min"] == 1.0
    assert merged["policy/ratio"] == pytest.approx(13.325)  # (1 + 1.2 + 50 + 1.1) / 4


def test_a_skipped_update_leaves_the_numbers_of_the_others() -> None:
    merged = merged_metrics(
        [
            update(grad_norm=0.4, ratio_max=1.5),
            update(grad_norm=math.nan, ratio_max=math.nan, skipped=True),
            update(grad_norm=0.6, ratio_max=1.25),
        ],
        area="learner",
    )
    assert merged["learner/grad_norm"] == pytest.approx(0.5)
    assert merged["policy/ratio_max"] == 1.5
    assert merged["learner/skipped_updates"] == 1.0


def test_a_step_of_skipped_updates_says_so() -> None:
    merged = merged_metrics([update(grad_norm=math.inf, skipped=True)] * 2, area="critic")
    assert merged["critic/grad_norm"] == math.inf
    assert merged["critic/skipped_updates"] == 2.0
    assert merged["critic/loss"] == 0.5


def test_a_metric_that_some_updates_measured_is_averaged_over_those() -> None:
    merged = merged_metrics([update(entropy=2.0), update(), update(entropy=1.0)], area="learner")
    assert merged["policy/entropy"] == 1.5
