"""Keep what a run does at this moment: for its display, for `activity.json`, and for a stop.

The loop says which step, evaluation or checkpoint it does, the step's clock says what the driver
waits for. `ballast watch` reads the file from another terminal. Runs in the driver. Measures
nothing: the clock does.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "activity.json"

WAITS_FOR = {  # span of the step's clock -> words
    "generate": "samples and their rewards",
    "switch": "engines and learner to take turns on their devices",
    "score": "log-probs, values and advantages",
    "train": "the learner",
    "publish": "the new weights in the engines, and their proof",
    "follow": "the reference",
    "account": "the workers' account of their time",
}


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Activity of a run at a moment.

    Example, a step that waits for the engines since noon of a day:
        Moment(doing="step 5 of 16", waits_for="samples and their rewards", since_s=1795348800.0)

    Attributes:
        doing: the step, evaluation or checkpoint.
        waits_for: what the driver waits for; empty while it works itself.
        since_s: wall clock, in seconds.
    """

    doing: str
    waits_for: str = ""
    since_s: float

    def text(self, now_s: float) -> str:
        """Return the moment as one line, with the seconds since it began."""
        waits = f", waits for {self.waits_for}" if self.waits_for else ""
        return f"{self.doing}{waits}, {max(0.0, now_s - self.since_s):.0f} s"


class Activity:
    """Present activity of a run.

    Args:
        run_dir: the run's folder, where `activity.json` is replaced at every change; None keeps no
            file.
        show: is told every change.
    """

    def __init__(
        self, run_dir: Path | None = None, show: Callable[[Moment], None] | None = None
    ) -> None:
        self._path = None if run_dir is None else run_dir / FILE
        self._show = show
        self.moment = Moment(doing="its start", since_s=time.time())

    @property
    def doing(self) -> str:
        """The step, evaluation or checkpoint, in words."""
        return self.moment.doing

    def begin(self, doing: str) -> None:
        """Begin a step, an evaluation or a checkpoint."""
        self._change(Moment(doing=doing, since_s=time.time()))

    def wait(self, span: str) -> None:
        """Begin to wait for what a span of the step's clock names; "" ends the wait."""
        words = WAITS_FOR.get(span, span)
        self._change(Moment(doing=self.doing, waits_for=words, since_s=time.time()))

    def _change(self, moment: Moment) -> None:
        self.moment = moment
        if self._show is not None:
            self._show(moment)
        if self._path is not None:
            draft = self._path.with_suffix(".partial")
            with contextlib.suppress(OSError):  # a full disk is told by what must be written
                draft.write_text(json.dumps(asdict(moment)))
                os.replace(draft, self._path)


def read_moment(run_dir: Path) -> Moment | None:
    """Return what a run does, from its folder; None where it has not said so yet."""
    try:
        return Moment(**json.loads((run_dir / FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
