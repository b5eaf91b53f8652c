"""`trainer=rollout_only`: sample and score with a model as it is, and record; nothing learns.

The engines hold the weights of the model folder, version 0, from the first prompt to the last. A
step takes `trainer.prompts_per_step` groups of the producer and writes all their samples, failed
ones with their outcome, so `rollout=replay` can train from the record. In the ledger a recorded
prompt is "trained" at its step. The ledger is saved after every step, which costs a small file: a
run that was killed goes on with the prompts that are not recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from algorithms.algorithm import Algorithm
from conf.schema import TrainConfig
from orchestrator import summary
from orchestrator.accounting import Accounting
from orchestrator.batch import sample_metrics
from orchestrator.buffered import BufferedGroups
from orchestrator.checkpoint import CheckpointStore
from orchestrator.clock import Clock
from orchestrator.cluster import Cluster, Roles
from orchestrator.groups import GroupSource, NothingToTrainError
from orchestrator.ledger import Ledger
from orchestrator.membership import membership
from orchestrator.producer import Producer
from orchestrator.progress import Progress
from orchestrator.saving import Saver
from orchestrator.scaling import ScaleDesk
from orchestrator.sources import Sources, prepare
from orchestrator.stop import StoppedError, StopRequest
from orchestrator.trace_file import TraceFile
from orchestrator.tracking import Tracker
from orchestrator.train import open_run, write_run_manifest
from workers.group_files import places
from workers.health import Health
from workers.random_state import RandomGenerators
from workers.recorder import Recorder
from workers.span_collector import SpanCollector

VERSION = 0  # of the model folder's weights


@dataclass(kw_only=True)
class Collector:
    """The loop of a run without a learner."""

    config: TrainConfig
    groups: GroupSource
    ledger: Ledger
    recorder: Recorder
    saver: Saver
    accounting: Accounting
    on_step: Callable[[int, dict[str, float]], None]
    stop: StopRequest = field(default_factory=StopRequest)

    def run(self, first_step: int) -> None:
        """Record from `first_step` to `trainer.total_steps`, both counted from 1.

        Raises:
            StoppedError: when it was asked to stop, and everything is on disk.
        """
        last = self.config.trainer.total_steps
        try:
            for step in range(first_step, last + 1):
                metrics = self.step(step) | self.saver.poll()
                self.on_step(step, metrics)
                score = metrics.get(self.config.trainer.best_metric)
                self.saver.begin(step, version=VERSION, score=score)
                if self.stop.requested and step < last:
                    self.saver.finish()
                    raise StoppedError(f"stopped after step {step}, saved; resume=auto goes on")
            self.saver.finish()
        except BaseException:
            self.saver.finish_quietly()
            raise

    def step(self, step: int) -> dict[str, float]:
        """Take groups and begin to write them.

        Raises:
            NothingToTrainError: no group has samples enough to train.
        """
        clock = Clock()
        with clock.span("generate"):
            taken = self.groups.take(step, VERSION, lambda group: None)
        self.groups.run_ahead(VERSION)
        if not taken.groups:
            raise NothingToTrainError(
                f"no group can be recorded: groups dropped {dict(taken.dropped)}, samples failed "
                f"{dict(taken.failed)}. Check the reward and the prompts"
            )
        slices, batches = places(taken.groups)
        self.recorder.write(step, slices, batches, [])
        metrics = {
            **sample_metrics([meta for group in taken.groups for meta in group.metas]),
            **taken.metrics(),
            **self.groups.metrics(),
            **self.ledger.metrics(),
        }
        metrics |= self.accounting.step(step, clock, metrics)
        metrics |= clock.metrics()
        metrics["rollout/tokens_per_s"] = metrics["rollout/tokens"] / metrics["time/generate_s"]
        return metrics


def collect(raw: DictConfig, config: TrainConfig, algorithm: Algorithm) -> Path:
    """Run a checked configuration to its end; returns the run's folder.

    Raises:
        ValueError: for what can't run, before anything expensive starts where that is possible.
    """
    progress = Progress(config.trainer.total_steps)
    scorer = instantiate(raw.reward.scorer, _convert_="all")
    environment = instantiate(raw.environment, _convert_="all")
    progress.say("preparing model and prompts ...")
    sources = prepare(config)
    run_dir, checkpoint = open_run(config)
    progress.say(f"run folder  {run_dir}")
    write_run_manifest(run_dir, raw, sources)
    os.chdir(run_dir)  # Ray puts the driver's folder first on the path of every worker
    steps: list[dict[str, float]] = []
    model = str(sources.model_path)
    cluster = Cluster(config, algorithm, run_id=run_dir.name, model_path=model)
    with progress, cluster, ScaleDesk(run_dir) as desk:
        progress.say("starting engines ...")
        roles = cluster.launch(
            environment=environment, scorer=scorer, version=VERSION, with_policy=False
        )
        progress.say(cluster.where_engines_are())
        tracker = Tracker(run_dir, config.tracking, run_name=config.run_name)

        def on_step(step: int, metrics: dict[str, float]) -> None:
            tracker.log(step, metrics)
            steps.append({"step": step, **metrics})
            progress.step(step, metrics)

        collector = _assemble(config, sources, roles, run_dir, on_step, desk, progress.say)
        if checkpoint is not None:
            collector.saver.restore(checkpoint)
        with collector.stop:
            collector.run(1 if checkpoint is None else checkpoint.step + 1)
        collector.accounting.finish()
    tracker.close()
    progress.say(summary.describe(config, steps, [], run_dir, None))
    return run_dir


def _assemble(
    config: TrainConfig,
    sources: Sources,
    roles: Roles,
    run_dir: Path,
    on_step: Callable[[int, dict[str, float]], None],
    desk: ScaleDesk,
    say: Callable[[str], None],
) -> Collector:
    timeouts = config.cluster.timeouts

    def relabel() -> None:
        """An engine that starts loads the model folder; what it holds is what all hold."""
        engines = roles.rollouts.engines
        started = [number for number, own in engines.items() if own.health is Health.STALE]
        labels = roles.rollout_workers.only(started).start(
            "engine_call", "set_version", VERSION, timeout_s=timeouts.publish_s
        )
        answers = labels.survivors()
        for number in started:
            if number in answers:
                roles.rollouts.admit(number)
            else:
                roles.rollouts.lose(number, "it died while its weights were labelled")

    roles.rollouts.tend = membership(roles, relabel, desk, config, say=say).tend
    ledger = Ledger(sources.train, seed=config.seed, shuffle=config.data.shuffle)
    producer = Producer(roles.rollouts, sources.train, ledger, config)
    recorder = Recorder(run_dir / "rollouts", timeout_s=timeouts.checkpoint_s)
    return Collector(
        config=config,
        groups=producer,
        ledger=ledger,
        recorder=recorder,
        saver=Saver(
            CheckpointStore(run_dir, config.trainer),
            parts={"ledger": ledger, "random": RandomGenerators()},
            keepers={"buffered": BufferedGroups(producer, timeout_s=timeouts.checkpoint_s)},
            before_commit=recorder.flush,
        ),
        accounting=Accounting(
            SpanCollector(roles.groups).collect,
            TraceFile(run_dir) if config.tracking.trace else None,
        ),
        on_step=on_step,
    )
