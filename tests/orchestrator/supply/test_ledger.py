"""Every prompt of every epoch is trained or dropped exactly once, resumed or not."""

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.supply.ledger import Ledger
from workers.data.prompts import PromptSet


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": list("abcde"), "ground_truth": list("abcde")}), path)
    return PromptSet(path, prompt_column="prompt", ground_truth_column="ground_truth")


def take(ledger, count):
    return [entry for _, entry in zip(range(count), ledger, strict=False)]


def test_each_epoch_holds_every_prompt_once(prompts):
    ledger = Ledger(prompts, seed=3, shuffle=True)
    entries = take(ledger, 15)
    for epoch in range(3):
        assert sorted(row for e, row in entries if e == epoch) == [0, 1, 2, 3, 4]
    assert ledger.counts() == {"trained": 0, "dropped": 0, "in_flight": 15}


def test_order_depends_on_seed_and_epoch_only(prompts):
    first = take(Ledger(prompts, seed=3, shuffle=True), 10)
    assert first == take(Ledger(prompts, seed=3, shuffle=True), 10)
    assert first != take(Ledger(prompts, seed=4, shuffle=True), 10)
    assert [row for _, row in take(Ledger(prompts, seed=3, shuffle=False), 5)] == [0, 1, 2, 3, 4]


def test_resume_hands_out_what_was_in_flight_and_nothing_twice(prompts):
    ledger = Ledger(prompts, seed=1, shuffle=True)
    entries = take(ledger, 4)
    ledger.trained(*entries[0], step=1)
    ledger.dropped(*entries[1], "filtered")
    resumed = Ledger(prompts, seed=1, shuffle=True)
    resumed.load_state_dict(ledger.state_dict())
    again = take(resumed, 3)
    assert again[:2] == entries[2:]  # in flight when the state was saved
    seen = itertools.chain(entries[:2], again)
    assert sorted(row for epoch, row in seen if epoch == 0) == [0, 1, 2, 3, 4]
    assert resumed.status(*entries[0]) == "trained:1"
    assert resumed.status(*entries[1]) == "dropped:filtered"
    assert resumed.counts() == {"trained": 1, "dropped": 1, "in_flight": 3}


def test_a_prompt_is_settled_once(prompts):
    ledger = Ledger(prompts, seed=1, shuffle=True)
    (entry,) = take(ledger, 1)
    ledger.trained(*entry, step=1)
    with pytest.raises(ValueError, match="not in flight"):
        ledger.trained(*entry, step=2)


def test_other_data_is_refused(prompts, tmp_path):
    state = Ledger(prompts, seed=1, shuffle=True).state_dict()
    older = {name: value for name, value in state.items() if name != "pass_rates"}
    with pytest.raises(ValueError, match="ledger is of an earlier version"):
        Ledger(prompts, seed=1, shuffle=True).load_state_dict(older)
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"prompt": ["x"], "ground_truth": ["x"]}), other)
    names = {"prompt_column": "prompt", "ground_truth_column": "ground_truth"}
    with pytest.raises(ValueError, match="not the prompt file"):
        Ledger(PromptSet(other, **names), seed=1, shuffle=True).load_state_dict(state)


def test_a_kept_group_is_not_handed_out_again(prompts):
    ledger = Ledger(prompts, seed=1, shuffle=True)
    entries = take(ledger, 3)
    resumed = Ledger(prompts, seed=1, shuffle=True)
    resumed.load_state_dict(ledger.state_dict())
    resumed.claim(*entries[1])
    resumed.trained(*entries[1], step=1)
    assert take(resumed, 4)[:2] == [entries[0], entries[2]]
    with pytest.raises(ValueError, match="was not in flight"):
        resumed.claim(*entries[1])


def test_a_step_that_could_not_be_trained_gives_its_prompts_back_in_their_order(prompts):
    ledger = Ledger(prompts, seed=1, shuffle=True)
    entries = take(ledger, 4)
    ledger.trained(*entries[0], step=1)
    ledger.begin_step(2)
    ledger.trained(*entries[1], step=2)
    ledger.dropped(*entries[2], "failed")
    ledger.reopen_step()
    assert ledger.counts() == {"trained": 1, "dropped": 0, "in_flight": 3}
    assert ledger.status(*entries[2]) == "in_flight"
    ledger.reopen_step()  # once is enough
    resumed = Ledger(prompts, seed=1, shuffle=True)
    resumed.load_state_dict(ledger.state_dict())
    again = take(resumed, 4)
    assert again[:3] == entries[1:4]  # those of step 2, then the one that was in flight
    assert again[3] not in entries
