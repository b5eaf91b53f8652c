"""Score a model folder or a checkpoint on held-out prompts: `ballast eval`.

A Hugging Face folder needs engines only. A checkpoint is loaded by a learner and published to the
engines, exactly as in training, so that the scored weights are the trained ones. Runs in the
process of the command, as the driver of engines and learner. Trains nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from algorithms.algorithm import Algorithm
from conf.compose import complete, compose, override
from conf.schema import TrainConfig, TrainerConfig
from orchestrator.checkpoints.checkpoint import Checkpoint, CheckpointStore
from orchestrator.cli.foreign_code import check_code
from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.environments import build_environments
from orchestrator.fleet.colocation import Colocation
from orchestrator.fleet.publication import Publisher
from orchestrator.planning.roles import role_named, roles_of
from orchestrator.planning.sources import prepare
from orchestrator.planning.trial import build_scorer, try_files, try_scorer
from orchestrator.supply.evaluation import Evaluator, heldout_sets
from orchestrator.telemetry.heldout import HeldoutResult
from workers.calls import bind
from workers.learner.policy_worker import PolicyWorker


def evaluate(
    path: Path, overrides: list[str], config_dir: str | None, output: Path
) -> HeldoutResult:
    """Score `path`, and write the scores to `output`.

    Raises:
        ValueError: `path` is neither a model folder, a run nor a checkpoint, or names code that is
            not this project's.
    """
    raw, config, checkpoint = _resolve(path, overrides, config_dir)
    algorithm: Algorithm = instantiate(raw.algorithm, _convert_="all")
    scorer = build_scorer(raw)
    environments = build_environments(config)
    sources = prepare(config)
    sets = heldout_sets(config, sources)
    if not sets:
        raise ValueError(
            "data.eval_path=None: name the held-out file to score on, or sets: "
            "evaluation/set=[aime24,math500]"
        )
    for note in try_scorer(config, scorer, sources):
        print(f"note: {note}")
    output = output.absolute()
    model = str(sources.model_path)
    with Cluster(config, algorithm, run_id=path.name, model_path=model) as cluster:
        version = 0 if checkpoint is None else checkpoint.version
        needed = ["rollout", "reward", "judge", *(["learner"] if checkpoint else [])]
        planned = [role for role in roles_of(config, algorithm) if role.name in needed]
        if role_named(planned, "judge") is not None:
            scorer = cluster.start_judges(scorer, planned=planned)
            for note in try_files(config, scorer, sources):
                print(f"note: {note}")
        roles = cluster.launch(
            environments=environments, scorer=scorer, version=version, planned=planned
        )
        if checkpoint is not None:
            roles.learner.workers.call(
                bind(PolicyWorker.load, str(checkpoint.folder("learner"))),
                timeout_s=config.cluster.timeouts.checkpoint_s,
            )
            colocation = Colocation(roles.fleet.workers, roles.learner.workers, config)
            publisher = Publisher(
                roles.fleet,
                roles.learner.workers,
                config,
                probe_prompts=sources.train,
                colocation=colocation,
            )
            publisher.begin(version)
        scores = Evaluator(roles.fleet.pool, sets).run(version)
    scores.write(output)
    _print(scores, path, output, config)
    return scores


def _resolve(
    path: Path, overrides: list[str], config_dir: str | None
) -> tuple[DictConfig, TrainConfig, Checkpoint | None]:
    """Return the configuration of the evaluation, and the checkpoint if `path` is one.

    A run's `final` is scored as the run was: with its data, reward and sampling, unless the
    overrides choose an experiment.
    """
    chosen = any(text.startswith("experiment=") for text in overrides)
    if path.name == "final" and (path.parent / "config.yaml").exists() and not chosen:
        raw = _of_run(path.parent, overrides, config_dir)
        raw.model.path, raw.model.build, raw.model.name = str(path), None, path.parent.name
        print(f"configuration  {path.parent / 'config.yaml'}")
        return *complete(raw), None
    if (path / "config.json").exists():
        folder = [f"model.path={path}", "model.build=null", f"model.name={path.name}"]
        return *compose([*overrides, *folder], config_dir=config_dir), None
    run_dir = path if (path / "config.yaml").exists() else path.parent.parent
    if not (run_dir / "config.yaml").exists():
        raise ValueError(
            f"{path} is neither a Hugging Face folder (no config.json), a run (no config.yaml) "
            "nor a checkpoint of one"
        )
    raw = _of_run(run_dir, overrides, config_dir)
    wanted = None if path == run_dir else path.name
    checkpoint = CheckpointStore(run_dir, TrainerConfig()).latest(wanted)
    if checkpoint is None:
        raise ValueError(f"{path} holds no complete checkpoint; give the run's final/ folder")
    model = json.loads((run_dir / "manifest.json").read_text())["model"]
    raw.model.path, raw.model.build = model, None
    return *complete(raw), checkpoint


def _of_run(run_dir: Path, overrides: list[str], config_dir: str | None) -> DictConfig:
    """Return the configuration of a run, with overrides."""
    saved = OmegaConf.load(run_dir / "config.yaml")
    assert isinstance(saved, DictConfig)
    check_code(saved, overrides, folder=str(run_dir / "config.yaml"))
    return override(saved, overrides, config_dir=config_dir)


def _print(scores: HeldoutResult, path: Path, output: Path, config: TrainConfig) -> None:
    table = Table(title=f"{path.name}: {len(scores.answers)} held-out samples")
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("95 % over prompts", justify="right")
    table.add_column("published")
    for name, value in scores.shown().items():
        ends = [scores.metrics.get(f"{name}_{end}") for end in ("low", "high")]
        between = "" if None in ends else f"{ends[0]:.4f} to {ends[1]:.4f}"
        table.add_row(name, f"{value:.4f}", between, _published(name, config))
    console = Console()
    console.print(table)
    console.print(f"written to {output}", soft_wrap=True)


def _published(metric: str, config: TrainConfig) -> str:
    """Return what is published for a metric of a named set, with the source."""
    name, _, own = metric.rpartition("/")
    known = config.evaluation.sets.get(name)
    anchors = [] if known is None else [each for each in known.anchors if each.metric == own]
    return "; ".join(f"{each.value:.3f} {each.model} ({each.source})" for each in anchors)
