"""Pass finished steps and evaluations on, in the driver: to trackers, display and last page.

Metrics are computed elsewhere; here they are only passed on, and alerts are told of them. A resumed
run's alerts and sparklines go on from the steps in `metrics.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from conf.schema import TrainConfig
from orchestrator.telemetry.alerts.rules import Alerts
from orchestrator.telemetry.display.progress import Progress
from orchestrator.telemetry.gauges import Gauges
from orchestrator.telemetry.heldout import HeldoutAnswer, HeldoutResult
from orchestrator.telemetry.trackers.tracking import Tracker, finished_steps

MAX_ROWS = 64  # held-out answers in a tracker's table


class RunLog:
    """Log of a run's steps and evaluations; closes its trackers at the end.

    Args:
        run_dir: of the run.
        config: of the run.
        progress: display of the run.
        keeps: files that trackers get at the end, if they are there.

    Attributes:
        steps: the metrics of every step of this process.
        first_heldout, last_heldout: step and result of the first and the newest evaluation.
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrainConfig,
        progress: Progress,
        *,
        keeps: Sequence[Path] = (),
    ) -> None:
        self._run_dir, self._progress, self._keeps = run_dir, progress, keeps
        self._alerts = Alerts()
        for line in finished_steps(run_dir):
            self._alerts.step(line)
            progress.recall(line)
        self._tracker = Tracker(
            run_dir,
            config.tracking,
            run_name=config.run_name,
            settings=json.loads(json.dumps(asdict(config), default=str)),
            print_line=progress.print_line,
        )
        self._gauges = Gauges(run_dir.name) if config.tracking.prometheus else None
        self.steps: list[dict[str, float]] = []
        self.first_heldout: tuple[int, HeldoutResult] | None = None
        self.last_heldout: tuple[int, HeldoutResult] | None = None

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a finished step, with the number of alerts that show."""
        begun = self._alerts.step(metrics)
        metrics = {**metrics, "alerts/showing": float(self._alerts.num_showing)}
        self._tracker.log(step, metrics)
        if self._gauges is not None:
            self._gauges.log(step, metrics)
        self.steps.append({"step": step, **metrics})
        self._progress.step(step, metrics)
        for line in begun:
            self._progress.print_line(f"alert at step {step}: {line}")

    def heldout(self, step: int, result: HeldoutResult) -> None:
        """Log an evaluation after `step` and write its answers to `eval/`."""
        metrics = {f"eval/{name}": value for name, value in result.metrics.items()}
        self._tracker.log(step, metrics)
        if self._gauges is not None:
            self._gauges.log(step, metrics)
        self._tracker.table(step, [_row(answer) for answer in result.answers[:MAX_ROWS]])
        result.write(self._run_dir / "eval" / f"step_{step:06d}.json")
        self.first_heldout = self.first_heldout or (step, result)
        self.last_heldout = (step, result)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in result.shown().items())
        self._progress.print_line(f"held-out at step {step}: {shown}")

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exc: object) -> None:
        for path in self._keeps:
            if path.exists():
                self._tracker.keep(path)
        self._tracker.close()


def _row(answer: HeldoutAnswer) -> dict[str, str | float | None]:
    truth = answer.ground_truth
    return {
        "prompt": answer.prompt,
        "response": answer.response,
        "ground truth": " | ".join(truth) if isinstance(truth, list) else truth,
        "reward": answer.reward,
        "outcome": answer.outcome,
    }
