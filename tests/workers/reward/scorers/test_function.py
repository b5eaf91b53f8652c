"""A user's function: its arguments, its kinds, and what it may return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from workers.reward.base import RewardResult, RewardSample, score_group, score_sample, takes_group
from workers.reward.scorers.exact import Exact
from workers.reward.scorers.function import Function
from workers.reward.scorers.weighted import Weighted

Make = Callable[..., Function]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a module and build the scorer of one of its names."""

    def build(body: str, name: str = "reward", **arguments: object) -> Function:
        path = tmp_path / "mine.py"
        path.write_text(body)
        return Function(path=f"{path}:{name}", arguments=arguments)

    return build


def sample(response: str = "5", /, **columns: object) -> RewardSample:
    return RewardSample(prompt="2+3=", response=response, ground_truth="5", columns=columns)


def test_a_function_gets_only_what_it_names(make: Make) -> None:
    scorer = make("def reward(response, ground_truth): return response == ground_truth\n")
    assert score_sample(scorer, sample(extra=1, more=2)).reward == 1.0


@pytest.mark.parametrize("name", ["prompt", "response", "ground_truth", "columns"])
def test_a_column_named_like_an_argument_does_not_replace_it(make: Make, name: str) -> None:
    scorer = make(
        "def reward(prompt, response, ground_truth, columns, **more):\n"
        "    assert (prompt, response, ground_truth, more) == ('2+3=', '5', '5', {})\n"
        f"    return columns[{name!r}]\n"
    )
    result = score_sample(scorer, sample(**{name: 0.25}))
    assert (result.outcome, result.reward) == ("scored", 0.25)


@pytest.mark.parametrize("name", ["prompt", "response", "ground_truth", "columns"])
def test_the_signature_of_the_readme_works_on_such_columns(make: Make, name: str) -> None:
    scorer = make("def reward(prompt, response, ground_truth, **columns): return len(columns)\n")
    assert score_sample(scorer, sample(**{name: "x"}, level=3)).reward == 1.0


def test_a_parameter_that_no_sample_has_is_named(make: Make) -> None:
    scorer = make("def reward(completion): return 1.0\n")
    result = score_sample(scorer, sample(level=3))
    assert "needs completion: a sample has prompt, response, ground_truth" in result.outcome
    assert "columns ['level']" in result.outcome


def test_arguments_that_every_sample_has_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"arguments holds \['response'\]"):
        make("def reward(response): return 1.0\n", response="x")


@pytest.mark.parametrize(
    "body",
    [
        "import asyncio\n"
        "async def reward(response):\n    await asyncio.sleep(0)\n    return len(response)\n",
        "class Reward:\n    async def __call__(self, response):\n        return len(response)\n"
        "reward = Reward()\n",
        "import asyncio\n"
        "def reward(response):\n    return asyncio.sleep(0, result=len(response))\n",
    ],
    ids=["function", "object", "awaitable"],
)
def test_what_must_be_awaited_is_awaited(make: Make, body: str) -> None:
    assert score_sample(make(body), sample("four")).reward == 4.0


def test_all_calls_of_a_process_share_one_event_loop(make: Make) -> None:
    scorer = make(
        "import asyncio\nseen = set()\n"
        "async def reward():\n    seen.add(asyncio.get_running_loop())\n    return len(seen)\n"
    )
    assert [score_sample(scorer, sample()).reward for _ in range(3)] == [1.0, 1.0, 1.0]


def test_a_class_is_constructed_once_and_keeps_its_state(make: Make) -> None:
    scorer = make(
        "class Count:\n"
        "    def __init__(self, start):\n        self.calls = start\n"
        "    def __call__(self, response):\n        self.calls += 1\n        return self.calls\n",
        "Count",
        start=10,
    )
    scorer.prepare()
    assert [score_sample(scorer, sample()).reward for _ in range(3)] == [11.0, 12.0, 13.0]


def test_a_class_that_cannot_score_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="has no method __call__"):
        make("class Reward: pass\n", "Reward")


def test_a_module_that_raises_while_it_is_imported_is_named(make: Make) -> None:
    with pytest.raises(ValueError, match=r"cannot be imported \(ZeroDivisionError"):
        make("1 / 0\n")


@pytest.mark.parametrize("sort", ["def", "async def"])
def test_a_function_of_samples_gets_all_siblings(make: Make, sort: str) -> None:
    scorer = make(
        f"{sort} reward(samples):\n"
        "    longest = max(len(s.response) for s in samples)\n"
        "    return [len(s.response) == longest for s in samples]\n"
    )
    assert scorer.whole_group
    results = score_group(scorer, [sample("a"), sample("bbb"), sample("cc")])
    assert [result.reward for result in results] == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("    return [1.0]\n", "failed:ValueError: 2 samples need as many scores, got 1"),
        ("    return 1.0\n", "failed:TypeError"),
        ("    raise KeyError('x')\n", "failed:KeyError"),
    ],
)
def test_a_whole_group_fails_together(make: Make, body: str, outcome: str) -> None:
    scorer = make(f"def reward(samples):\n{body}")
    results = score_group(scorer, [sample(), sample()])
    assert [result.outcome.startswith(outcome) for result in results] == [True, True]
    assert [result.reward for result in results] == [None, None]


def test_one_sibling_may_be_abstained_from(make: Make) -> None:
    scorer = make("def reward(samples): return [1.0, None]\n")
    outcomes = [result.outcome for result in score_group(scorer, [sample(), sample()])]
    assert outcomes == ["scored", "dropped:abstained"]


def test_a_weighted_sum_with_a_function_of_samples_scores_whole_groups(make: Make) -> None:
    """The longest earns 2, an exact answer 1; None of the function abstains for that sample."""
    whole = make(
        "def reward(samples):\n"
        "    longest = max(len(s.response) for s in samples)\n"
        "    return [2.0 * (len(s.response) == longest) if s.response else None for s in samples]\n"
    )
    both = Weighted(scorers={"mine": whole, "exact": Exact()}, weights={"mine": 1, "exact": 1})
    assert takes_group(both)
    responses = ["5", "six", ""]
    results = score_group(
        both, [RewardSample(prompt="", response=text, ground_truth="5") for text in responses]
    )
    assert [(result.outcome, result.reward) for result in results] == [
        ("scored", 1.0),
        ("scored", 2.0),
        ("dropped:abstained", None),
    ]


def test_numbers_texts_and_nothing_beside_the_reward(make: Make) -> None:
    scorer = make(
        "def reward():\n"
        "    return {'reward': 0.9, 'correct': True, 'pred': '72', 'steps': [1, 2], 'x': None}\n"
    )
    assert score_sample(scorer, sample()) == RewardResult(
        outcome="scored",
        reward=0.9,
        parts={"correct": 1.0},
        notes={"pred": "72", "steps": "[1, 2]"},
        seconds=pytest.approx(0.0, abs=1.0),
    )


SIZES = "def reward(images, response): return sum(map(len, images))\n"


def test_a_function_that_names_images_gets_the_files_of_the_prompt(make: Make) -> None:
    scorer = make(SIZES)
    shown = replace(sample(), images=(b"abc", b"de"))
    assert scorer.reads_images
    assert score_sample(scorer, shown).reward == 5.0
    assert score_sample(Weighted(scorers={"a": scorer}, weights={"a": 2.0}), shown).reward == 10.0
    assert Weighted(scorers={"a": scorer, "b": Exact()}, weights={"a": 1, "b": 1}).reads_images
    # A column of that name is what the function meant before, and a run may show no images.
    assert score_sample(scorer, sample(images=["abcd"])).reward == 4.0
    assert "needs images" in score_sample(scorer, sample()).outcome


def test_no_other_function_asks_for_images_but_by_its_attribute(make: Make) -> None:
    assert not make("def reward(response, **columns): return 1\n").reads_images
    together = "def reward(samples): return [len(s.images[0]) for s in samples]\n"
    assert not make(together).reads_images
    asks = make(f"{together}asks = reward\nasks.reads_images = True\n", "asks")
    assert asks.reads_images
    assert [r.reward for r in score_group(asks, [replace(sample(), images=(b"abc",))])] == [3.0]
