"""The order and the fate of groups, with engines whose answers the test arranges."""

import dataclasses

import pytest

from conf.compose import compose
from orchestrator.ledger import Ledger
from orchestrator.plan import check
from orchestrator.producer import Producer
from workers.prompts import PromptSet
from workers.rollout_pool import RolloutGroup
from workers.tasks.copy import build_copy
from workers.trajectory import TrajectoryMeta


class Engines:
    """Finishes what was submitted in reverse order, one group a poll, as sampled by `version`."""

    def __init__(self):
        self.waiting = []
        self.version = 0

    def submit(self, requests):
        self.waiting.extend(requests)

    def poll(self):
        request = self.waiting.pop()
        meta = TrajectoryMeta(
            prompt_uid=request.prompt_uid,
            group_id=request.group_id,
            rollout_id=request.group_id,
            num_tokens=8,
            num_trained=4,
            num_sampled=4,
            finish_reason="stop",
            outcome="scored",
            reward=1.0,
            reward_parts={},
            min_version=self.version,
            max_version=self.version,
            generate_s=0.0,
            reward_s=0.0,
        )
        metas = (meta, dataclasses.replace(meta, rollout_id="other"))
        return [RolloutGroup(group_id=request.group_id, metas=metas, batch=None, start=0)]


@pytest.fixture(scope="module")
def prompts():
    return PromptSet(
        str(build_copy() / "train.parquet"),
        prompt_column="prompt",
        ground_truth_column="ground_truth",
    )


def producer(prompts, *overrides):
    _, config = compose(["experiment=tiny", "trainer.prompts_per_step=4", *overrides])
    ledger = Ledger(prompts, seed=0, shuffle=False)
    engines = Engines()
    return Producer(engines, prompts, ledger, config), engines, ledger


def ids(taken):
    return [group.group_id for group in taken.groups]


def test_groups_train_in_the_order_in_which_they_were_begun(prompts):
    source, _, _ = producer(prompts, "schedule=sync")
    assert ids(source.take(1, 0, lambda group: None)) == ["0-0", "0-1", "0-2", "0-3"]
    assert ids(source.take(2, 1, lambda group: None)) == []  # all four are of version 0: stale


def test_async_takes_what_finishes_first(prompts):
    source, engines, _ = producer(prompts, "schedule=async", "schedule.max_staleness=1")
    # Eight groups are in flight, and the youngest finish first.
    assert ids(source.take(1, 0, lambda group: None)) == ["0-7", "0-6", "0-5", "0-4"]
    engines.version = 1
    source.run_ahead(1)
    assert len(engines.waiting) == 4
    taken = source.take(2, 1, lambda group: None)
    assert ids(taken) == ["0-11", "0-10", "0-9", "0-8"]
    assert not taken.dropped


def test_what_is_too_stale_is_dropped_and_counted(prompts):
    source, _, ledger = producer(prompts, "schedule=one_step_off", "schedule.max_refill_rounds=2")
    taken = source.take(3, 2, lambda group: None)
    assert taken.groups == ()
    assert taken.dropped == {"stale by 2": 8}
    assert taken.num_late == 0
    assert ledger.counts()["dropped"] == 8


def test_or_trained_and_counted(prompts):
    source, _, _ = producer(prompts, "schedule=one_step_off", "schedule.stale=train")
    taken = source.take(3, 2, lambda group: None)
    assert len(taken.groups) == 4
    assert taken.num_late == 4


def test_refills_stop_at_their_bound(prompts):
    source, engines, _ = producer(prompts, "schedule=sync", "schedule.max_refill_rounds=3")
    taken = source.take(1, 0, lambda group: None if group.group_id == "0-0" else "filtered")
    assert len(taken.groups) == 1
    assert taken.dropped == {"filtered": 11}
    assert taken.rewards == (1.0,) * 24  # both samples of all twelve groups
    assert engines.waiting == []  # nothing is left in flight to be stale in the next step


def test_training_stale_groups_needs_a_correction():
    from hydra.utils import instantiate

    raw, config = compose(["experiment=tiny", "algorithm=grpo", "schedule.stale=train"])
    with pytest.raises(ValueError, match=r"schedule.stale=train .* add algorithm/correction=tis"):
        check(config, instantiate(raw.algorithm, _convert_="all"))
