"""List the rehearsals to compare: every schedule on several divisions of the same GPUs.

Part of the rehearsing process. Nothing is rehearsed here (`run.py`).
"""

from __future__ import annotations

import re

from conf.schema import TrainConfig

SCHEDULES = ("sync", "one_step_off", "async")


def divisions(config: TrainConfig, ratios: str) -> list[tuple[int, int]]:
    """Return the numbers of engines and learner ranks that share the GPUs by `ratios`.

    Args:
        config: the devices of its engines and learner ranks together are divided.
        ratios: GPUs that sample to GPUs that learn, such as "1,2,4".

    Raises:
        ValueError: a ratio is not a positive number.
    """
    width, shared = config.rollout.tensor_parallel_size, config.learner.sequence_parallel_size
    total = config.rollout.num_engines * width + config.learner.num_ranks
    found: dict[tuple[int, int], None] = {}
    for word in ratios.split(","):
        if not re.fullmatch(r"\d+(\.\d+)?", word) or float(word) == 0:
            raise ValueError(
                f"--ratios {ratios}: {word!r} is not a positive number; write GPUs that sample to "
                "GPUs that learn, such as 1,2,4"
            )
        ranks = max(shared, round(total / (1 + float(word)) / shared) * shared)
        found[max(1, (total - ranks) // width), ranks] = None
    return list(found)


def overrides(schedule: str, engines: int, ranks: int) -> list[str]:
    """Return the overrides that turn a configuration into one of those compared."""
    return [
        f"schedule={schedule}",
        f"rollout.num_engines={engines}",
        f"learner.num_ranks={ranks}",
    ]
