"""Count the parameters that a token passes: all of a dense model's, few of a mixture's experts.

Runs in the driver, for the plan, and in the ranks, for the cost of a sequence. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

TOTAL = ("num_experts", "num_local_experts", "n_routed_experts")


def active_parameters(sizes: Iterable[tuple[str, int]], config: Any) -> int:
    """Count the parameters that one token passes.

    Args:
        sizes: name and number of elements of every parameter, as transformers names them: the
            routed experts stand under `experts`.
        config: transformers' text configuration.
    """
    counts = (getattr(config, name, None) for name in TOTAL)
    total = next((count for count in counts if count), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    routed = others = 0
    for name, size in sizes:
        if ".experts." in name:
            routed += size
        else:
            others += size
    if total is None or chosen is None:
        return others + routed
    return others + routed * chosen // total
