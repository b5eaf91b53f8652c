"""Keep finished trajectories on the learner's node, where the loss of an engine's node costs none.

What an actor answers lies on the actor's node and cannot be rebuilt when that node is lost; a step
that misses one batch cannot be trained. So every batch is copied as soon as it is finished, by a
Ray task on the learner's node, in whose object store the copy stays. The driver starts the task and
sees references only. Where all engines stand on the learner's node nothing is copied.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workers.data.record_files import copy_batch


class BatchKeeper:
    """Copier of batches to one node.

    Args:
        node_id: of the learner; of the driver where nothing learns.
    """

    def __init__(self, node_id: str) -> None:
        where = NodeAffinitySchedulingStrategy(node_id, soft=False)
        copy = ray.remote(num_cpus=0, num_returns=2, max_retries=2)(copy_batch)
        self._copy = copy.options(scheduling_strategy=where)

    def keep(self, batch: Any) -> tuple[Any, Awaitable[None]]:
        """Begin to copy a batch.

        Returns:
            References to the copy and to an empty answer, which is there, or raises, when the copy
            is, or can't be made.
        """
        copy, done = self._copy.remote(batch)
        return copy, done
