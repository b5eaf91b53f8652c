"""`ballast train`: from a configuration to a finished run.

Composition, inputs, cluster, resume and the summary stand here; what a step is stands in
`trainer.py`.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from algorithms.algorithm import Algorithm
from conf.schema import TrainConfig
from orchestrator import summary
from orchestrator.accounting import Accounting
from orchestrator.adaptation import Adaptation
from orchestrator.checkpoint import Checkpoint, CheckpointStore
from orchestrator.cluster import Cluster, Roles
from orchestrator.critic import Critic
from orchestrator.evaluation import Scores
from orchestrator.manifest import write_manifest
from orchestrator.profiling import StepProfiler
from orchestrator.progress import Progress
from orchestrator.replay import check_sources, open_recording
from orchestrator.saving import Keeper, RankKeeper, Saver
from orchestrator.scaling import ScaleDesk
from orchestrator.sources import Sources, prepare
from orchestrator.supply import Supply, from_engines, from_recording
from orchestrator.trace_file import TraceFile, truncate_trace
from orchestrator.tracking import Tracker, truncate_metrics
from orchestrator.trainer import Trainer
from workers.partition import SequenceCost
from workers.random_state import RandomGenerators
from workers.recorder import Recorder
from workers.recording import discard_after
from workers.span_collector import SpanCollector


@dataclass(kw_only=True)
class History:
    """What the summary tells: every step's numbers and every evaluation."""

    steps: list[dict[str, float]] = field(default_factory=list)
    scores: list[tuple[int, Scores]] = field(default_factory=list)


def train(raw: DictConfig, config: TrainConfig, algorithm: Algorithm) -> Path:
    """Run a checked configuration to its end; returns the run's folder.

    Raises:
        ValueError: for what can't run, before anything expensive starts where that is possible.
    """
    progress = Progress(config.trainer.total_steps)
    scorer = instantiate(raw.reward.scorer, _convert_="all")
    environment = instantiate(raw.environment, _convert_="all")
    recording = open_recording(config)
    progress.say("preparing model and prompts ...")
    sources = prepare(config)
    if recording is not None:
        check_sources(recording, sources)
    run_dir, checkpoint = open_run(config)
    progress.say(f"run folder  {run_dir}")
    write_run_manifest(run_dir, raw, sources)
    os.chdir(run_dir)  # Ray puts the driver's folder first on the path of every worker
    history = History()
    cluster = Cluster(
        config,
        algorithm,
        run_id=run_dir.name,
        model_path=str(sources.model_path),
        critic_path=str(sources.critic_path),
    )
    with progress, cluster, ScaleDesk(run_dir) as desk:
        progress.say("starting engines ..." if recording is None else "starting the learner ...")
        version = checkpoint.version if checkpoint else 0
        roles = cluster.launch(environment=environment, scorer=scorer, version=version)
        if recording is None:
            progress.say(f"{cluster.where_engines_are()}; weights by {roles.launcher.transport}")
        tracker = Tracker(run_dir, config.tracking, run_name=config.run_name)
        supply = (
            from_engines(config, sources, roles, desk, progress.say)
            if recording is None
            else from_recording(config, sources, roles, recording)
        )
        trainer = _assemble(config, algorithm, roles, supply, run_dir)

        def on_step(step: int, metrics: dict[str, float]) -> None:
            tracker.log(step, metrics)
            history.steps.append({"step": step, **metrics})
            progress.step(step, metrics)

        def on_scores(step: int, scores: Scores) -> None:
            tracker.log(step, {f"eval/{name}": value for name, value in scores.metrics.items()})
            scores.write(run_dir / "eval" / f"step_{step:06d}.json")
            history.scores.append((step, scores))
            shown = "  ".join(f"{name} {value:.3f}" for name, value in scores.metrics.items())
            progress.say(f"held-out at step {step}: {shown}")

        trainer.on_step, trainer.on_scores = on_step, on_scores
        _begin(trainer, checkpoint)
        with trainer.stop:
            ended = trainer.run(1 if checkpoint is None else checkpoint.step + 1)
        if ended:
            progress.say(ended)
        export = _export(config, roles, run_dir)
        trainer.accounting.finish()
    tracker.close()
    progress.say(summary.describe(config, history.steps, history.scores, run_dir, export))
    return run_dir


def open_run(config: TrainConfig) -> tuple[Path, Checkpoint | None]:
    """The run's folder, and where to go on from.

    Raises:
        ValueError: when the checkpoint to go on from is damaged.
    """
    run_dir = Path(config.output_dir).absolute() / config.run_name
    checkpoint = None
    if config.resume != "never":
        checkpoint = CheckpointStore(run_dir, config.trainer).latest()
        last_step = checkpoint.step if checkpoint else 0
        truncate_metrics(run_dir, last_step)
        truncate_trace(run_dir, last_step)
        discard_after(run_dir, last_step)
    elif (run_dir / "metrics.jsonl").exists():
        number = 2
        while run_dir.with_name(f"{config.run_name}-{number}").exists():
            number += 1
        run_dir = run_dir.with_name(f"{config.run_name}-{number}")
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir, checkpoint


def write_run_manifest(run_dir: Path, raw: DictConfig, sources: Sources) -> None:
    """Configuration, versions, seed and hashes of the inputs."""
    sets = [sources.train] + ([sources.heldout] if sources.heldout is not None else [])
    write_manifest(
        run_dir,
        raw,
        source_dir=Path(__file__).parent,
        model=str(sources.model_path),
        data={str(prompts.path): prompts.digest() for prompts in sets},
    )


def _assemble(
    config: TrainConfig,
    algorithm: Algorithm,
    roles: Roles,
    supply: Supply,
    run_dir: Path,
) -> Trainer:
    limit_s = config.cluster.timeouts.checkpoint_s
    recorder = (
        Recorder(run_dir / "rollouts", timeout_s=limit_s) if config.tracking.rollouts else None
    )
    keepers: dict[str, Keeper] = {
        "learner": RankKeeper(roles.learner.workers, timeout_s=limit_s),
        **supply.keepers,
    }
    if roles.critic is not None:
        keepers["critic"] = RankKeeper(roles.critic.workers, timeout_s=limit_s)
    if roles.reference is not None and not algorithm.reference.frozen:
        keepers["reference"] = RankKeeper(roles.reference.workers, timeout_s=limit_s)
    adaptation = Adaptation(algorithm, learner=roles.learner, reference=roles.reference)
    shape = roles.learner.workers.call_first("shape", timeout_s=config.cluster.timeouts.start_s)
    return Trainer(
        config=config,
        algorithm=algorithm,
        learner=roles.learner,
        reference=roles.reference,
        producer=supply.groups,
        ledger=supply.ledger,
        publisher=supply.publisher,
        profiler=StepProfiler(
            workers=roles.learner.workers,
            settings=config.learner.profile,
            folder=run_dir / "profiles",
            timeout_s=config.cluster.timeouts.train_s,
        ),
        adaptation=adaptation,
        evaluator=supply.evaluator,
        saver=Saver(
            CheckpointStore(run_dir, config.trainer),
            parts={
                "ledger": supply.ledger,
                "random": RandomGenerators(),
                "adaptation": adaptation,
                **supply.parts,
            },
            keepers=keepers,
            before_commit=recorder.flush if recorder is not None else lambda: None,
        ),
        recorder=recorder,
        turns=supply.turns,
        cost=SequenceCost.of_model(**shape),
        critic=_critic(config, algorithm, roles),
        on_step=lambda step, metrics: None,
        on_scores=lambda step, scores: None,
        accounting=Accounting(
            SpanCollector(roles.groups).collect,
            TraceFile(run_dir) if config.tracking.trace else None,
        ),
    )


def _critic(config: TrainConfig, algorithm: Algorithm, roles: Roles) -> Critic | None:
    if roles.critic is None:
        return None
    limit_s = config.cluster.timeouts.start_s
    shape = roles.critic.workers.call_first("shape", timeout_s=limit_s)
    cost = SequenceCost.of_model(**shape)
    return Critic(group=roles.critic, algorithm=algorithm, config=config, cost=cost)


def _begin(trainer: Trainer, checkpoint: Checkpoint | None) -> None:
    """Bring engines and learner to the state that the first step starts from."""
    if checkpoint is not None:
        trainer.saver.restore(checkpoint)
        trainer.version = checkpoint.version
    trainer.publisher.begin(trainer.version)
    if checkpoint is None:
        trainer.evaluate(0)


def _export(config: TrainConfig, roles: Roles, run_dir: Path) -> Path | None:
    if not config.trainer.export:
        return None
    final, draft = run_dir / "final", run_dir / "final.partial"
    shutil.rmtree(draft, ignore_errors=True)
    limit_s = config.cluster.timeouts.checkpoint_s
    roles.learner.workers.call("export", str(draft), timeout_s=limit_s)
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    return final
