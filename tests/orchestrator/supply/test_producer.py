"""The order and the fate of groups, with engines whose answers the test arranges."""

import dataclasses

import pytest

from conf.compose import compose
from orchestrator.planning.plan import check
from orchestrator.supply.curriculum import Curriculum
from orchestrator.supply.ledger import Ledger
from orchestrator.supply.producer import MAX_ABORTS, Producer
from orchestrator.supply.source import NothingLeftError, prompt_of
from workers.data.prompts import PromptSet
from workers.data.trajectory import STOPPED_EARLY, RolloutGroup, TrajectoryMeta
from workers.tasks.digits import build_digits


class Engines:
    """Finishes what was submitted in reverse order, one group a poll, as sampled by `version`."""

    def __init__(self):
        self.waiting = []
        self.aborted = []
        self.version = 0

    def submit(self, requests):
        self.waiting.extend(requests)

    def abort(self, group_ids):
        self.aborted.extend(group_ids)
        self.waiting = [r for r in self.waiting if r.group_id not in group_ids]

    def poll(self, *, wait=True):
        if not wait:
            return []
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
        str(build_digits(task="copy", length=5) / "train.parquet"),
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


ASYNC = ("schedule=async", "schedule.max_staleness=1", "schedule.oversample=1.5")


def keep_all(group):
    return None


def test_oversampling_trains_the_first_and_begins_the_slowest_again(prompts):
    source, engines, ledger = producer(prompts, *ASYNC)
    # One batch ahead and one and a half for this step: ten groups, the youngest finish first.
    taken = source.take(1, 0, keep_all)
    assert ids(taken) == ["0-9", "0-8", "0-7", "0-6"]
    assert (taken.num_aborted, engines.aborted) == (2, ["0-0", "0-1"])  # the oldest unfinished
    assert not taken.dropped
    assert (ledger.status(0, 0), ledger.status(0, 2)) == ("pending", "in_flight")
    source.run_ahead(1)
    assert [r.group_id for r in engines.waiting] == ["0-2", "0-3", "0-4", "0-5"]  # one batch stays
    engines.version = 1
    assert ids(source.take(2, 1, keep_all)) == ["0-13", "0-12", "0-11", "0-10"]
    # What was aborted came before fresh prompts, under another name and with other seeds.
    assert [r.group_id for r in engines.waiting] == ["0-4", "0-5", "0-0-1", "0-1-1"]
    assert engines.waiting[2].seed != source._seed(0, 0, attempt=0)
    assert engines.waiting[0].seed == source._seed(0, 4, attempt=0)


def test_every_prompt_is_trained_once_however_often_it_is_aborted(prompts):
    """An epoch under over-sampling: no prompt twice, none forgotten, none waits for ever."""
    synchronous = ("schedule=sync", "schedule.order=finished", "schedule.oversample=2")
    source, engines, ledger = producer(prompts, *synchronous)
    trained, times_aborted = [], []
    for step in range(1, 41):
        engines.version = step - 1
        taken = source.take(step, step - 1, keep_all)
        assert len(taken.groups) == 4
        assert taken.num_aborted == 4
        assert engines.waiting == []  # synchronous: nothing goes on under other weights
        trained += [prompt_of(group.group_id) for group in taken.groups]
        times_aborted += [int((*g.group_id.split("-"), "0")[2]) for g in taken.groups]
    assert len(trained) == len(set(trained)) == 160
    assert ledger.counts() == {"trained": 160, "dropped": 0, "in_flight": 0}
    # The engines finish the oldest last, and still none is aborted without end.
    assert 1 <= max(times_aborted) <= MAX_ABORTS + 1
    state = ledger.state_dict()
    assert len(state["returned"]) == 4
    assert {(0, row) for row in range(state["cursor"])} == set(trained) | set(state["returned"])


def test_what_is_dropped_is_never_begun_again(prompts):
    source, _, ledger = producer(prompts, *ASYNC, "schedule.leftover=drop")
    taken = source.take(1, 0, keep_all)
    assert taken.num_aborted == 2
    assert [ledger.status(0, row) for row in (0, 1)] == ["dropped:aborted"] * 2
    assert ledger.counts() == {"trained": 4, "dropped": 2, "in_flight": 4}
    assert taken.metrics()["groups/aborted"] == 2
    assert taken.rewards == (1.0,) * 8  # nothing aborted has a reward


def test_what_is_kept_goes_on_and_trains_later(prompts):
    source, engines, ledger = producer(prompts, *ASYNC, "schedule.leftover=keep")
    source.take(1, 0, keep_all)
    assert engines.aborted == []
    assert len(engines.waiting) == 6
    source.run_ahead(1)
    taken = source.take(2, 1, keep_all)
    assert len(engines.waiting) == 6  # four begun for four trained
    assert ledger.counts() == {"trained": 8, "dropped": 0, "in_flight": 6}
    assert taken.num_aborted == 0


def test_a_finished_leftover_is_spared_before_an_unfinished_one(prompts):
    source, engines, ledger = producer(prompts, *ASYNC)
    answer = engines.poll

    def poll(*, wait=True):
        """Asked without waiting, the engines have just finished the oldest group."""
        if wait:
            return answer()
        engines.waiting.append(engines.waiting.pop(0))
        return answer()

    engines.poll = poll
    source.take(1, 0, keep_all)
    assert engines.aborted == ["0-1", "0-2"]
    assert ledger.status(0, 0) == "in_flight"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule=sync"], "schedule.oversample=1.5: .* set schedule.order=finished"),
        (
            ["schedule=sync", "schedule.order=finished", "schedule.leftover=keep"],
            "schedule.leftover='keep': .*max_staleness=0 forbids",
        ),
        (["schedule=async", "schedule.leftover=resume"], "must be one of keep, again, drop"),
        (["schedule=async", "schedule.oversample=0.5"], "schedule.oversample=0.5: must be at"),
        (["rollout.early_stop_samples=8"], "rollout.early_stop_samples=8: .*per_prompt=8"),
        (["rollout.concurrency.start=4"], "rollout.concurrency='{min: 8, start: 4, max: "),
        (["rollout.concurrency.decrease=1"], "rollout.concurrency.decrease=1.0: must be in"),
    ],
)
def test_impossible_long_tail_settings_are_refused(overrides, message):
    base = ["experiment=tiny", "schedule.oversample=1.5", "rollout.samples_per_prompt=8"]
    with pytest.raises(ValueError, match=message):
        compose([*base, *overrides])


def test_an_early_stop_needs_a_filter_that_settles():
    from hydra.utils import instantiate

    settings = ["experiment=tiny", "rollout.early_stop_samples=2"]
    raw, config = compose([*settings, "algorithm=grpo"])
    with pytest.raises(
        ValueError, match=r"early_stop_samples=2 with algorithm=grpo, none of whose"
    ):
        check(config, instantiate(raw.algorithm, _convert_="all"))
    raw, config = compose([*settings, "algorithm=dapo"])
    check(config, instantiate(raw.algorithm, _convert_="all"))


def test_siblings_that_were_stopped_are_no_failures_and_their_length_is_told(prompts):
    source, engines, _ = producer(prompts, "schedule=sync")
    answer = engines.poll

    def poll(*, wait=True):
        (group,) = answer()
        scored, other = group.metas
        cut = {"num_sampled": 10, "outcome": STOPPED_EARLY, "reward": None}
        metas = (scored, other, dataclasses.replace(other, rollout_id="cut", **cut))
        return [dataclasses.replace(group, metas=metas)]

    engines.poll = poll
    taken = source.take(1, 0, keep_all)
    metrics = taken.metrics()
    assert metrics["samples/failed"] == 0
    assert metrics["rollout/early_stop_frac"] == pytest.approx(1 / 3)
    assert metrics["rollout/early_stop_length_bias"] == 4 - 10
    assert taken.rewards == (1.0,) * 8


def test_rows_of_samples_that_failed_are_named_whether_their_group_trains_or_not(prompts):
    source, engines, _ = producer(prompts, "schedule=sync")
    answer = engines.poll
    batches = iter(range(100))

    def poll(*, wait=True):
        (group,) = answer()
        number = next(batches)
        fails = {"outcome": "failed:environment:raised", "reward": None}
        failed = [dataclasses.replace(meta, **fails) for meta in group.metas]
        metas = {0: tuple(failed), 1: (*group.metas, failed[0])}.get(number, group.metas)
        return [dataclasses.replace(group, metas=metas, batch=f"batch {number}", start=4)]

    engines.poll = poll
    taken = source.take(1, 0, keep_all)
    assert taken.dropped.total() == 1
    assert set(taken.failed_rows) == {("batch 0", 4), ("batch 0", 5), ("batch 1", 6)}


def test_training_stale_groups_needs_a_correction():
    from hydra.utils import instantiate

    raw, config = compose(["experiment=tiny", "algorithm=grpo", "schedule.stale=train"])
    with pytest.raises(ValueError, match=r"schedule.stale=train .* add algorithm/correction=tis"):
        check(config, instantiate(raw.algorithm, _convert_="all"))


def test_a_step_that_was_not_trained_is_given_back(prompts):
    source, _, ledger = producer(prompts, "schedule=sync", "schedule.max_refill_rounds=2")
    source.take(1, 0, keep_all)
    source.take(2, 0, lambda group: "filtered" if group.group_id == "0-4" else None)
    assert ledger.counts() == {"trained": 8, "dropped": 1, "in_flight": 0}
    source.give_back()
    assert ledger.counts() == {"trained": 4, "dropped": 0, "in_flight": 5}


class CutError(Exception):
    """What ends a wait for groups."""


def cut_after(engines, count):
    """Poll `count` groups, then fail."""
    poll, left = engines.poll, iter([True] * count)

    def limited(*, wait=True):
        if wait and not next(left, False):
            raise CutError
        return poll(wait=wait)

    engines.poll = limited


def test_what_was_sampled_of_a_step_that_was_cut_short_is_kept_for_the_checkpoint(prompts):
    source, engines, ledger = producer(prompts, "schedule=async", "schedule.max_staleness=1")
    cut_after(engines, 3)
    with pytest.raises(CutError):
        source.take(1, 0, lambda group: "filtered" if group.group_id == "0-6" else None)
    source.give_back()
    assert [group.group_id for group in source.finished_groups()] == ["0-7", "0-5"]
    assert ledger.counts() == {"trained": 0, "dropped": 0, "in_flight": 8}
    resumed, _, ledger_of_resumed = producer(prompts, "schedule=async", "schedule.max_staleness=1")
    ledger_of_resumed.load_state_dict(ledger.state_dict())
    resumed.restore_groups(source.finished_groups())
    assert ids(resumed.take(1, 0, keep_all))[:2] == ["0-7", "0-5"]
    assert ledger_of_resumed.counts() == {"trained": 4, "dropped": 0, "in_flight": 4}


def test_a_batch_that_is_sampled_at_once_is_sampled_again_as_a_whole(prompts):
    source, engines, ledger = producer(prompts, "schedule=sync")
    cut_after(engines, 4)  # the oldest finishes last, so that nothing was chosen before
    source.take(1, 0, keep_all)
    engines.version = 1
    engines.poll = Engines.poll.__get__(engines)
    cut_after(engines, 2)
    with pytest.raises(CutError):
        source.take(2, 1, keep_all)
    source.give_back()
    assert source.finished_groups() == []
    assert ledger.counts() == {"trained": 4, "dropped": 0, "in_flight": 4}


def test_a_run_ends_when_the_curriculum_passes_over_every_prompt(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "1+1=", "ground_truth": "2"}\n' * 6)
    prompts = PromptSet(path, prompt_column="prompt", ground_truth_column="ground_truth")
    solved = "data.curriculum.skip_solved=true"
    _, config = compose(["experiment=tiny", "trainer.prompts_per_step=4", solved])
    rules = Curriculum(config.data.curriculum, prompts)
    ledger = Ledger(prompts, seed=0, shuffle=False, curriculum=rules)
    source = Producer(Engines(), prompts, ledger, config)  # every sample is right
    assert ids(source.take(1, 0, keep_all)) == ["0-0", "0-1", "0-2", "0-3"]
    assert ids(source.take(2, 0, keep_all)) == ["0-4", "0-5"]
    with pytest.raises(NothingLeftError, match=r"data.curriculum passes over every prompt"):
        source.take(3, 0, keep_all)
    assert ledger.counts() == {"trained": 6, "dropped": 0, "in_flight": 0}
