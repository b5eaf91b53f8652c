"""Sum up groups and prompts: what is solved, what can be learned from, what failed and why.

Pure functions on the small columns of `rows.py` and on held-out answers. A sample with a reward of
at least 1 is right, as in the held-out scores.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.report.rows import RecordedStep
from orchestrator.report.samples import rounded

RIGHT = 1.0
SHOWN_OUTCOMES = 40
SHOWN_PROMPTS = 400
SHOWN_HELDOUT = 60  # held-out prompts, and times of each at most TIMES
TIMES = 8
ANSWER_CHARACTERS = 2_000


def group_counts(steps: Sequence[RecordedStep]) -> dict[str, list[int]]:
    """Count the groups of every step by what their rewards say.

    Returns:
        `steps`, and in its order `solved` (every sample right), `mixed` (rewards differ: there is
        something to learn), `equal` (rewards equal, not right: nothing to learn), `unscored` (no
        sample has a reward).
    """
    found: dict[str, list[int]] = {
        "steps": [], "solved": [], "mixed": [], "equal": [], "unscored": []
    }  # fmt: skip
    for step in steps:
        counts = Counter(_kind(rewards) for rewards in _rewards(step, "group_id").values())
        found["steps"].append(step.step)
        for name in ("solved", "mixed", "equal", "unscored"):
            found[name].append(counts[name])
    return found


def _rewards(step: RecordedStep, key: str) -> dict[str, list[float]]:
    found: defaultdict[str, list[float]] = defaultdict(list)
    for name, reward in zip(step.small[key], step.small["reward"], strict=True):
        found[str(name)] += [] if reward is None else [float(str(reward))]
    return found


def _kind(rewards: Sequence[float]) -> str:
    if not rewards:
        return "unscored"
    if min(rewards) >= RIGHT:
        return "solved"
    return "mixed" if max(rewards) - min(rewards) > 1e-9 else "equal"


def outcomes(steps: Sequence[RecordedStep]) -> list[dict[str, Any]]:
    """Count samples by kind of outcome, the most frequent first, with first and last step.

    Example: [{"outcome": "scored", "samples": 1020, "first": 1, "last": 4},
              {"outcome": "failed:timeout", "samples": 4, "first": 2, "last": 2}]
    """
    counts: Counter[str] = Counter()
    places: dict[str, tuple[int, int]] = {}
    for step in steps:
        for outcome, count in Counter(step.outcomes()).items():
            counts[outcome] += count
            places[outcome] = (places.get(outcome, (step.step, 0))[0], step.step)
    return [
        {"outcome": name, "samples": count, "first": places[name][0], "last": places[name][1]}
        for name, count in counts.most_common(SHOWN_OUTCOMES)
    ]


def prompts(steps: Sequence[RecordedStep]) -> dict[str, Any]:
    """Judge every prompt by its rewards over the run.

    Returns:
        `counts`: verdict -> number of prompts: `solved` (all samples of its last group right),
        `sometimes` (some sample of some step right), `never`. `rows`: the prompts that were sampled
        most often, each with `uid`, `verdict`, and per step its mean reward.
    """
    history: defaultdict[str, list[tuple[int, list[float]]]] = defaultdict(list)
    for step in steps:
        for uid, rewards in _rewards(step, "prompt_uid").items():
            if rewards:
                history[uid].append((step.step, rewards))
    verdicts = {uid: _verdict([rewards for _, rewards in seen]) for uid, seen in history.items()}
    most = sorted(history, key=lambda uid: (-len(history[uid]), uid))[:SHOWN_PROMPTS]
    return {
        "counts": dict(Counter(verdicts.values())),
        "total": len(history),
        "rows": [
            {
                "uid": uid,
                "verdict": verdicts[uid],
                "steps": [step for step, _ in history[uid]],
                "means": [rounded(float(np.mean(rewards))) for _, rewards in history[uid]],
            }
            for uid in most
        ],
    }


def _verdict(history: Sequence[Sequence[float]]) -> str:
    if min(history[-1]) >= RIGHT:
        return "solved"
    return "sometimes" if max(map(max, history)) >= RIGHT else "never"


def heldout_answers(answers: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return held-out prompts with their first answer after each of several evaluations.

    Prompts whose answer changed come first.
    """
    times = sorted(answers)
    places = np.linspace(0, len(times) - 1, min(TIMES, len(times))).round().astype(int)
    found: dict[str, dict[str, Any]] = {}
    for step in [times[place] for place in places]:
        seen: set[str] = set()
        for answer in answers[step]:
            uid = str(answer.get("prompt_uid"))
            if uid in seen:
                continue
            seen.add(uid)
            prompt = found.setdefault(
                uid,
                {
                    "uid": uid,
                    "prompt": str(answer.get("prompt", ""))[:ANSWER_CHARACTERS],
                    "truth": str(answer.get("ground_truth", ""))[:ANSWER_CHARACTERS],
                    "answers": [],
                },
            )
            prompt["answers"].append(
                {
                    "step": step,
                    "text": str(answer.get("response", ""))[:ANSWER_CHARACTERS],
                    "reward": rounded(answer.get("reward")),
                    "outcome": str(answer.get("outcome", "")),
                }
            )
    ranked = sorted(found.values(), key=lambda p: len({a["text"] for a in p["answers"]}) < 2)
    return ranked[:SHOWN_HELDOUT]
