"""Where a run's groups come from and who gets its weights: engines, or a recording.

Composition only. The training loop, checkpoints and evaluation take what stands in a `Supply` and
do not ask which kind it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from conf.schema import TrainConfig
from orchestrator.buffered import BufferedGroups
from orchestrator.cluster import Roles
from orchestrator.colocation import Turns
from orchestrator.evaluation import Evaluator
from orchestrator.groups import GroupSource
from orchestrator.ledger import Ledger
from orchestrator.membership import membership
from orchestrator.producer import Producer
from orchestrator.publication import Publisher, Publishing
from orchestrator.replay import Replay, Unpublished
from orchestrator.saving import Keeper, Stateful
from orchestrator.scaling import ScaleDesk
from orchestrator.sources import Sources
from workers.recording import Recording


@dataclass(frozen=True, kw_only=True)
class Supply:
    """The sampling side of a run.

    Attributes:
        ledger: what became of every prompt.
        groups: what trains.
        publisher: who gets the weights.
        turns: when engines make room for the learner.
        evaluator: who scores held-out prompts; None where nobody can.
        parts: its state in a checkpoint, beside the ledger's.
        keepers: its files in a checkpoint.
    """

    ledger: Ledger
    groups: GroupSource
    publisher: Publishing
    turns: Turns
    evaluator: Evaluator | None = None
    parts: Mapping[str, Stateful] = field(default_factory=dict)
    keepers: Mapping[str, Keeper] = field(default_factory=dict)


def from_engines(
    config: TrainConfig,
    sources: Sources,
    roles: Roles,
    desk: ScaleDesk,
    say: Callable[[str], None],
) -> Supply:
    """Engines that sample from the learner's weights; `desk` takes requests for other numbers."""
    ledger, turns = _ledger(config, sources), _turns(config, roles)
    publisher = Publisher(roles, config, probe_prompts=sources.train, turns=turns)
    roles.rollouts.tend = membership(roles, publisher.republish, desk, config, say=say).tend
    producer = Producer(roles.rollouts, sources.train, ledger, config)
    limit_s = config.cluster.timeouts.checkpoint_s
    heldout = sources.heldout
    return Supply(
        ledger=ledger,
        groups=producer,
        publisher=publisher,
        turns=turns,
        evaluator=None if heldout is None else Evaluator(roles.rollouts, heldout, config),
        keepers={"buffered": BufferedGroups(producer, timeout_s=limit_s)},
    )


def from_recording(
    config: TrainConfig, sources: Sources, roles: Roles, recording: Recording
) -> Supply:
    """Groups that another run recorded; nobody samples."""
    ledger = _ledger(config, sources)
    replay = Replay(recording, ledger, config)
    return Supply(
        ledger=ledger,
        groups=replay,
        publisher=Unpublished(),
        turns=_turns(config, roles),
        parts={"recording": replay},
    )


def _ledger(config: TrainConfig, sources: Sources) -> Ledger:
    return Ledger(sources.train, seed=config.seed, shuffle=config.data.shuffle)


def _turns(config: TrainConfig, roles: Roles) -> Turns:
    return Turns(roles.rollout_workers, roles.learner.workers, config)
