"""The row's source chooses the scorer; several ground truths mean any of them."""

import pytest

from workers.reward.base import RewardSample, score_group, score_sample
from workers.reward.scorers.by_column import ByColumn
from workers.reward.scorers.choice import Choice
from workers.reward.scorers.exact import Exact
from workers.reward.scorers.math import Math


class Together:
    whole_group = True

    def __call__(self, samples):
        return [float(len(samples))] * len(samples)


def sample(source, response, truth):
    return RewardSample(
        prompt="", response=response, ground_truth=truth, columns={"dataset": source}
    )


def test_each_source_has_its_scorer():
    scorer = ByColumn(scorers={"sums": Exact(), "quiz": Choice()})
    assert score_sample(scorer, sample("sums", "5", "5")).reward == 1.0
    result = score_sample(scorer, sample("quiz", "The answer is (B)", "B"))
    assert (result.reward, result.notes) == (1.0, {"answer": "B"})


def test_a_source_without_a_scorer_fails_the_sample_with_those_that_there_are():
    scorer = ByColumn(scorers={"sums": Exact(), "quiz": Choice()})
    assert score_sample(scorer, sample("words", "5", "5")).outcome == (
        "failed:ValueError: no scorer for dataset='words'; reward.scorer.scorers has quiz, sums"
    )
    other = ByColumn(scorers={"quiz": Choice()}, other=Exact())
    assert score_sample(other, sample("words", "5", "5")).reward == 1.0


def test_siblings_are_scored_together_where_all_scorers_want_that():
    scorer = ByColumn(scorers={"a": Together(), "b": Together()})
    siblings = [sample("a", "x", None), sample("a", "y", None)]
    assert scorer.whole_group
    assert [result.reward for result in score_group(scorer, siblings)] == [2.0, 2.0]
    with pytest.raises(ValueError, match=r"score whole groups in part"):
        ByColumn(scorers={"a": Together(), "b": Exact()})


@pytest.mark.parametrize(
    ("scorer", "response", "truths", "reward"),
    [
        (Exact(), "two", ["2", "two"], 1.0),
        (Exact(), "three", ["2", "two"], 0.0),
        (Math(), r"\boxed{1/2}", ["3", "0.5"], 1.0),
        (Math(), r"\boxed{1/2}", ["N/A", "0.5"], 1.0),  # one that can't be read
        (Choice(), "B", ["A", "B"], 1.0),
        (ByColumn(scorers={"sums": Exact()}), "two", ["2", "two"], 1.0),
    ],
)
def test_any_of_several_ground_truths_is_right(scorer, response, truths, reward):
    assert score_sample(scorer, sample("sums", response, truths)).reward == reward


def test_a_row_whose_ground_truths_are_all_unreadable_fails():
    result = score_sample(Exact(), sample("sums", "", ["", " "]))
    assert result.outcome.startswith("failed:ValueError: the ground truth is empty")
