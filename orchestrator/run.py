"""Compose a run from a checked configuration, and run it: `ballast train`.

One composition for the three kinds of run:

    kind          chosen by               groups come from      step
    train         (default)               engines               Trainer
    replay        rollout=replay          a recording           Trainer
    rollout_only  trainer=rollout_only    engines               Collector

Runs in the driver. The order inside a step is in `trainer.py` and `collector.py`, the order of
steps in `loop.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from algorithms.algorithm import Algorithm
from conf.schema import TrainConfig
from orchestrator.checkpoints.checkpoint import CheckpointStore
from orchestrator.checkpoints.recorder import Recorder
from orchestrator.checkpoints.saving import Keeper, RankKeeper, Saver, Stateful
from orchestrator.checkpoints.starts import write_start
from orchestrator.cluster.cluster import Cluster, Roles
from orchestrator.cluster.environments import build_environments
from orchestrator.collector import Collector
from orchestrator.fleet.scaling import ScaleRequests
from orchestrator.loop import Loop
from orchestrator.outputs import Outputs
from orchestrator.planning import shared_prefix
from orchestrator.planning.roles import role_named, roles_of
from orchestrator.planning.shared_prefix import SharedPrefix
from orchestrator.planning.sources import prepare
from orchestrator.planning.trial import build_scorer, try_files, try_scorer
from orchestrator.report.at_end import ReportAtEnd
from orchestrator.report.page import FILE
from orchestrator.run_folder import open_run, write_run_manifest
from orchestrator.step.adaptation import Adaptation
from orchestrator.step.critic import Critic
from orchestrator.step.learning_watch import verdict
from orchestrator.step.partition import SequenceCost
from orchestrator.step.roles import TrainingRoles
from orchestrator.stop import StoppedError, StopRequest
from orchestrator.supply.replay import check_sources, open_recording
from orchestrator.supply.supply import Supply, from_engines, from_recording
from orchestrator.telemetry import summary
from orchestrator.telemetry.accounting import Accounting
from orchestrator.telemetry.clock import Clock
from orchestrator.telemetry.display.activity import Activity
from orchestrator.telemetry.display.progress import Progress
from orchestrator.telemetry.failure_log import FailureLog
from orchestrator.telemetry.profiling import StepProfiler
from orchestrator.telemetry.run_log import RunLog
from orchestrator.telemetry.span_collector import SpanCollector
from orchestrator.telemetry.trace_file import TraceFile
from orchestrator.trainer import Trainer
from workers.calls import bind
from workers.data.random_state import RandomGenerators
from workers.engines.model.vision.support import check_critic
from workers.learner.policy_worker import PolicyWorker
from workers.learner.rank_worker import RankWorker
from workers.worker_group import WorkerGroup


def run(raw: DictConfig, config: TrainConfig, algorithm: Algorithm) -> Path:
    """Run a checked configuration to its end; return the run's folder.

    Raises:
        ValueError: the configuration can't run; raised before anything expensive starts where that
            is possible.
        StoppedError: a stop was requested, and everything is on disk.
    """
    progress = Progress(config.trainer.total_steps)
    scorer = build_scorer(raw)
    environments = build_environments(config)
    recording = open_recording(config)
    progress.print_line("preparing model and prompts ...")
    sources = prepare(config)
    prefixes = shared_prefix.of_roles(
        config, algorithm, model_path=sources.model_path, critic_path=sources.critic_path
    )
    if algorithm.needs_critic:
        check_critic(sources.critic_path)
    if recording is not None:
        check_sources(recording, sources)
    else:
        for note in try_scorer(config, scorer, sources, algorithm.part_readers):
            progress.print_line(f"note: {note}")
    with open_run(config) as (run_dir, checkpoint):
        progress.print_line(f"run folder  {run_dir}")
        write_run_manifest(run_dir, raw, sources)
        write_start(run_dir, checkpoint.step if checkpoint else 0)
        os.chdir(run_dir)  # Ray puts the driver's folder first on the path of every worker
        cluster = Cluster(
            config,
            algorithm,
            run_id=run_dir.name,
            model_path=str(sources.model_path),
            critic_path=str(sources.critic_path),
            folder=run_dir,
        )
        log = RunLog(run_dir, config, progress, keeps=[run_dir / FILE])
        activity = Activity(run_dir, progress.show_moment)
        stop = StopRequest(activity)
        failures = FailureLog(run_dir, ignore=(StoppedError,))
        report = ReportAtEnd(
            run_dir,
            wanted=config.tracking.report,
            stops=(StoppedError,),
            print_line=progress.print_line,
        )
        # The trackers, which get the report, end after it.
        with log, report, failures, progress, cluster, ScaleRequests(run_dir) as requests:
            planned = roles_of(config, algorithm)
            if role_named(planned, "judge") is not None:
                progress.print_line("starting the judge ...")
                scorer = cluster.start_judges(scorer, planned=planned)
                for note in try_files(config, scorer, sources, algorithm.part_readers):
                    progress.print_line(f"note: {note}")
            progress.print_line(
                "starting engines ..." if recording is None else "starting the learner ..."
            )
            roles = cluster.launch(
                environments=environments,
                scorer=scorer,
                version=checkpoint.version if checkpoint else 0,
                planned=planned,
            )
            if recording is None:
                progress.print_line(_describe_engines(config, cluster, roles))
                supply = from_engines(
                    config, sources, roles, requests, stop.check, progress.print_line
                )
            else:
                supply = from_recording(config, sources, roles, recording)
            outputs = _outputs(
                config, roles, run_dir, log, activity=activity, node=cluster.first_node
            )
            loop = _loop(config, algorithm, roles, prefixes, supply, outputs, run_dir, stop)
            first_step = loop.begin(checkpoint)
            with stop:
                ended = loop.run(first_step)
            if ended:
                progress.print_line(ended)
            exports = config.trainer.learns and config.trainer.export
            exported = _export(config, roles, run_dir) if exports else None
            outputs.accounting.finish()
        stuck = verdict(log.steps, config)
        progress.print_line(summary.describe(config, log, run_dir, exported, report.path, stuck))
    return run_dir


def _describe_engines(config: TrainConfig, cluster: Cluster, roles: Roles) -> str:
    by = f"; weights by {roles.fleet.launcher.transport.name}" if config.trainer.learns else ""
    return f"{cluster.describe_engines()}{by}"


def _outputs(
    config: TrainConfig,
    roles: Roles,
    run_dir: Path,
    log: RunLog,
    *,
    activity: Activity,
    node: str,
) -> Outputs:
    timeouts = config.cluster.timeouts
    folder = run_dir / "rollouts"
    records = config.tracking.rollouts
    return Outputs(
        log=log,
        accounting=Accounting(
            SpanCollector(roles.groups).collect,
            TraceFile(run_dir) if config.tracking.trace else None,
        ),
        profiler=StepProfiler(
            workers=roles.learner.workers,
            settings=config.learner.profile,
            folder=run_dir / "profiles",
            timeout_s=timeouts.train_s,
        ),
        recorder=Recorder(folder, timeout_s=timeouts.checkpoint_s, node=node) if records else None,
        make_clock=partial(Clock, begin=activity.wait),
    )


def _loop(
    config: TrainConfig,
    algorithm: Algorithm,
    roles: Roles,
    prefixes: Mapping[str, SharedPrefix],
    supply: Supply,
    outputs: Outputs,
    run_dir: Path,
    stop: StopRequest,
) -> Loop:
    parts: dict[str, Stateful] = {
        "ledger": supply.ledger,
        "random": RandomGenerators(),
        **supply.parts,
    }
    keepers: dict[str, Keeper] = dict(supply.keepers)
    stepper: Trainer | Collector
    if config.trainer.learns:
        stepper = _trainer(config, algorithm, roles, prefixes, supply, outputs)
        parts["adaptation"] = stepper.adaptation
        keepers |= _rank_keepers(config, algorithm, roles)
    else:
        stepper = Collector(supply=supply, outputs=outputs)
    return Loop(
        config=config,
        stepper=stepper,
        supply=supply,
        saver=Saver(
            CheckpointStore(run_dir, config.trainer),
            parts=parts,
            keepers=keepers,
            before_commit=outputs.flush,
        ),
        outputs=outputs,
        stop=stop,
    )


def _trainer(
    config: TrainConfig,
    algorithm: Algorithm,
    roles: Roles,
    prefixes: Mapping[str, SharedPrefix],
    supply: Supply,
    outputs: Outputs,
) -> Trainer:
    limit_s = config.cluster.timeouts.start_s
    critic = None
    if roles.critic is not None:
        shape = roles.critic.workers.call_first(bind(RankWorker.shape), timeout_s=limit_s)
        cost = SequenceCost.of_model(**shape)
        critic = Critic(
            group=roles.critic,
            algorithm=algorithm,
            config=config,
            cost=cost,
            share_prefixes=prefixes["critic"].shares,
        )
    shape = roles.learner.workers.call_first(bind(RankWorker.shape), timeout_s=limit_s)
    return Trainer(
        config=config,
        algorithm=algorithm,
        roles=TrainingRoles(
            learner=roles.learner,
            reference=roles.reference,
            critic=critic,
            cost=SequenceCost.of_model(**shape),
            share_prefixes=prefixes["learner"].shares,
        ),
        supply=supply,
        outputs=outputs,
        adaptation=Adaptation(algorithm, learner=roles.learner, reference=roles.reference),
    )


def _rank_keepers(config: TrainConfig, algorithm: Algorithm, roles: Roles) -> dict[str, Keeper]:
    """Return a keeper for every role whose ranks write into a checkpoint."""
    groups: dict[str, WorkerGroup[RankWorker]] = {"learner": roles.learner.workers}
    if roles.critic is not None:
        groups["critic"] = roles.critic.workers
    if roles.reference is not None and not algorithm.reference.frozen:
        groups["reference"] = roles.reference.workers
    limit_s = config.cluster.timeouts.checkpoint_s
    return {name: RankKeeper(group, timeout_s=limit_s) for name, group in groups.items()}


def _export(config: TrainConfig, roles: Roles, run_dir: Path) -> Path:
    """Write the trained model as a Hugging Face folder `final`; return its path.

    The ranks write a folder with a draft name, which is renamed when it is complete.
    """
    final, draft = run_dir / "final", run_dir / "final.partial"
    shutil.rmtree(draft, ignore_errors=True)
    limit_s = config.cluster.timeouts.checkpoint_s
    roles.learner.workers.call(bind(PolicyWorker.export, str(draft)), timeout_s=limit_s)
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    return final
