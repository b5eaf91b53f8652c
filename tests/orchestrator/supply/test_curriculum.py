"""Which prompts are passed over, and which source gives how many, from step to step."""

import json

import pytest

from conf.compose import ConfigError, compose
from conf.schema import CurriculumConfig
from conf.schema.data import SourceWeightsConfig, WindowConfig
from orchestrator.supply.curriculum import Curriculum
from orchestrator.supply.ledger import Ledger
from workers.data.prompts import PromptSet
from workers.data.sources.source import PromptSource


@pytest.fixture
def prompts(tmp_path):
    sources = []
    for name, rates in (("sums", (0.0, 0.5, 1.0)), ("words", (None, 0.9))):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"prompt": "1+1=", "ground_truth": "2", "solved": rate} for rate in rates]
        path.write_text("\n".join(map(json.dumps, rows)))
        sources.append(
            PromptSource(
                path,
                name=name,
                weight=1.0,
                prompt_column="prompt",
                ground_truth_column="ground_truth",
            )
        )
    return PromptSet.of(sources)


def test_a_solved_prompt_is_passed_over(prompts):
    rules = Curriculum(CurriculumConfig(skip_solved=True), prompts)
    rates = {0: 1.0, 1: 0.75}
    assert [rules.reason_to_skip(row, 1, rates) for row in range(3)] == ["solved", None, None]


def test_windows_move_with_the_steps_and_take_published_rates_until_there_are_own_ones(prompts):
    config = CurriculumConfig(
        pass_rate_column="solved",
        windows=[
            WindowConfig(from_step=1, min_pass_rate=0.5),
            WindowConfig(from_step=10, min_pass_rate=0.2, max_pass_rate=0.8),
        ],
    )
    rules = Curriculum(config, prompts)
    assert [rules.reason_to_skip(row, 9, {}) for row in range(5)] == [
        "too hard",
        None,
        None,
        None,
        None,
    ]
    assert [rules.reason_to_skip(row, 10, {0: 0.25}) for row in range(5)] == [
        None,
        None,
        "too easy",
        None,
        "too easy",
    ]


def test_weights_of_sources_move_with_the_steps(prompts):
    config = CurriculumConfig(weights=[SourceWeightsConfig(from_step=5, sources={"words": 2.0})])
    rules = Curriculum(config, prompts)
    assert rules.weights(4) == [1.0, 1.0]
    assert rules.weights(5) == [0.0, 2.0]


def step(ledger, number, rates):
    """Train two prompts, whose pass rates a table gives; return their rows."""
    ledger.begin_step(number)
    taken = []
    for _, (epoch, row) in zip(range(2), ledger, strict=False):
        ledger.observe(row, rates[row])
        ledger.trained(epoch, row, number)
        taken.append((epoch, row))
    return taken


def test_a_run_that_is_killed_and_resumed_begins_the_prompts_that_the_whole_run_began(prompts):
    config = CurriculumConfig(
        skip_solved=True,
        windows=[WindowConfig(from_step=4, min_pass_rate=0.3)],
        weights=[
            SourceWeightsConfig(from_step=1, sources={"sums": 3, "words": 1}),
            SourceWeightsConfig(from_step=6, sources={"sums": 1, "words": 1}),
        ],
    )
    rates = {0: 0.25, 1: 0.5, 2: 1.0, 3: 0.5, 4: 0.75}

    def ledger():
        rules = Curriculum(config, prompts)
        return Ledger(prompts, seed=2, shuffle=True, curriculum=rules)

    whole, killed, resumed = ledger(), ledger(), ledger()
    expected = [entry for number in range(1, 9) for entry in step(whole, number, rates)]
    entries = [entry for number in range(1, 5) for entry in step(killed, number, rates)]
    state = json.loads(json.dumps(killed.state_dict()))
    step(killed, 5, rates)  # lost: the checkpoint is older
    resumed.load_state_dict(state)
    entries += [entry for number in range(5, 9) for entry in step(resumed, number, rates)]
    assert entries == expected
    assert resumed.state_dict() == whole.state_dict()
    # Every row's count, from the ledger alone: each status of each epoch is there once.
    statuses = resumed.state_dict()["fate"]
    assert sum(s.startswith("trained") for rows in statuses.values() for s in rows.values()) == 16
    rows = [row for _, row in entries]
    assert rows.count(2) == 1  # solved when it was first sampled
    assert [row for row in rows[6:] if row == 0] == []  # too hard from step 4 on


def test_a_step_that_is_given_back_forgets_its_pass_rates(prompts):
    rules = Curriculum(CurriculumConfig(skip_solved=True), prompts)
    ledger = Ledger(prompts, seed=0, shuffle=False, curriculum=rules)
    step(ledger, 1, {0: 0.5, 3: 0.5})
    before = ledger.state_dict()["pass_rates"]
    step(ledger, 2, {1: 1.0, 4: 1.0})
    ledger.reopen_step()
    assert ledger.state_dict()["pass_rates"] == before == {"0": 0.5, "3": 0.5}


def test_a_ledger_ends_where_every_prompt_is_passed_over(prompts):
    rules = Curriculum(CurriculumConfig(skip_solved=True), prompts)
    ledger = Ledger(prompts, seed=0, shuffle=False, curriculum=rules)
    solved = dict.fromkeys(range(5), 1.0)
    rows = [row for number in range(1, 4) for _, row in step(ledger, number, solved)]
    assert sorted(rows) == [0, 1, 2, 3, 4]
    assert list(ledger) == []
    assert ledger.metrics()["curriculum/skipped"] == 0.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.curriculum.windows=[{min_pass_rate: 0.8, max_pass_rate: 0.2}]", "needs 0 <= min"),
        ("data.curriculum.windows=[{from_step: 5}, {from_step: 5}]", r"\[5, 5\]: from_step must"),
        ("data.curriculum.weights=[{sources: {sums: 1}}]", "data.sources has none"),
    ],
)
def test_what_cannot_be_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        compose(["experiment=tiny", override])


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("[{name: a, path: x}, {name: a, path: y}]", "two sources have one name"),
        ("[{name: a, path: x, weight: 1}, {name: b, path: y}]", "give every source a weight, or"),
        ("[{name: a/b, path: x}]", r"sources\[0\].name='a/b': use letters"),
        ("[{name: a, path: x, weight: 0}]", "must be positive"),
        ("[{name: a, path: x, prompt_template: Q}]", r"has no \{prompt\}"),
    ],
)
def test_sources_that_cannot_be_are_refused(sources, message):
    with pytest.raises(ConfigError, match=message):
        compose(["experiment=tiny", "data=files", f"data.sources={sources}"])
