"""Compute the resources that a run reserves from Ray, and check that the cluster has them.

A bundle holds the resources of one process; a critic beside the learner is the exception, two
processes in one bundle, and so are colocated roles. Runs in the driver, once Ray runs; launches no
process. `capacity.py` computes the same sum from the configuration, before Ray is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from conf.schema import TrainConfig
from orchestrator.planning.roles import PlannedRole
from orchestrator.telemetry.counting import counted


class PlacementError(ValueError):
    """Lack of resources for the run on the cluster; the message shows the arithmetic."""


@dataclass(frozen=True, kw_only=True)
class FreePlaces:
    """Number of further processes of one shape that the cluster could hold, with its arithmetic."""

    count: int
    shape: Mapping[str, float]
    free: Mapping[str, Mapping[str, float]]  # by node, of the kinds in `shape`

    @classmethod
    def of(cls, shape: Mapping[str, float], free: Mapping[str, Mapping[str, float]]) -> FreePlaces:
        """Count the processes that fit, node by node.

        Args:
            shape: resources of one process, which runs on one node.
            free: resources by node.
        """
        kinds = {node: {kind: have.get(kind, 0.0) for kind in shape} for node, have in free.items()}
        fits = (
            min((int((have[kind] + 1e-6) // need) for kind, need in shape.items()), default=0)
            for have in kinds.values()
        )
        return cls(count=sum(fits), shape=shape, free=kinds)

    def describe_shortage(self, wanted: int) -> str:
        """Describe as arithmetic why `wanted` processes find no place."""
        nodes = ", ".join(f"{amounts(have)} on {node}" for node, have in self.free.items())
        return (
            f"needs {wanted} x {amounts(self.shape)}, the cluster has room for {self.count}: "
            f"free are {nodes or 'no nodes'}"
        )


def amounts(resources: Mapping[str, float]) -> str:
    """Format resources such as `{CPU: 1, GPU: 2}`."""
    return "{" + ", ".join(f"{kind}: {amount:g}" for kind, amount in resources.items()) + "}"


def bundles(roles: Sequence[PlannedRole]) -> list[dict[str, float]]:
    """Return the resources of every bundle, each the sum over the processes that run in it.

    Example: one engine and two learner ranks, with one critic rank beside the first of them, are
    `[{"CPU": 1, "GPU": 1}, {"CPU": 2, "GPU": 0.5}, {"CPU": 1, "GPU": 0.5}]`.
    """
    count = max((role.bundles.stop for role in roles), default=0)
    wanted = [{"CPU": 0.0, "GPU": 0.0} for _ in range(count)]
    for role in roles:
        for number in role.bundles:
            wanted[number]["CPU"] += role.num_cpus
            wanted[number]["GPU"] += role.bundle_gpus * role.devices
    return wanted


def total_resources(roles: Sequence[PlannedRole]) -> dict[str, float]:
    """Return the CPUs and GPUs of all processes, in bundles and outside of them."""
    wanted = bundles(roles)
    loose = [role for role in roles if not role.bundles]
    return {
        "GPU": sum(bundle["GPU"] for bundle in wanted)
        + sum(role.num_gpus * role.num_processes for role in loose),
        "CPU": sum(bundle["CPU"] for bundle in wanted)
        + sum(role.num_cpus * role.num_processes for role in loose),
    }


def check_resources(config: TrainConfig, roles: Sequence[PlannedRole]) -> None:
    """Check that Ray has the resources of all roles.

    Raises:
        PlacementError: with the wanted and the present resources, and the setting to lower.
    """
    have = ray.cluster_resources()
    for kind, total in total_resources(roles).items():
        if total > have.get(kind, 0.0):
            raise PlacementError(
                f"cluster={config.cluster.name} asks for {counted(total, kind)}: "
                f"{counted(config.rollout.num_engines, 'engine')} x tensor_parallel_size "
                f"{config.rollout.tensor_parallel_size} + "
                f"{counted(config.learner.num_ranks, 'learner rank')} "
                f"(+ reference and critic ranks, reward workers and a judge's engines, if any), "
                f"but Ray has {have.get(kind, 0.0):g}; "
                "lower rollout.num_engines or learner.num_ranks, or choose another cluster="
            )
