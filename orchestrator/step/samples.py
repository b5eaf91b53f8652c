"""Merge the metadata of rows that belong to one sample, in the driver.

A sample whose history was rewritten has several rows; everything that counts samples counts these
functions' results. No row is read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workers.data.trajectory import TrajectoryMeta


def first_rows(metas: Sequence[TrajectoryMeta]) -> list[int]:
    """Return the position of the first row of every sample."""
    places: dict[str, int] = {}
    for place, meta in enumerate(metas):
        places.setdefault(meta.rollout_id, place)
    return list(places.values())


def whole_samples(metas: Sequence[TrajectoryMeta]) -> list[TrajectoryMeta]:
    """Return the metadata of every sample, with the tokens of all its rows."""
    rows: dict[str, list[TrajectoryMeta]] = {}
    for meta in metas:
        rows.setdefault(meta.rollout_id, []).append(meta)
    return [own[0] if len(own) == 1 else _merged(own) for own in rows.values()]


def _merged(rows: Sequence[TrajectoryMeta]) -> TrajectoryMeta:
    return replace(
        rows[0],
        num_tokens=sum(meta.num_tokens for meta in rows),
        num_trained=sum(meta.num_trained for meta in rows),
        num_sampled=sum(meta.num_sampled for meta in rows),
        min_version=min(meta.min_version for meta in rows),
        max_version=max(meta.max_version for meta in rows),
    )
