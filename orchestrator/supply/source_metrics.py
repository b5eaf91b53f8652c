"""Count samples and groups by the source of their prompt.

Runs in the driver, on metadata. A prompt's uid begins with the name of its source.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from workers.data.trajectory import SCORED, TrajectoryMeta
from workers.reward.base import CORRECT


def is_right(parts: dict[str, float], reward: float | None) -> bool:
    """Return the scorer's own word (its part "correct"), or True where the reward is 1 or more."""
    if CORRECT in parts:
        return parts[CORRECT] > 0.5
    return (reward or 0.0) >= 1.0


def pass_rate(metas: Iterable[TrajectoryMeta]) -> float | None:
    """Return the share of the scored samples that are right; None if none was scored."""
    right = [
        is_right(dict(meta.reward_parts), meta.reward) for meta in metas if meta.outcome == SCORED
    ]
    return sum(right) / len(right) if right else None


class SourceMetrics:
    """Metrics of every source, for one step; empty where there is one source only.

    Args:
        names: of the sources.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._several = len(names) > 1
        self.begin_step()

    def begin_step(self) -> None:
        """Forget the step before."""
        self._metas: defaultdict[str, list[TrajectoryMeta]] = defaultdict(list)
        self._trained: Counter[str] = Counter()

    def count(self, metas: Sequence[TrajectoryMeta], *, trains: bool) -> None:
        """Count the siblings of one prompt."""
        if self._several:
            source = metas[0].prompt_uid.rpartition(":")[0]
            self._metas[source] += [meta for meta in metas if meta.reward is not None]
            self._trained[source] += trains

    def metrics(self) -> dict[str, float]:
        """Return reward, pass rate and groups of every source that had a group in the step."""
        found: dict[str, float] = {}
        for name, metas in sorted(self._metas.items()):
            found[f"source/{name}/groups"] = float(self._trained[name])
            if metas:
                found[f"source/{name}/reward"] = sum(m.reward or 0.0 for m in metas) / len(metas)
                found[f"source/{name}/pass_rate"] = pass_rate(metas) or 0.0
        return found
