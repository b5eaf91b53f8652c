"""Open the folder of a run, and find where to go on from."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from conf.schema import TrainConfig
from orchestrator.checkpoints.checkpoint import Checkpoint, CheckpointStore
from orchestrator.checkpoints.manifest import write_manifest
from orchestrator.planning.sources import Sources
from orchestrator.supply.recording import discard_after
from orchestrator.telemetry.trace_file import truncate_trace
from orchestrator.telemetry.tracking import truncate_metrics


def open_run(config: TrainConfig) -> tuple[Path, Checkpoint | None]:
    """Return the run's folder, and the checkpoint to go on from if there is one.

    What was written after that checkpoint is removed: the resumed run writes it again.

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
    """Write configuration, versions, seed and hashes of the inputs."""
    sets = [sources.train] + ([sources.heldout] if sources.heldout is not None else [])
    write_manifest(
        run_dir,
        raw,
        source_dir=Path(__file__).parent,
        model=str(sources.model_path),
        data={str(prompts.path): prompts.digest() for prompts in sets},
    )
