"""Hand metrics, tables of samples and files to the trackers, one class a tracker.

Runs in the driver, in a thread of each tracker (`tracking.py`): a call may take its time or fail.
Every class imports its package when it is opened. No metric is computed here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

BOARD = "tensorboard"  # name of the tracker, and of its folder in the run's folder
TABLE = "samples"  # name of the table of held-out answers

Row = Mapping[str, str | float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """Facts that a tracker needs about a run.

    Attributes:
        run_dir: its folder.
        project: name under which trackers gather runs.
        name: of the run.
        settings: its configuration, plain values only.
    """

    run_dir: Path
    project: str
    name: str
    settings: Mapping[str, Any]


class Sink(Protocol):
    """Interface of an open tracker.

    Attributes:
        id: names the run at the tracker; a resumed run opens the same one.
    """

    id: str

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step, or of the evaluation after it."""

    def table(self, step: int, rows: Sequence[Row]) -> None:
        """Take samples, a row each."""

    def keep(self, path: Path) -> None:
        """Take a file."""

    def close(self) -> None:
        """Flush and end."""


class _TensorBoard:
    """Event files in the run's folder; a resumed run cuts them where its checkpoint was."""

    def __init__(self, run: TrackedRun, known: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id = known or BOARD
        self._writer: Any = SummaryWriter(str(run.run_dir / BOARD))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed run keeps what it has logged

    def table(self, step: int, rows: Sequence[Row]) -> None:
        self._writer.add_text(TABLE, markdown(rows), step)

    def keep(self, path: Path) -> None:
        """Do nothing: the file lies beside the event files."""

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Weights & Biases; WANDB_MODE, WANDB_BASE_URL and WANDB_API_KEY say where the run goes."""

    def __init__(self, run: TrackedRun, known: str | None) -> None:
        import wandb

        self.id, self._wandb = known or secrets.token_hex(4), wandb
        self._last_step = 0
        self._run: Any = wandb.init(
            project=run.project,
            name=run.name,
            id=self.id,
            resume="allow",
            dir=str(run.run_dir),
            config=dict(run.settings),
            settings=wandb.Settings(console="off"),  # the display owns the terminal
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=self._at(step))

    def table(self, step: int, rows: Sequence[Row]) -> None:
        table = self._wandb.Table(columns=list(rows[0]), data=[list(r.values()) for r in rows])
        self._run.log({TABLE: table}, step=self._at(step))

    def _at(self, step: int) -> int:
        """Return the step, or the last one: the service takes no earlier step.

        An evaluation beside training ends after later steps were logged.
        """
        self._last_step = max(self._last_step, step)
        return self._last_step

    def keep(self, path: Path) -> None:
        self._run.save(str(path), base_path=str(path.parent), policy="now")

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """MLflow; without MLFLOW_TRACKING_URI a database in the run's folder."""

    def __init__(self, run: TrackedRun, known: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        own = f"sqlite:///{run.run_dir}/mlflow.db"
        self._metric = Metric
        self._client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", own))
        if known is not None:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(run.project)
        if found is not None:
            experiment = found.experiment_id
        elif "MLFLOW_TRACKING_URI" in os.environ:
            experiment = self._client.create_experiment(run.project)
        else:
            folder = (run.run_dir / "mlflow_files").as_uri()
            experiment = self._client.create_experiment(run.project, artifact_location=folder)
        self.id = self._client.create_run(experiment, run_name=run.name).info.run_id
        self._client.log_dict(self.id, dict(run.settings), "config.yaml")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        # MLflow takes no other characters in a name; pass@4 becomes pass_4.
        names = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in metrics.items()}
        now = int(1000 * time.time())
        points = [self._metric(name, value, now, step) for name, value in names.items()]
        for start in range(0, len(points), 1000):  # the most that a server takes at once
            self._client.log_batch(self.id, metrics=points[start : start + 1000])

    def table(self, step: int, rows: Sequence[Row]) -> None:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        self._client.log_table(self.id, columns, f"{TABLE}/step_{step:06d}.json")

    def keep(self, path: Path) -> None:
        self._client.log_artifact(self.id, str(path))

    def close(self) -> None:
        self._client.set_terminated(self.id)


class _Trackio:
    """Trackio; TRACKIO_DIR or TRACKIO_SERVER_URL say where the run goes."""

    def __init__(self, run: TrackedRun, known: str | None) -> None:
        import trackio

        self.id, self._trackio = known or f"{run.name}-{secrets.token_hex(4)}", trackio
        self._run: Any = trackio.init(
            project=run.project,
            name=self.id,
            resume="allow",
            config=dict(run.settings),
            embed=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def table(self, step: int, rows: Sequence[Row]) -> None:
        table = self._trackio.Table(columns=list(rows[0]), data=[list(r.values()) for r in rows])
        self._run.log({TABLE: table}, step=step)

    def keep(self, path: Path) -> None:
        self._run.log_artifact(path, name=f"{self.id}-{path.stem}", type="report")

    def close(self) -> None:
        self._run.finish()


class _SwanLab:
    """SwanLab; SWANLAB_MODE and SWANLAB_API_KEY say where the run goes."""

    def __init__(self, run: TrackedRun, known: str | None) -> None:
        import swanlab

        self.id, self._swanlab = known or secrets.token_hex(10), swanlab
        self._run: Any = swanlab.init(
            project=run.project,
            name=run.name,
            id=self.id,
            resume="allow",
            log_dir=str(run.run_dir / "swanlab"),
            config=dict(run.settings),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def table(self, step: int, rows: Sequence[Row]) -> None:
        self._run.log({TABLE: self._swanlab.Text(markdown(rows))}, step=step)

    def keep(self, path: Path) -> None:
        self._run.save(str(path), base_path=str(path.parent))

    def close(self) -> None:
        self._run.finish()


_CLASSES: Mapping[str, Any] = {
    BOARD: _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _MLflow,
    "trackio": _Trackio,
    "swanlab": _SwanLab,
}


def check_packages(names: Sequence[str]) -> None:
    """Raise ValueError for a tracker whose package is not installed; imports nothing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"tracking.trackers names {name}, whose package is missing: "
                f"pip install 'ballast-rl[{name}]'"
            )


def open_tracker(name: str, run: TrackedRun, known: str | None) -> Sink:
    """Open a tracker by its name, with the run's id there if it has one."""
    sink: Sink = _CLASSES[name](run, known)
    return sink


def markdown(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; a text may hold whatever a model writes."""
    lines = [[_cell(value) for value in row.values()] for row in rows]
    head = [list(rows[0]), ["---"] * len(rows[0])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*head, *lines])


def _cell(value: str | float | None) -> str:
    text = "" if value is None else " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text)


def truncate_board(run_dir: Path, last_step: int) -> None:
    """Drop events of TensorBoard after `last_step`, which a resumed run computes again."""
    for path in sorted((run_dir / BOARD).glob("events.out.tfevents.*")):
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        # The half event of a driver that was killed while it wrote is not loaded.
        events = list(RawEventFileLoader(str(path)).Load())
        draft = path.with_name(f"draft.{path.name}")
        with draft.open("wb") as file:
            writer = RecordWriter(file)
            for event in events:
                if Event.FromString(event).step <= last_step:
                    writer.write(event)
        draft.replace(path)
