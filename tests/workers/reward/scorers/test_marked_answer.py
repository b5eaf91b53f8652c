"""The answer inside <answer>: a letter or mathematics, and never a reward for a lost truth."""

import pytest
from hydra.utils import instantiate

from conf.compose import compose
from workers.reward.base import RewardSample
from workers.reward.scorers.math import MarkedAnswer


def sample(response: str, truth: str | None) -> RewardSample:
    return RewardSample(prompt="", response=response, ground_truth=truth)


@pytest.mark.parametrize(
    ("response", "truth", "reward"),
    [
        ("<think>C?</think><answer>B</answer>", "B", 1.0),
        ("<think>B</think><answer>C</answer>", "B", 0.0),
        ("<answer>(B) 5 cm</answer>", "B", 1.0),
        ("<answer>1/2</answer>", "0.5", 1.0),
        (r"<answer>$\frac{1}{2}$</answer>", "0.5", 1.0),
        ("<answer>3</answer> no, <answer>5</answer>", "5", 1.0),
        ("the answer is 5", "5", 0.0),
        ("<answer></answer>", "5", 0.0),
    ],
)
def test_the_last_block_is_compared(response: str, truth: str, reward: float) -> None:
    assert MarkedAnswer()(sample(response, truth)) == reward


@pytest.mark.parametrize("truth", [None, "", "N/A"])
def test_an_unreadable_truth_fails_the_sample_whatever_the_response(truth: str | None) -> None:
    with pytest.raises(ValueError, match="ground truth"):
        MarkedAnswer()(sample("no block", truth))


def test_accuracy_counts_twice_as_much_as_form() -> None:
    raw, _ = compose(["experiment=tiny_vision", "reward=marked"])
    scorer = instantiate(raw.reward.scorer, _convert_="all")
    both = "<think>so</think>\n<answer>7</answer>"
    assert [
        scorer(sample(response, "7"))["reward"]
        for response in (both, "<answer>7</answer>", both.replace("7", "8"), "7")
    ] == [1.5, 1.0, 0.5, 0.0]
