"""Compose the sampling side of a run in the driver: engines, or a recording.

Composition only. Loop, steps and checkpoints use the parts of a `Supply` without a test of its
kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from conf.schema import TrainConfig
from orchestrator.checkpoints.saving import Keeper, Stateful
from orchestrator.cluster.cluster import Roles
from orchestrator.fleet.colocation import Colocation
from orchestrator.fleet.fixed_weights import FixedWeights
from orchestrator.fleet.membership import membership_of
from orchestrator.fleet.publication import Publisher, Publishing
from orchestrator.fleet.scaling import ScaleRequests
from orchestrator.planning.sources import Sources
from orchestrator.supply.buffered import BufferedGroups
from orchestrator.supply.curriculum import Curriculum
from orchestrator.supply.evaluation import Evaluator, heldout_sets
from orchestrator.supply.ledger import Ledger
from orchestrator.supply.producer import Producer
from orchestrator.supply.recording import Recording
from orchestrator.supply.replay import NoPublication, Replay
from orchestrator.supply.source import GroupSource


@dataclass(frozen=True, kw_only=True)
class Supply:
    """The sampling side of a run.

    Attributes:
        ledger: holds the status of every prompt.
        groups: gives the groups of a step.
        publisher: sends the learner's weights to the engines.
        colocation: makes room for the learner if engines share its GPUs.
        evaluator: scores held-out prompts; None if there are no prompts or no engines for it.
        parts: state of the supply in a checkpoint, beside the ledger's.
        keepers: files of the supply in a checkpoint.
    """

    ledger: Ledger
    groups: GroupSource
    publisher: Publishing
    colocation: Colocation
    evaluator: Evaluator | None = None
    parts: Mapping[str, Stateful] = field(default_factory=dict)
    keepers: Mapping[str, Keeper] = field(default_factory=dict)


def from_engines(
    config: TrainConfig,
    sources: Sources,
    roles: Roles,
    requests: ScaleRequests,
    check_stop: Callable[[], None],
    print_line: Callable[[str], None],
) -> Supply:
    """Compose engines that sample, with the learner's weights or, if none learns, fixed weights.

    Args:
        config: the checked configuration.
        sources: model and prompts.
        roles: the running processes.
        requests: requests for another number of engines.
        check_stop: raises where the run was asked to stop; called while it waits for samples.
        print_line: prints one line.
    """
    fleet, timeouts = roles.fleet, config.cluster.timeouts
    ledger, colocation = _ledger(config, sources), _colocation(config, roles)
    publisher: Publisher | FixedWeights = FixedWeights(fleet, timeout_s=timeouts.publish_s)
    if config.trainer.learns:
        publisher = Publisher(
            fleet,
            roles.learner.workers,
            config,
            probe_prompts=sources.train,
            colocation=colocation,
        )
    membership = membership_of(fleet, publisher.republish, requests, config, print_line=print_line)

    def maintain() -> None:
        check_stop()
        membership.maintain()

    fleet.pool.maintain = maintain
    producer = Producer(fleet.pool, sources.train, ledger, config)
    heldout = heldout_sets(config, sources) if config.trainer.learns else []
    return Supply(
        ledger=ledger,
        groups=producer,
        publisher=publisher,
        colocation=colocation,
        evaluator=Evaluator(fleet.pool, heldout) if heldout else None,
        keepers={"buffered": BufferedGroups(producer, timeout_s=timeouts.checkpoint_s)},
    )


def from_recording(
    config: TrainConfig, sources: Sources, roles: Roles, recording: Recording
) -> Supply:
    """Compose groups that another run recorded; nothing samples."""
    ledger = _ledger(config, sources)
    replay = Replay(recording, ledger, config)
    return Supply(
        ledger=ledger,
        groups=replay,
        publisher=NoPublication(),
        colocation=_colocation(config, roles),
        parts={"recording": replay},
    )


def _ledger(config: TrainConfig, sources: Sources) -> Ledger:
    prompts = sources.train
    curriculum = Curriculum(config.data.curriculum, prompts)
    return Ledger(prompts, seed=config.seed, shuffle=config.data.shuffle, curriculum=curriculum)


def _colocation(config: TrainConfig, roles: Roles) -> Colocation:
    reference = None if roles.reference is None else roles.reference.workers
    own = None if reference is roles.learner.workers else reference
    return Colocation(roles.fleet.workers, roles.learner.workers, config, own)
