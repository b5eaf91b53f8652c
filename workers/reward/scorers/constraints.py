"""Check verifiable constraints on a response, by the names of IFEval (Zhou et al., 2311.07911).

Runs in a scoring process. Each row names its constraints and their arguments; what is checked is
the letter of the response, not its sense. `constraint_checks.py` holds one function for each name.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.reward.base import RewardSample
from workers.reward.scorers.constraint_checks import CHECKS, arguments_of
from workers.reward.scorers.exact import check_stop, cut_at


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraints:
    """Share of the row's constraints that the response meets, or 1 only if it meets all.

    Attributes:
        names_column: a column with a list of names, such as "punctuation:no_comma".
        arguments_column: a column with as many mappings of arguments; null values are left out.
        names: the names for every row, in place of the columns.
        arguments: as many mappings of arguments.
        all_or_nothing: True to give 0 unless every constraint is met.
        stop_at: only the response before this text counts, None for all of it.
    """

    names_column: str = "instruction_id_list"
    arguments_column: str = "kwargs"
    names: tuple[str, ...] | None = None
    arguments: tuple[Mapping[str, Any], ...] = ()
    all_or_nothing: bool = False
    stop_at: str | None = None

    def __post_init__(self) -> None:
        check_stop(self.stop_at)
        if importlib.util.find_spec("langdetect") is None:
            raise ModuleNotFoundError(
                "reward=constraints needs the package langdetect: run `pip install langdetect`"
            )
        if self.names is not None:
            object.__setattr__(self, "names", tuple(self.names))
            given = tuple(dict(each) for each in self.arguments) or ({},) * len(self.names or ())
            object.__setattr__(self, "arguments", given)
            _check(self.names or (), given)

    def prepare(self) -> None:
        """Load the profiles of all languages."""
        import langdetect

        langdetect.detect("a first text")

    def __call__(self, sample: RewardSample) -> dict[str, float]:
        """Score one response; one part for each constraint, 0 or 1.

        Raises:
            ValueError: the row has no constraints, an unknown name, or a missing argument.
        """
        names, arguments = self._of(sample)
        response = cut_at(sample.response, self.stop_at)
        # An empty response would meet every constraint that forbids something.
        met = [
            bool(response.strip()) and CHECKS[name](response, **given)
            for name, given in zip(names, arguments, strict=True)
        ]
        share = sum(met) / len(met)
        parts: dict[str, float] = {}
        for name, each in zip(names, met, strict=True):
            parts[name] = min(parts.get(name, 1.0), float(each))
        return {"reward": float(share == 1.0) if self.all_or_nothing else share, **parts}

    def _of(self, sample: RewardSample) -> tuple[Sequence[str], Sequence[Mapping[str, Any]]]:
        if self.names is not None:
            return self.names, self.arguments
        if self.names_column not in sample.columns:
            raise ValueError(
                f"no column {self.names_column!r} among {sorted(sample.columns)}; see "
                "reward.scorer.names_column"
            )
        names = list(sample.columns[self.names_column] or ())
        found = sample.columns.get(self.arguments_column) or [{}] * len(names)
        arguments = [
            {key: value for key, value in (each or {}).items() if value is not None}
            for each in found
        ]
        _check(names, arguments)
        return names, arguments


def _check(names: Sequence[str], arguments: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError where a name is unknown, or its arguments are not the check's own."""
    if not names:
        raise ValueError("a row needs one constraint at least, got none")
    if len(names) != len(arguments):
        raise ValueError(f"{len(names)} constraints need as many mappings, got {len(arguments)}")
    for name, given in zip(names, arguments, strict=True):
        if name not in CHECKS:
            raise ValueError(f"unknown constraint {name!r}; known are {', '.join(sorted(CHECKS))}")
        wanted = arguments_of(name)
        if set(given) != wanted:
            raise ValueError(
                f"constraint {name!r} takes the arguments {sorted(wanted)}, got {sorted(given)}"
            )
