"""Choose the groups of samples that a report holds, and say why each was chosen.

Pure functions on the small columns and numbers of `rows.py`; no token is read here. A group is
chosen whole, so that siblings stand side by side. The order is the order of importance: the reader
of the tokens (`samples.py`) takes groups from the front until the report is full.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.report.rows import RecordedStep
from workers.data.trajectory import SCORED

MAX_REASONS = 40  # kinds of outcomes
PER_REASON = 3  # groups of every outcome that is no score
PER_EXTREME = 6  # groups of every extreme
AGAIN = 6  # prompts that are shown in several steps, and steps of each
RANDOM = 400  # groups drawn from the rest
EXTREMES = {  # number of a row -> the reason as a reader reads it
    "gap": "largest log-prob gap",
    "sampled": "longest response",
    "advantage": "largest advantage",
    "clipped": "most tokens clipped",
    "gated": "most tokens gated",
    "dropped": "most tokens dropped by the correction",
    "ratio": "ratio farthest from 1",
}


@dataclass(frozen=True, kw_only=True)
class ChosenGroup:
    """Siblings of one prompt that a report may show.

    Example: ChosenGroup(place=0, rows=(8, 9, 10, 11), why="longest response")

    Attributes:
        place: of the step in the list of steps.
        rows: of the siblings in their step.
        why: the reason of the choice.
    """

    place: int
    rows: tuple[int, ...]
    why: str


def choose(steps: Sequence[RecordedStep], *, seed: int) -> list[ChosenGroup]:
    """Choose groups: every kind of failure, the extremes, the same prompt again, random ones.

    Args:
        steps: in order. Groups of steps without `facts` are chosen for an outcome that no other
            step has, and for nothing else: to read their tokens takes too long.
        seed: of the random draws; equal seeds choose equal groups.
    """
    groups = _groups(steps)
    read = [place for place, step in enumerate(steps) if step.facts]
    chosen: dict[tuple[int, str], ChosenGroup] = {}

    def take(key: tuple[int, str], why: str) -> None:
        if key not in chosen:
            chosen[key] = ChosenGroup(place=key[0], rows=tuple(groups[key]), why=why)

    draw = random.Random(seed)
    for outcome, keys in _by_outcome(steps).items():
        near = [key for key in keys if key[0] in read] or keys[:1]
        for key in draw.sample(near, min(PER_REASON, len(near))):
            take(key, outcome)
    for why, keys in _extremes(steps):
        for key in keys[:PER_EXTREME]:
            take(key, why)
    cut_off = [key for key in _cut_off(steps) if key[0] in read]
    for key in draw.sample(cut_off, min(PER_EXTREME, len(cut_off))):
        take(key, "cut off at the length limit")
    for key in _again(steps, read):
        take(key, "a prompt of several steps")
    for place, why in zip(read[:1] + read[-1:], ("first step", "last step"), strict=False):
        here = [key for key in groups if key[0] == place]
        for key in draw.sample(here, min(2, len(here))):
            take(key, why)
    rest = [key for key in groups if key not in chosen and key[0] in read]
    for key in draw.sample(rest, min(RANDOM, len(rest))):
        take(key, "drawn at random")
    return list(chosen.values())


def _groups(steps: Sequence[RecordedStep]) -> dict[tuple[int, str], list[int]]:
    found: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for place, step in enumerate(steps):
        for row, group in enumerate(step.small["group_id"]):
            found[place, str(group)].append(row)
    return found


def _by_outcome(steps: Sequence[RecordedStep]) -> dict[str, list[tuple[int, str]]]:
    """Return the groups with a sample of every kind of outcome but `scored`, rare ones first."""
    found: defaultdict[str, dict[tuple[int, str], None]] = defaultdict(dict)
    for place, step in enumerate(steps):
        for outcome, group in zip(step.outcomes(), step.small["group_id"], strict=True):
            if outcome != SCORED:
                found[outcome][place, str(group)] = None
    ranked = sorted(found.items(), key=lambda item: len(item[1]))
    return {name: list(keys) for name, keys in ranked[:MAX_REASONS]}


def _cut_off(steps: Sequence[RecordedStep]) -> list[tuple[int, str]]:
    found: dict[tuple[int, str], None] = {}
    for place, step in enumerate(steps):
        pairs = zip(step.small["finish_reason"], step.small["group_id"], strict=True)
        found |= {(place, str(group)): None for reason, group in pairs if reason == "length"}
    return list(found)


def _extremes(steps: Sequence[RecordedStep]) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """Yield a reason and its groups, the most extreme first; a constant number has none."""
    for name, why in EXTREMES.items():
        places: list[tuple[float, int, int]] = []
        for place, step in enumerate(steps):
            values = step.facts.get(name)
            if values is None or not len(values):
                continue
            ranked = np.argsort(-np.nan_to_num(values, nan=-np.inf))[: 4 * PER_EXTREME]
            places += [
                (float(values[row]), place, int(row)) for row in ranked if np.isfinite(values[row])
            ]
        if len({value for value, _, _ in places}) > 1:
            places.sort(reverse=True)
            keys = [(place, str(steps[place].small["group_id"][row])) for _, place, row in places]
            yield why, list(dict.fromkeys(keys))


def _again(steps: Sequence[RecordedStep], read: Sequence[int]) -> list[tuple[int, str]]:
    """Return groups of the prompts that were sampled in most steps, spread over these steps."""
    seen: defaultdict[str, dict[tuple[int, str], None]] = defaultdict(dict)
    for place in read:
        small = steps[place].small
        pairs = zip(small["prompt_uid"], small["group_id"], strict=True)
        for prompt, group in pairs:
            seen[str(prompt)][place, str(group)] = None
    most = sorted((p for p in seen if len(seen[p]) > 1), key=lambda p: (-len(seen[p]), p))
    found = []
    for prompt in most[:AGAIN]:
        keys = list(seen[prompt])
        spread = np.linspace(0, len(keys) - 1, min(AGAIN, len(keys))).round().astype(int)
        found += [keys[place] for place in spread]
    return found
