"""When the reference moves, what a controller sees, and what a checkpoint keeps of both."""

import json
import math

import pytest

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.controllers import AdaptiveCoefficient
from algorithms.policy_losses.clipped import ClippedRatio
from algorithms.references import MovingAverage, Refreshed
from algorithms.regularizers import ReferenceKL
from orchestrator.step.adaptation import Adaptation

PATH = "regularizers.kl.coefficient"
STEP = {"learner/steps": 1.0}
CONTROLLER = AdaptiveCoefficient(coefficient=PATH, metric="reference/kl", target=0.1, horizon=8)


class Following:
    """A reference that writes down whom it followed, and how far."""

    def __init__(self):
        self.shares = []

    def follow(self, policy, *, share):
        assert policy == "learner"
        self.shares.append(share)


def adaptation(rule, *, reference, controllers=None):
    algorithm = Algorithm(
        name="test",
        advantage=GroupRelative(),
        policy_loss=ClippedRatio(),
        aggregation=TokenMean(),
        regularizers={"kl": ReferenceKL(coefficient=0.04)},
        reference=rule,
        controllers=controllers or {},
    )
    return Adaptation(algorithm, learner="learner", reference=reference)


def test_it_moves_every_k_steps_and_says_how_old_it_was():
    reference = Following()
    subject = adaptation(Refreshed(every_steps=2), reference=reference)
    seen = [subject.follow({**STEP, "reference/kl": 0.5}, 8) for _ in range(4)]
    assert reference.shares == [1.0, 1.0]
    assert [line["reference/age_steps"] for line in seen] == [0, 1, 0, 1]
    assert [line["reference/refreshed"] for line in seen] == [0, 1, 0, 1]
    # decay 0.9: 0.05 after one step, forgotten with the refresh
    assert [line["reference/kl_average"] for line in seen] == pytest.approx([0.05, 0, 0.05, 0])


def test_it_moves_when_the_average_passes_the_threshold():
    reference = Following()
    subject = adaptation(Refreshed(kl_threshold=0.15, decay=0.5), reference=reference)
    averages = [
        subject.follow({**STEP, "reference/kl": kl}, 8)["reference/kl_average"]
        for kl in (0.2, 0.1, math.nan, 0.3)
    ]
    # .1, .1, a step that measured nothing keeps .1, then (.1 + .3) / 2 = .2 > .15
    assert averages == pytest.approx([0.1, 0.1, 0.1, 0.0])
    assert reference.shares == [1.0]


def test_a_moving_average_moves_after_every_step():
    reference = Following()
    subject = adaptation(MovingAverage(decay=0.75), reference=reference)
    subject.follow({**STEP, "reference/kl": 0.1}, 8)
    subject.follow({**STEP, "reference/kl": 0.1}, 8)
    assert reference.shares == [0.25, 0.25]


def test_without_a_role_nothing_moves():
    subject = adaptation(Refreshed(every_steps=1), reference=None)
    assert subject.follow(STEP, 8) == {}


def test_a_coefficient_rises_above_and_falls_below_its_target():
    subject = adaptation(
        Refreshed(every_steps=9), reference=Following(), controllers={"kl": CONTROLLER}
    )
    shown = [
        subject.follow({**STEP, "reference/kl": kl}, 8)["coefficient/kl"]
        for kl in (0.2, 0.0, math.inf)
    ]
    # 8 responses of a horizon of 8: the whole clipped error of 0.2, after the step it is seen in
    assert shown == pytest.approx([0.04, 0.048, 0.0384])
    assert subject.coefficients[PATH] == pytest.approx(0.0384)


def test_nothing_follows_a_policy_that_waits():
    reference = Following()
    subject = adaptation(
        Refreshed(every_steps=2), reference=reference, controllers={"kl": CONTROLLER}
    )
    before = subject.state_dict()
    assert subject.follow({"critic/steps": 1.0}, 8) == {}
    assert subject.state_dict() == before


def test_a_metric_that_is_not_measured_is_named():
    subject = adaptation(
        Refreshed(every_steps=9), reference=Following(), controllers={"kl": CONTROLLER}
    )
    with pytest.raises(ValueError, match="reads reference/kl, which the step did not measure"):
        subject.follow(STEP, 8)


def test_a_checkpoint_keeps_all_of_it():
    def fresh():
        return adaptation(
            Refreshed(every_steps=3), reference=Following(), controllers={"kl": CONTROLLER}
        )

    straight, first, second = fresh(), fresh(), fresh()
    for _ in range(5):
        straight.follow({**STEP, "reference/kl": 0.2}, 8)
    for _ in range(2):
        first.follow({**STEP, "reference/kl": 0.2}, 8)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(3):
        second.follow({**STEP, "reference/kl": 0.2}, 8)
    assert second.state_dict() == straight.state_dict()
    assert second.coefficients[PATH] == pytest.approx(0.04 * 1.2**5)
