"""Rewards of the works that `peers.py` compares trainers on: of a response and its ground truth.

Standard library only, because trainers of other environments import the module. `exact` and
`positions` equal the scorers of `conf/reward/` by the same names, which is tested.
"""

from collections.abc import Callable


def exact(response: str, ground_truth: str) -> float:
    """Return 1 if the first line is the truth, up to case and white space, else 0."""
    first, truth = (" ".join(text.split("\n", 1)[0].split()) for text in (response, ground_truth))
    return float(first.casefold() == truth.casefold())


def positions(response: str, ground_truth: str) -> float:
    """Return half the share of right characters, by place, and half for an answer all right."""
    right = sum(a == b for a, b in zip(response, ground_truth, strict=False)) / len(ground_truth)
    return 0.5 * float(response == ground_truth) + 0.5 * right


def numbers(response: str, ground_truth: str) -> float:
    """Return the share of the first line's numbers that are right, by place; more of them is worse.

    Example: numbers("13 16 20", "13 16 19 22") is 2 / 4; numbers("13 16 19 22 25", ...) is 4 / 5.
    """
    said, truth = response.split("\n", 1)[0].split(), ground_truth.split()
    right = sum(a == b for a, b in zip(said, truth, strict=False))
    return right / max(len(said), len(truth))


REWARDS: dict[str, Callable[[str, str], float]] = {
    "exact": exact,
    "positions": positions,
    "numbers": numbers,
}
