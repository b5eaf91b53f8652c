"""Name the roles that compute a training step, as the driver's trainer uses them.

The roles are launched elsewhere (`orchestrator/cluster/`).
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.cluster.policy_group import Policy
from orchestrator.step.critic import Critic
from orchestrator.step.partition import SequenceCost


@dataclass(frozen=True, kw_only=True)
class TrainingRoles:
    """The roles of a training run.

    Attributes:
        learner: trains; at the start of a step it is the actor too, because it has the same
            weights then.
        reference: gives `ref_logprobs`; None if the algorithm reads none.
        critic: gives `values`; None if the algorithm reads none.
        cost: of a sequence on the learner, by its length.
        share_prefixes: True if learner and reference compute the prompt of siblings once.
    """

    learner: Policy
    reference: Policy | None
    critic: Critic | None
    cost: SequenceCost
    share_prefixes: bool = False
