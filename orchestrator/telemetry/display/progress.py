"""Show a run to a person: a live table on a terminal, one plain line per step in a pipe.

The driver prints to its console; the numbers are kept elsewhere (`tracking.py`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.telemetry.display.activity import Moment

COLUMNS = (  # heading, metric, format
    ("reward", "reward/mean", "{:.3f}"),
    ("tokens/s", "rollout/tokens_per_s", "{:.0f}"),
    ("generate s", "time/generate_s", "{:.2f}"),
    ("score s", "time/score_s", "{:.2f}"),
    ("train s", "time/train_s", "{:.2f}"),
    ("publish s", "time/publish_s", "{:.2f}"),
    ("step s", "time/step_s", "{:.2f}"),
    ("stale", "staleness/max", "{:.0f}"),
    ("gap", "mismatch/abs_mean", "{:.1e}"),
)


SPARKS = (  # heading, metric: drawn below the table over the last steps
    ("reward", "reward/mean"),
    ("entropy", "policy/entropy"),
    ("mismatch", "mismatch/abs_mean"),
    ("staleness", "staleness/mean"),
)
BARS = "▁▂▃▄▅▆▇█"
SPARK_STEPS = 60


def sparkline(values: Sequence[float]) -> str:
    """Return a bar per value, from the lowest to the highest of them; "?" for no finite one."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(BARS) - 1) / (high - low or 1.0)
    return "".join(
        BARS[round(scale * (value - low))] if math.isfinite(value) else "?" for value in values
    )


class Progress:
    """Display of the last steps while the run goes on; a context manager."""

    def __init__(self, total_steps: int, *, console: Console | None = None) -> None:
        self._console = console or Console()
        self._total = total_steps
        self._rows: deque[tuple[int, Mapping[str, float]]] = deque(maxlen=12)
        self._sparks = {name: deque[float](maxlen=SPARK_STEPS) for _, name in SPARKS}
        self._live: Live | None = None
        self._moment: Moment | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._picture, console=self._console, refresh_per_second=4
            )
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._moment = None  # the run does nothing any more
        if self._live is not None:
            self._live.stop()
            self._live = None

    def print_line(self, text: str) -> None:
        """Print one line above the table."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def recall(self, metrics: Mapping[str, float]) -> None:
        """Take a step of before into the sparklines alone."""
        for name, values in self._sparks.items():
            if name in metrics:
                values.append(metrics[name])

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step."""
        self._rows.append((step, metrics))
        self.recall(metrics)
        if self._live is None:
            cells = [
                f"{head} {cell}"
                for (head, _, _), cell in zip(COLUMNS, self._cells(metrics), strict=True)
            ]
            self.print_line(f"step {step}/{self._total}  " + "  ".join(cells))

    def show_moment(self, moment: Moment) -> None:
        """Show what the run does now, on a terminal; a pipe gets finished steps only."""
        self._moment = moment

    def _picture(self) -> Group:
        """Return the table of the last steps, and below it what the run does now."""
        shown: list[Table | Text] = [self._table(self._rows[-1][0])] if self._rows else []
        if self._moment is not None:
            shown.append(Text(f"now: {self._moment.text(time.time())}", style="dim"))
        return Group(*shown)

    @staticmethod
    def _cells(metrics: Mapping[str, float]) -> list[str]:
        return [form.format(metrics[name]) if name in metrics else "-" for _, name, form in COLUMNS]

    def _table(self, step: int) -> Table:
        table = Table(title=f"step {step} of {self._total}", expand=False)
        table.add_column("step", justify="right")
        for heading, _, _ in COLUMNS:
            table.add_column(heading, justify="right")
        for number, metrics in self._rows:
            table.add_row(str(number), *self._cells(metrics))
        drawn = [(head, self._sparks[name]) for head, name in SPARKS if len(self._sparks[name]) > 1]
        table.caption = (
            "\n".join(f"{head:<10}{sparkline(values)}" for head, values in drawn) or None
        )
        table.caption_justify = "left"
        table.add_section()
        table.add_row(ProgressBar(total=self._total, completed=step, width=6), *[""] * len(COLUMNS))
        return table
