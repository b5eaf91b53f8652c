"""Start and stop profiles on the chosen ranks of the learner, in the chosen steps.

The driver runs this module; the recording itself is `workers/engines/zero/profiler.py`, on the
rank. A step that is not chosen costs one comparison here and nothing on the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conf.schema import ProfileConfig
from workers.calls import bind
from workers.learner.rank_worker import RankWorker
from workers.worker_group import WorkerGroup


@dataclass(frozen=True, kw_only=True)
class StepProfiler:
    """Profiler of the optimizer updates of the chosen steps.

    Attributes:
        workers: the learner's ranks.
        settings: steps and ranks.
        folder: `<run>/profiles`, made for the first recorded step.
        timeout_s: longest that starting, or writing the files, may take.
    """

    workers: WorkerGroup[RankWorker]
    settings: ProfileConfig
    folder: Path
    timeout_s: float

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Record the work of the ranks inside the block, if this step is chosen."""
        if step not in self.settings.steps:
            yield
            return
        self.folder.mkdir(exist_ok=True)
        targets = [
            str(self.folder / f"step_{step:06d}_rank_{rank:03d}")
            if rank in self.settings.ranks
            else None
            for rank in range(len(self.workers))
        ]
        memory = self.settings.memory
        starts = [bind(RankWorker.start_profile, target, memory) for target in targets]
        self.workers.start_each(starts, timeout_s=self.timeout_s).result()
        yield
        self.workers.call(bind(RankWorker.stop_profile), timeout_s=self.timeout_s)
