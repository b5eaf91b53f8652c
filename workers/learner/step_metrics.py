"""Merge the optimizer updates of one step into one number per metric.

Results of the updates in, flat names out; run by every rank of learner and critic. The results are
global already (`workers/engines/zero/weighted_loss.py` reduces over ranks), so nothing is
communicated here, and every rank gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from workers.data.results import UpdateResult


def merged_metrics(updates: Sequence[UpdateResult], *, area: str) -> dict[str, float]:
    """Merge the metrics of a step's updates by their names.

    Only updates that were applied count, as long as there is one: the numbers of a skipped update
    are not finite, and describe a step that no weight took.

    Args:
        updates: of one step, in order.
        area: stands before names that have none, such as "learner" for "loss".

    Returns:
        The maximum of names in `_max`, the minimum of names in `_min`, the mean of all others, each
        over the updates that measured it; and the count of updates that were skipped.
    """
    applied = [update for update in updates if not update.skipped]
    values: dict[str, list[float]] = {}
    for update in applied or updates:
        own = {
            **{name if "/" in name else f"{area}/{name}": v for name, v in update.metrics.items()},
            f"{area}/grad_norm": update.grad_norm,
            f"{area}/lr": update.lr,
        }
        if update.loss_scale is not None:
            own[f"{area}/loss_scale"] = update.loss_scale
        for name, value in own.items():
            values.setdefault(name, []).append(value)
    skipped = float(len(updates) - len(applied))
    return {
        **{name: float(_reduction(name)(each)) for name, each in values.items()},
        f"{area}/skipped_updates": skipped,
    }


def _reduction(name: str) -> Callable[[list[float]], np.floating]:
    """Return the function that makes one number of those of a metric; NaN stays NaN."""
    if name.endswith("_max"):
        return np.max
    return np.min if name.endswith("_min") else np.mean
