"""Open the folder of a run, and find the checkpoint from which the run goes on.

Runs in the driver. Checkpoints are read and written in `checkpoints`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from omegaconf import DictConfig

from conf.schema import TrainConfig
from orchestrator.checkpoints.checkpoint import Checkpoint, CheckpointStore
from orchestrator.checkpoints.manifest import write_manifest
from orchestrator.checkpoints.owner_file import FolderInUseError, OwnerFile
from orchestrator.planning.sources import Sources
from orchestrator.supply.recording import discard_after
from orchestrator.telemetry.trace_file import truncate_trace
from orchestrator.telemetry.trackers.sinks import truncate_board
from orchestrator.telemetry.trackers.tracking import truncate_metrics


@contextmanager
def open_run(config: TrainConfig) -> Iterator[tuple[Path, Checkpoint | None]]:
    """Yield the run's folder, and the checkpoint from which the run goes on, or None.

    No other driver writes into the folder while the context is entered. With `resume=never` the
    folder is a new one, with a number behind the name where the name is taken. With `resume=auto`
    everything written after the checkpoint is removed: the resumed run writes it again.

    Raises:
        FolderInUseError: another driver writes into the folder that is to be resumed.
        ValueError: the checkpoint from which the run would go on is damaged.
    """
    named = Path(config.output_dir).absolute() / config.run_name
    with ExitStack() as held:
        if config.resume == "never":
            yield _claim_new(named, held), None
            return
        named.mkdir(parents=True, exist_ok=True)
        held.enter_context(OwnerFile(named))
        store = CheckpointStore(named, config.trainer)
        store.recover()
        checkpoint = store.latest()
        last_step = checkpoint.step if checkpoint else 0
        truncate_metrics(named, last_step)
        truncate_board(named, last_step)
        truncate_trace(named, last_step)
        discard_after(named, last_step)
        yield named, checkpoint


def _claim_new(named: Path, held: ExitStack) -> Path:
    """Claim an empty folder under its name, or with the first free number behind the name."""
    for number in itertools.count(1):
        run_dir = named if number == 1 else named.with_name(f"{named.name}-{number}")
        if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
            continue
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            held.enter_context(OwnerFile(run_dir))
        except FolderInUseError:  # another driver claimed it between the two lines
            continue
        return run_dir
    raise AssertionError("itertools.count ends never")


def write_run_manifest(run_dir: Path, raw: DictConfig, sources: Sources) -> None:
    """Write configuration, versions, seed and hashes of the inputs to the run's manifest."""
    heldout = [] if sources.heldout is None else [sources.heldout]
    sets = [sources.train, *heldout, *sources.sets.values()]
    write_manifest(
        run_dir,
        raw,
        source_dir=Path(__file__).parent,
        model=str(sources.model_path),
        data={prompts.where: prompts.digest for prompts in sets},
    )
