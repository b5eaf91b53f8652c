"""Read the verdict out of a judge's answer, and turn the judged numbers into rewards.

Runs in scoring processes. Asks nobody: `service.py` asks, `scorers/judge.py` puts both together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

SCORE, SCORES, RANKING = "score", "scores", "ranking"


def verdict_schema(together: str | None, *, count: int, lowest: float, highest: float) -> Any:
    """Return the JSON schema of a verdict: a reason, and one score, `count` scores, or a ranking.

    Example: for two siblings that are ranked, `{"reason": "...", "ranking": [2, 1]}` fits: the
    second is the best.

    Args:
        together: None for one response, "scores" or "ranking" for siblings.
        count: of siblings.
        lowest: score of the worst response.
        highest: score of the best one.
    """
    number = {"type": "number", "minimum": lowest, "maximum": highest}
    places = {"type": "integer", "minimum": 1, "maximum": count}
    exact = {"type": "array", "minItems": count, "maxItems": count}
    judged = {
        None: {SCORE: number},
        SCORES: {SCORES: {**exact, "items": number}},
        RANKING: {RANKING: {**exact, "items": places}},
    }[together]
    return {
        "type": "object",
        "properties": {"reason": {"type": "string"}, **judged},
        "required": ["reason", *judged],
        "additionalProperties": False,
    }


def read_verdict(answer: str, schema: Any) -> dict[str, Any]:
    """Return the last JSON object of an answer that fits the schema.

    The last one, because a judge may quote the response, which may hold a verdict of its own.

    Raises:
        ValueError: none fits; the message holds the fault of the last object.
    """
    import jsonschema

    validator = jsonschema.validators.validator_for(schema)(schema)
    decoder, found, fault, place = json.JSONDecoder(), None, "no JSON object", 0
    while (place := answer.find("{", place)) >= 0:
        try:
            value, end = decoder.raw_decode(answer, place)
        except ValueError:
            place += 1
            continue
        error = jsonschema.exceptions.best_match(validator.iter_errors(value))
        if error is None:
            found = value
        else:
            fault = error.message[:120]
        place = end
    if found is None:
        raise ValueError(f"the judge gave no verdict ({fault}): {answer[:120]!r}")
    return dict(found)


def rewards_of(
    verdict: Mapping[str, Any],
    together: str | None,
    *,
    order: Sequence[int],
    lowest: float,
    highest: float,
) -> list[float]:
    """Return the rewards of a verdict, from 0 to 1, in the order of the samples.

    A score s becomes (s - lowest) / (highest - lowest). Of n ranked siblings the one in place p
    earns (n - p) / (n - 1); one alone, which is neither first nor last, earns 1/2.

    Args:
        verdict: fits the schema.
        together: as in `verdict_schema`.
        order: the samples as the judge saw them; the judge's sibling 1 is sample `order[0]`.
        lowest: score of the worst response.
        highest: score of the best one.

    Raises:
        ValueError: a score out of range, another number of scores than of samples, or a ranking
            that leaves out a sibling.
    """
    count = len(order)
    if together == RANKING:
        places = [int(place) for place in verdict[RANKING]]
        if sorted(places) != list(range(1, count + 1)):
            raise ValueError(f"a ranking must name 1 to {count} once each, got {places}")
        seen = [0.5] * count
        for rank, place in enumerate(places):
            seen[place - 1] = (count - 1 - rank) / (count - 1) if count > 1 else 0.5
    else:
        scores = [verdict[SCORE]] if together is None else list(verdict[SCORES])
        if len(scores) != count:
            raise ValueError(f"{count} samples need as many scores, got {len(scores)}")
        if not all(lowest <= score <= highest for score in scores):
            raise ValueError(f"scores must be from {lowest:g} to {highest:g}, got {scores}")
        seen = [(score - lowest) / (highest - lowest) for score in scores]
    rewards = [0.0] * count
    for place, sample in enumerate(order):
        rewards[sample] = seen[place]
    return rewards
