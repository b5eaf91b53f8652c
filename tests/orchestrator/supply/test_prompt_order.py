"""Sources come by their weights to the prompt, rows once per epoch of their source."""

from collections import Counter

import pytest

from orchestrator.supply.prompt_order import PromptOrder
from workers.data.prompts import PromptSet
from workers.data.sources.source import PromptSource

SIZES = {"sums": 5, "words": 3, "quiz": 2}  # rows 0-4, 5-7, 8-9


@pytest.fixture
def prompts(tmp_path):
    sources = []
    for name, count in SIZES.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text('{"prompt": "1+1=", "ground_truth": "2"}\n' * count)
        sources.append(
            PromptSource(
                path, name=name, prompt_column="prompt", ground_truth_column="ground_truth"
            )
        )
    return PromptSet.of(sources)


def draw(order, weights, count, skip=lambda row: None, skipped=lambda *entry: None):
    return [order.draw(weights, skip, skipped) for _ in range(count)]


def counts(prompts, entries):
    return Counter(prompts.sources[prompts.source_of(row)].name for _, row in entries)


def test_shares_hold_in_every_round(prompts):
    order = PromptOrder(prompts, seed=0, shuffle=True)
    for _ in range(10):
        entries = draw(order, [3.0, 2.0, 1.0], 6)
        assert counts(prompts, entries) == {"sums": 3, "words": 2, "quiz": 1}


def test_without_weights_an_epoch_ends_in_all_sources_together(prompts):
    order = PromptOrder(prompts, seed=0, shuffle=True)
    weights = [source.weight for source in prompts.sources]
    for epoch in range(3):
        entries = draw(order, weights, 10)
        assert sorted(entries) == [(epoch, row) for row in range(10)]


def test_a_small_source_begins_its_next_epoch_while_the_others_go_on(prompts):
    order = PromptOrder(prompts, seed=0, shuffle=False)
    entries = draw(order, [1.0, 0.0, 1.0], 8)
    assert [entry for entry in entries if entry[1] < 5] == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert [entry for entry in entries if entry[1] > 7] == [(0, 8), (0, 9), (1, 8), (1, 9)]


def test_a_resumed_order_goes_on_as_the_one_that_was_not(prompts):
    whole = PromptOrder(prompts, seed=7, shuffle=True)
    expected = draw(whole, [5.0, 3.0, 1.0], 40)
    first = PromptOrder(prompts, seed=7, shuffle=True)
    before = draw(first, [5.0, 3.0, 1.0], 17)
    second = PromptOrder(prompts, seed=7, shuffle=True)
    second.load_state_dict(first.state_dict())
    assert before + draw(second, [5.0, 3.0, 1.0], 23) == expected


def test_rows_that_are_passed_over_are_reported_with_their_epoch(prompts):
    order, passed = PromptOrder(prompts, seed=0, shuffle=False), []
    entries = draw(
        order,
        [1.0, 0.0, 0.0],
        4,
        skip=lambda row: "solved" if row in (0, 3) else None,
        skipped=lambda *entry: passed.append(entry),
    )
    assert entries == [(0, 1), (0, 2), (0, 4), (1, 1)]
    assert passed == [(0, 0, "solved"), (0, 3, "solved"), (1, 0, "solved")]


def test_a_source_without_a_prompt_to_begin_leaves_its_share_to_the_others(prompts):
    order = PromptOrder(prompts, seed=0, shuffle=False)
    entries = draw(order, [1.0, 1.0, 0.0], 4, skip=lambda row: "solved" if row < 5 else None)
    assert entries == [(0, 5), (0, 6), (0, 7), (1, 5)]
    assert draw(order, [1.0, 0.0, 0.0], 1, skip=lambda row: "solved") == [None]
    assert order.state_dict()["places"][0] == [0, 0]  # nothing of it was passed over
