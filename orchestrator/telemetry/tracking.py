"""Write a run's metrics: `metrics.jsonl` always, TensorBoard and Weights & Biases on request.

One flat dictionary per step goes in, from the driver. `metrics.jsonl` is written line by line and
flushed, so a killed run keeps every finished step. No metric is computed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conf.schema import TrackingConfig


class Tracker:
    """Tracker of one run's metrics, with all of its sinks.

    Args:
        run_dir: the run's folder.
        config: names the sinks.
        run_name: of the run, for Weights & Biases.

    Raises:
        ValueError: Weights & Biases is wanted and its package is missing.
    """

    def __init__(self, run_dir: Path, config: TrackingConfig, *, run_name: str) -> None:
        self._file = (run_dir / "metrics.jsonl").open("a", buffering=1)
        self._board: Any = None
        self._last_step = 0
        self._wandb: Any = None
        if config.tensorboard:
            from tensorboard.summary import Writer

            self._board = Writer(str(run_dir / "tensorboard"))
        if config.wandb:
            try:
                import wandb
            except ImportError as error:
                raise ValueError(
                    "tracking.wandb=True needs the package wandb: pip install 'ballast-rl[wandb]'"
                ) from error
            self._wandb = wandb.init(
                project=config.wandb_project, name=run_name, dir=str(run_dir), resume="allow"
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step to every sink."""
        self._file.write(json.dumps({"step": step, **metrics}, sort_keys=True) + "\n")
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._last_step = max(self._last_step, step)  # the service takes no earlier step
            self._wandb.log(dict(metrics), step=self._last_step)

    def close(self) -> None:
        """Flush and close every sink."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def truncate_metrics(run_dir: Path, last_step: int) -> None:
    """Drop lines after `last_step`, which a resumed run computes again."""
    path = run_dir / "metrics.jsonl"
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _step(line) <= last_step]
        path.write_text("".join(kept))


def _step(line: str) -> int:
    return int(json.loads(line)["step"])
