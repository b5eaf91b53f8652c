"""One step without a learner: take, run ahead, record; nothing else is asked of anybody."""

from types import SimpleNamespace

import pytest

from orchestrator.collector import Collector
from orchestrator.outputs import Outputs
from orchestrator.supply.source import NothingToTrainError, Taken
from orchestrator.supply.supply import Supply
from orchestrator.telemetry.accounting import Accounting
from workers.data.plans import Slice
from workers.data.trajectory import RolloutGroup, TrajectoryMeta


def meta(k, outcome):
    return TrajectoryMeta(
        prompt_uid="p",
        group_id="g",
        rollout_id=f"g/{k}",
        num_tokens=6,
        num_trained=3,
        num_sampled=3,
        finish_reason="stop",
        outcome=outcome,
        reward=0.5 if outcome == "scored" else None,
        reward_parts={},
        min_version=0,
        max_version=0,
        generate_s=0.1,
        reward_s=0.01,
    )


class Groups:
    """A `GroupSource` with what it was given."""

    def __init__(self, events, groups):
        self.events, self.groups = events, groups

    def take(self, step, version, may_train):
        self.events.append(f"take for step {step} with weights {version}")
        assert all(may_train(group) is None for group in self.groups)
        return Taken(groups=self.groups)

    def run_ahead(self, version):
        self.events.append(f"run ahead with weights {version}")

    def metrics(self):
        return {}


def collector(groups):
    events = []

    def write(step, slices, batches, computed):
        events.append(("record", step, slices, batches, computed))

    subject = Collector(
        supply=Supply(
            ledger=SimpleNamespace(metrics=dict),
            groups=Groups(events, groups),
            publisher=None,
            colocation=None,
        ),
        outputs=Outputs(log=None, accounting=Accounting(), recorder=SimpleNamespace(write=write)),
    )
    return subject, events


def test_failed_samples_are_recorded_too():
    metas = (meta(0, "scored"), meta(1, "failed:timeout"))
    subject, events = collector((RolloutGroup(group_id="g", metas=metas, batch="batch", start=4),))
    metrics = subject.step(2)
    assert events == [
        "take for step 2 with weights 0",
        "run ahead with weights 0",
        ("record", 2, [Slice(batch=0, start=4, length=2)], ["batch"], []),
    ]
    assert metrics["rollout/sequences"] == 2.0
    assert metrics["reward/mean"] == 0.5


def test_a_step_without_groups_fails_before_anything_is_recorded():
    subject, events = collector(())
    with pytest.raises(NothingToTrainError, match="no group can be recorded"):
        subject.step(1)
    assert events == ["take for step 1 with weights 0", "run ahead with weights 0"]
