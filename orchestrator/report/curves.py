"""Choose the metrics that a report draws, and mark the steps at which something happened.

Pure functions on the lines of `metrics.jsonl`. Units and meanings come from the glossary; a panel
names metrics and nothing else, and a test holds the names against the glossary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from orchestrator.report.samples import rounded, rounded_all
from orchestrator.telemetry.alerts.rules import Alerts
from orchestrator.telemetry.glossary import GLOSSARY

MAX_POINTS = 2_000  # of a curve
MAX_EVENTS = 200


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart: a title that a person reads, and the metrics that share its axis.

    Attributes:
        title: in words.
        metrics: names or families of the glossary; those that a run did not write are left out.
        section: under which the chart stands.
        scores: True where the goal of a run is drawn.
    """

    title: str
    metrics: tuple[str, ...]
    section: str
    scores: bool = False


PANELS = (
    Panel(
        title="Reward",
        metrics=("reward/mean", "reward/sampled_mean", "reward/shaped_mean"),
        section="Does it learn?",
        scores=True,
    ),
    Panel(
        title="Held-out score",
        metrics=("eval/mean", "eval/pass@<k>", "eval/maj@<k>"),
        section="Does it learn?",
        scores=True,
    ),
    Panel(title="Parts of the reward", metrics=("reward/part/<name>",), section="Does it learn?"),
    Panel(
        title="Response length",
        metrics=("rollout/response_tokens_mean", "rollout/response_tokens_max"),
        section="Does it learn?",
    ),
    Panel(
        title="Cut off and failed",
        metrics=("rollout/truncated_frac", "eval/failed_frac"),
        section="Does it learn?",
    ),
    Panel(
        title="Groups to learn from",
        metrics=("credit/informative_groups_frac", "credit/zero_frac"),
        section="Does it learn?",
    ),
    Panel(
        title="Entropy of the policy", metrics=("policy/entropy",), section="Does it stay stable?"
    ),
    Panel(
        title="Ratio of new to old policy",
        metrics=("policy/ratio", "policy/ratio_max", "policy/ratio_min", "policy/sequence_ratio"),
        section="Does it stay stable?",
    ),
    Panel(
        title="Gradients cut by clip or gate",
        metrics=("policy/clip_frac", "policy/truncated_frac", "erc/mask_frac", "drift/cap_frac"),
        section="Does it stay stable?",
    ),
    Panel(
        title="KL to the old policy and to the reference",
        metrics=("policy/kl_old_k3", "policy/kl_ref_<estimator>", "reference/kl", "drift/kl_k3"),
        section="Does it stay stable?",
    ),
    Panel(
        title="Sampler against learner",
        metrics=("mismatch/abs_mean", "mismatch/abs_max"),
        section="Does it stay stable?",
    ),
    Panel(title="Gradient norm", metrics=("learner/grad_norm",), section="Does it stay stable?"),
    Panel(
        title="Staleness of the samples",
        metrics=("staleness/max", "staleness/mean"),
        section="Does it stay stable?",
    ),
    Panel(
        title="Critic",
        metrics=("critic/explained_variance",),
        section="Does it stay stable?",
    ),
    Panel(
        title="Seconds of a step",
        metrics=(
            "time/step_s",
            "time/generate_s",
            "time/score_s",
            "time/train_s",
            "time/publish_s",
        ),
        section="Is it fast?",
    ),
    Panel(title="Sampling speed", metrics=("rollout/tokens_per_s",), section="Is it fast?"),
)


def meaning(name: str) -> dict[str, str]:
    """Return unit and meaning of a metric; empty texts for one of a user's own."""
    for metric in GLOSSARY:
        if metric.covers(name):
            return {"unit": metric.unit, "meaning": metric.meaning}
    return {"unit": "", "meaning": ""}


def panels_of(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the panels of which a run wrote a metric, with the names that it wrote."""
    covering = {pattern: _covered(pattern, names) for p in PANELS for pattern in p.metrics}
    found = []
    for panel in PANELS:
        written = [name for pattern in panel.metrics for name in covering[pattern]]
        if written:
            unit = meaning(written[0])["unit"]
            found.append(
                {
                    "title": panel.title,
                    "section": panel.section,
                    "metrics": written,
                    "unit": unit,
                    "scores": panel.scores,
                }
            )
    return found


def _covered(pattern: str, names: Sequence[str]) -> list[str]:
    metric = next(metric for metric in GLOSSARY if metric.name == pattern)
    return sorted(name for name in names if metric.covers(name))


def curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the steps and, for every metric, its values; None where a line lacks the metric.

    Of more than `MAX_POINTS` lines, evenly spread ones are kept, the first and the last with them.
    """
    places = np.linspace(0, len(lines) - 1, min(MAX_POINTS, len(lines))).round().astype(int)
    kept = [lines[place] for place in places]
    names = sorted({name for line in kept for name in line} - {"step"})
    return {
        "steps": [int(line["step"]) for line in kept],
        "left_out": len(lines) - len(kept),
        "values": {name: rounded_all(line.get(name) for line in kept) for name in names},
    }


def events(
    steps: Sequence[Mapping[str, Any]], resumed_after: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the steps at which something happened, in order.

    Example: [{"step": 7, "kind": "resumed", "text": "resumed after step 6"}]
    """
    found = [
        {"step": step + 1, "kind": "resumed", "text": f"resumed after step {step}"}
        for step in resumed_after
    ]
    alerts = Alerts()
    for before, now in pairwise([{}, *steps]):
        step = int(now["step"])
        found += [{"step": step, "kind": "alert", "text": line} for line in alerts.step(now)]
        lost = _more(before, now, "rollout/engines_lost")
        again = _more(before, now, "rollout/groups_resampled")
        skipped = now.get("learner/updates", 0) - now.get("learner/steps", 0)
        failed = now.get("samples/failed") or 0
        if lost:
            found.append({"step": step, "kind": "lost", "text": f"{_count(lost, 'engine')} lost"})
        if again:
            text = f"{_count(again, 'group')} sampled again after a loss"
            found.append({"step": step, "kind": "refilled", "text": text})
        if "learner/steps" in now and skipped > 0:
            text = f"{_count(skipped, 'update')} skipped: the gradient was not finite"
            found.append({"step": step, "kind": "skipped", "text": text})
        if failed:
            text = f"{_count(failed, 'sample')} without a score"
            found.append({"step": step, "kind": "failed", "text": text})
    return sorted(found, key=lambda event: int(str(event["step"])))[:MAX_EVENTS]


def _more(before: Mapping[str, Any], now: Mapping[str, Any], name: str) -> float:
    """Return the growth of a count; one that a new job began again at 0 grew by itself."""
    old, new = before.get(name) or 0, now.get(name) or 0
    return float(new - old if new >= old else new)


def _count(number: float, noun: str) -> str:
    return f"{number:.0f} {noun}" + ("" if number == 1 else "s")


def verdict(
    steps: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the numbers that a reader looks for first; an empty dictionary before the first step.

    Returns:
        `reward_first` and `reward_last` (mean of the last five steps), `heldout_first` and
        `heldout_last` with two evaluations or more, `seconds`, `tokens`, `samples`, `steps`.
    """
    if not steps:
        return {}
    rewards = [line["reward/mean"] for line in steps if line.get("reward/mean") is not None]
    scores = [line["eval/mean"] for line in evaluations]
    found = {
        "steps": len(steps),
        "seconds": rounded(sum(line.get("time/step_s", 0.0) for line in steps)),
        "tokens": rounded(sum(line.get("rollout/tokens", 0.0) for line in steps), 9),
        "samples": rounded(sum(line.get("rollout/sequences", 0.0) for line in steps), 9),
    }
    if rewards:
        found |= {
            "reward_first": rounded(rewards[0]),
            "reward_last": rounded(float(np.mean(rewards[-5:]))),
        }
    if len(scores) > 1:
        found |= {"heldout_first": rounded(scores[0]), "heldout_last": rounded(scores[-1])}
    return found
