"""Places of a run's processes: which nodes Ray reserved for engines, for judges and for ranks.

The learner's ranks, with their references and critics, and the engines have a placement group each,
because they want opposite things of Ray: ranks as close together as possible, engines as far apart
as a cluster's file says. Ranks are placed first: what is left then is whole nodes. Then the engines
of a judge, which may be wide, have a group of their own. Colocated roles share one group. The
driver reserves and gives back; processes are started in `cluster.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ray.util import placement_group_table
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from conf.schema import TrainConfig
from orchestrator.planning.placement import PlacementError, bundles
from orchestrator.planning.roles import PlannedRole, role_named


@dataclass(frozen=True, kw_only=True)
class Places:
    """Reserved bundles of a run.

    Attributes:
        engines: placement group whose bundle k is engine k's.
        ranks: placement group of the ranks' bundles; the same group where roles are colocated.
        first_rank: number in the plan of the first bundle of `ranks`.
        judges: placement group whose bundle k is judge engine k's; None where there is none.
    """

    engines: PlacementGroup
    ranks: PlacementGroup
    first_rank: int
    judges: PlacementGroup | None = None

    def of(self, role: PlannedRole) -> list[int]:
        """Return the bundles of a role's ranks within `ranks`, in the order of the ranks.

        Ranks of one node follow each other, whatever the order in which Ray filled the nodes:
        neighbours exchange the most.

        Example: bundles 0 to 3 on the nodes a, b, a, b are `[0, 2, 1, 3]`.
        """
        nodes = _nodes(self.ranks)
        own = [number - self.first_rank for number in role.bundles]
        return by_node(own, nodes)

    @property
    def nodes(self) -> list[str]:
        """Ids of the nodes of all bundles but the judges', with repetitions.

        The node of the learner's first rank comes first; where nothing learns, an engine's.
        """
        found = [_nodes(self.ranks), _nodes(self.engines)]
        return [nodes[number] for nodes in found for number in sorted(nodes)]

    def give_back(self) -> None:
        """Release all bundles."""
        groups = [self.engines, self.ranks, *([self.judges] if self.judges else [])]
        for group in {group.id: group for group in groups}.values():
            remove_placement_group(group)


def reserve(config: TrainConfig, roles: Sequence[PlannedRole]) -> Places:
    """Reserve the bundles of all roles, and return when Ray has given them.

    Raises:
        PlacementError: Ray has not given them within `cluster.timeouts.start_s`.
    """
    wanted, cluster = bundles(roles), config.cluster
    rollout, judge = role_named(roles, "rollout"), role_named(roles, "judge")
    own = judge.bundles if judge is not None else range(0)
    first = 0 if cluster.colocated or rollout is None else max(rollout.bundles.stop, own.stop)
    of_ranks = [number for number in range(first, len(wanted)) if number not in own]
    of_engines = [number for number in range(first) if number not in own]
    ranks = engines = judges = None
    if of_ranks:
        ranks = _reserve(config, "learner", [wanted[number] for number in of_ranks])
    if own:
        judges = _reserve(config, "judge", [wanted[number] for number in own])
    if of_engines:
        engines = _reserve(config, "rollout", [wanted[number] for number in of_engines])
    either = ranks or engines
    assert either is not None, "a run has engines or a learner"
    return Places(engines=engines or either, ranks=ranks or either, first_rank=first, judges=judges)


def by_node(numbers: Sequence[int], nodes: Mapping[int, str]) -> list[int]:
    """Return bundle numbers so that those of one node follow each other; `nodes` by number."""
    order = list(dict.fromkeys(nodes[number] for number in sorted(numbers)))
    return sorted(numbers, key=lambda number: (order.index(nodes[number]), number))


def _reserve(
    config: TrainConfig, role: str, wanted: Sequence[Mapping[str, float]]
) -> PlacementGroup:
    strategy = getattr(config.cluster, role).strategy
    limit_s = config.cluster.timeouts.start_s
    asked = [{kind: amount for kind, amount in bundle.items() if amount} for bundle in wanted]
    group = placement_group(asked, strategy=strategy)
    if not group.wait(limit_s):
        remove_placement_group(group)
        raise PlacementError(
            f"cluster.{role}.strategy={strategy} can't place {asked} on this cluster in "
            f"{limit_s:g} s; choose another strategy or cluster="
        )
    return group


def _nodes(group: PlacementGroup) -> dict[int, str]:
    nodes: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
    return nodes
