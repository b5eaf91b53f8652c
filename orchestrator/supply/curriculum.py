"""Decide from which source the next prompt comes, and which prompts of a source are passed over.

Pure rules in the driver, on the pass rates that the ledger keeps: the share of right samples when a
prompt was last sampled. The order of prompts is in `prompt_order.py`. Samples nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from conf.schema import CurriculumConfig
from workers.data.prompts import PromptSet

Stage = TypeVar("Stage", bound=Any)  # a record with `from_step`


class Curriculum:
    """Curriculum of a run.

    Args:
        config: the checked settings.
        prompts: of the run; their columns may hold pass rates that others measured.
    """

    def __init__(self, config: CurriculumConfig, prompts: PromptSet) -> None:
        self._config, self._prompts = config, prompts

    @property
    def selects(self) -> bool:
        """True where prompts may be passed over, for which their pass rates are kept."""
        return bool(self._config.skip_solved or self._config.windows)

    def weights(self, step: int) -> list[float]:
        """Return the weight of every source in a step."""
        stage = _stage(self._config.weights, step)
        return [
            source.weight if stage is None else stage.sources.get(source.name, 0.0)
            for source in self._prompts.sources
        ]

    def reason_to_skip(self, row: int, step: int, measured: Mapping[int, float]) -> str | None:
        """Return the reason against beginning a prompt in a step, or None.

        Args:
            row: of the prompt.
            step: in which its group would be begun.
            measured: pass rates by row. A prompt without one is begun, unless its column
                `data.curriculum.pass_rate_column` says more.
        """
        rate = measured.get(row)
        if self._config.skip_solved and rate == 1.0:
            return "solved"
        window = _stage(self._config.windows, step)
        if window is None:
            return None
        if rate is None:
            rate = self._published(row)
        if rate is None or window.min_pass_rate <= rate <= window.max_pass_rate:
            return None
        return "too easy" if rate > window.max_pass_rate else "too hard"

    def _published(self, row: int) -> float | None:
        column = self._config.pass_rate_column
        if column is None:
            return None
        value = self._prompts[row].columns.get(column)
        return None if value is None else float(value)


def _stage(stages: Sequence[Stage], step: int) -> Stage | None:
    """Return the last stage that begins at `step` or before it."""
    begun = [stage for stage in stages if stage.from_step <= step]
    return begun[-1] if begun else None
