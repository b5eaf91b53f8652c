"""Names near a misspelt one: keys of the configuration and members of its groups.

Text in, text out: nothing is composed here. A name is suggested only where it is near; otherwise
the reader gets the list to choose from.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NEAR = 0.6  # difflib's ratio, from which one word counts as a misspelling of the other
SHOWN = 3  # keys that are equally near


def nearest_member(name: str, members: Sequence[str]) -> str | None:
    """Return the member of a group that `name` misspells, or None where none is near."""
    return next(iter(difflib.get_close_matches(name, members, n=1, cutoff=NEAR)), None)


def nearest_keys(key: str, known: Sequence[str], *, separator: str = ".") -> list[str]:
    """Return the known keys that `key` may mean, at most three, all equally near.

    A key is judged by its last part, which must be near, and by the part of the path that it
    shares: `learner.lr` is `learner.optimizer.lr` (the same last part, half of the path), and
    `trainer.steps` is `trainer.total_steps` (a near last part, all of the path).
    """
    scores = {name: _likeness(key.split(separator), name.split(separator)) for name in known}
    best = max(scores.values(), default=0.0)
    return [name for name in known if best and scores[name] == best][:SHOWN]


def _likeness(wrong: Sequence[str], right: Sequence[str]) -> float:
    """Return 0 where two keys are not near, else the ratio of last parts + the shared path.

    Keys of other places are near only with the very same last part.
    Example: learner.lr and learner.optimizer.lr: 1 + 1/2.
    """
    ratio = difflib.SequenceMatcher(None, right[-1], wrong[-1]).ratio()
    if ratio < NEAR:
        return 0.0
    path, other = wrong[:-1], right[:-1]
    shared = 0
    while shared < min(len(path), len(other)) and path[shared] == other[shared]:
        shared += 1
    if path and not shared and ratio < 1.0:
        return 0.0
    return ratio + (shared / max(len(path), len(other)) if path or other else 1.0)


def explain_key(key: str, known: Sequence[str]) -> str:
    """Return one message about an unknown key: the nearest ones, or those that stand beside it."""
    separator = "/" if "/" in key else "."
    near = nearest_keys(key, known, separator=separator)
    if near:
        return f"unknown key {key!r}; did you mean {' or '.join(map(repr, near))}?"
    parent = key.rpartition(separator)[0]
    beside = [name.rpartition(separator)[2] for name in _children(parent, known, separator)]
    if not beside:
        parent = ""
        beside = [name for name in known if separator not in name]
    place = f"{parent} has" if parent else "choose one of"
    return f"unknown key {key!r}; {place} {', '.join(beside)}"


def explain_member(group: str, member: str, members: Sequence[str]) -> str:
    """Return one message about an unknown member of a group: the nearest one, or all of them."""
    text = f"unknown {group} {member!r}"
    near = nearest_member(member, members)
    if near is not None:
        return f"{text}; did you mean {near!r}?"
    return f"{text}; choose one of {', '.join(members)}" if members else text


def dotted_keys(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every key of a nested mapping, parents first."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from dotted_keys(value, f"{prefix}{key}.")


def _children(parent: str, known: Sequence[str], separator: str) -> list[str]:
    return [name for name in known if name.rpartition(separator)[0] == parent]
