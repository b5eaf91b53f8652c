"""Compare the response with the ground truth, as it stands or normalised.

Runs in a scoring process. No answer is searched for inside the response.
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.reward.base import RewardSample


def cut_at(text: str, stop_at: str | None) -> str:
    """Return the text before `stop_at`: few-shot models go on with the next question."""
    return text if stop_at is None else text.split(stop_at, 1)[0]


def check_stop(stop_at: str | None) -> None:
    """Raise ValueError where `stop_at` is empty: every response would be cut to nothing."""
    if stop_at == "":
        raise ValueError("stop_at must not be empty: give a text such as a line break, or null")


def truth_of(sample: RewardSample) -> str:
    """Return the ground truth of a sample.

    Raises:
        ValueError: the sample has none, or an empty one, so there is nothing to compare with.
    """
    if sample.ground_truth is None:
        raise ValueError("the sample has no ground truth; see data.ground_truth_column")
    if isinstance(sample.ground_truth, list):
        raise ValueError(f"one ground truth is compared at a time, got {sample.ground_truth!r:.80}")
    if not sample.ground_truth.strip():
        raise ValueError("the ground truth is empty; see data.ground_truth_column")
    return sample.ground_truth


@dataclass(frozen=True, kw_only=True, slots=True)
class Exact:
    r"""1 if the response equals the ground truth, else 0.

    Attributes:
        stop_at: only the response before this text counts, None for all of it. "\n" for one line.
        normalise: compare without regard to case, surrounding or repeated white space.
    """

    stop_at: str | None = None
    normalise: bool = True

    def __post_init__(self) -> None:
        check_stop(self.stop_at)

    def __call__(self, sample: RewardSample) -> float:
        """Compare one response; raises if there is no ground truth."""
        response, truth = cut_at(sample.response, self.stop_at), truth_of(sample)
        if self.normalise:
            response, truth = (" ".join(text.split()).casefold() for text in (response, truth))
        return float(response == truth)

    def extract(self, sample: RewardSample) -> str | None:
        """Return the compared part of a response, if it is not all of it."""
        if self.stop_at is None:
            return None
        return " ".join(cut_at(sample.response, self.stop_at).split())
