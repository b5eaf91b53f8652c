"""What a run asks of Ray: the resources of every process, and whether the cluster has them.

A bundle is what one process gets; a shared critic is the exception, two processes in one bundle,
and so are colocated roles.
`capacity.py` does the same sum on the configuration, before Ray is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ray

from conf.schema import TrainConfig
from orchestrator.telemetry.counting import counted


class PlacementError(ValueError):
    """The cluster can't hold the run; the message shows the arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """How many more processes of one shape the cluster could hold, and the sum that says so."""

    count: int
    shape: Mapping[str, float]
    free: Mapping[str, Mapping[str, float]]  # by node, of the kinds in `shape`

    @classmethod
    def of(cls, shape: Mapping[str, float], free: Mapping[str, Mapping[str, float]]) -> Room:
        """Count what fits.

        Args:
            shape: resources of one process, which stands on one node.
            free: resources by node.
        """
        kinds = {node: {kind: have.get(kind, 0.0) for kind in shape} for node, have in free.items()}
        fits = (
            min((int((have[kind] + 1e-6) // need) for kind, need in shape.items()), default=0)
            for have in kinds.values()
        )
        return cls(count=sum(fits), shape=shape, free=kinds)

    def refuses(self, wanted: int) -> str:
        """Why `wanted` processes find no place, as arithmetic."""
        nodes = ", ".join(f"{amounts(have)} on {node}" for node, have in self.free.items())
        return (
            f"needs {wanted} x {amounts(self.shape)}, the cluster has room for {self.count}: "
            f"free are {nodes or 'no nodes'}"
        )


def amounts(resources: Mapping[str, float]) -> str:
    """`{CPU: 1, GPU: 2}`."""
    return "{" + ", ".join(f"{kind}: {amount:g}" for kind, amount in resources.items()) + "}"


def bundles(
    config: TrainConfig, *, num_ranks: int, num_references: int, num_critics: int = 0
) -> list[dict[str, float]]:
    """Resources of every process: engines, learner ranks, reference ranks, critic ranks.

    A shared critic has no bundle of its own: its rank r takes half of the GPU of learner rank r,
    in that rank's bundle, which is as many CPUs larger. Colocated roles share: bundle k is for
    engine k, learner rank k and reference rank k.
    """
    cluster = config.cluster
    shared = num_critics if cluster.critic.shared else 0
    roles = [
        (config.rollout.num_engines, cluster.rollout, config.rollout.tensor_parallel_size),
        (num_ranks, cluster.learner, 1),
        (num_references, cluster.reference, 1),
        (num_critics - shared, cluster.critic, 1),
    ]
    if cluster.colocated:
        return [
            {
                "CPU": sum(role.num_cpus for count, role, _ in roles if k < count),
                "GPU": sum(role.num_gpus for count, role, _ in roles if k < count),
            }
            for k in range(config.rollout.num_engines)
        ]
    wanted = [
        {"CPU": role.num_cpus, "GPU": role.num_gpus * devices}
        for count, role, devices in roles
        for _ in range(count)
    ]
    for rank in range(shared):
        wanted[config.rollout.num_engines + rank]["CPU"] += cluster.critic.num_cpus
    return wanted


def check_resources(config: TrainConfig, wanted: list[dict[str, float]]) -> None:
    """Refuse a run that the cluster can't hold.

    Raises:
        PlacementError: with what is wanted, what there is, and what to lower.
    """
    have = ray.cluster_resources()
    for kind in ("GPU", "CPU"):
        total = sum(bundle[kind] for bundle in wanted)
        if total > have.get(kind, 0.0):
            raise PlacementError(
                f"cluster={config.cluster.name} asks for {counted(total, kind)}: "
                f"{counted(config.rollout.num_engines, 'engine')} x tensor_parallel_size "
                f"{config.rollout.tensor_parallel_size} + "
                f"{counted(config.learner.num_ranks, 'learner rank')} "
                f"(+ reference and critic ranks, if any), but Ray has {have.get(kind, 0.0):g}; "
                "lower rollout.num_engines or learner.num_ranks, or choose another cluster="
            )
