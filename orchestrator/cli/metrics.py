"""Find metrics in the glossary, and format them as a table: `ballast metrics [NAME]`."""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import groupby

from orchestrator.telemetry.glossary import GLOSSARY, Metric

NEAREST = 3  # names that are offered where none fits
PIPE_COLUMNS = 160  # where there is no terminal


def find(name: str | None) -> list[Metric]:
    """Return the metrics of which `name` is the name, a part of it, or a pattern with `*`.

    A name that a run wrote, such as `bubble/learner/idle_frac`, finds its family,
    `bubble/<role>/<activity>_frac`. None finds all.

    Raises:
        ValueError: nothing has such a name; the nearest ones are listed.
    """
    if name is None:
        return list(GLOSSARY)
    found = [metric for metric in GLOSSARY if metric.covers(name)] or [
        metric for metric in GLOSSARY if name in metric.name or fnmatchcase(metric.name, name)
    ]
    if not found:
        names = [metric.name for metric in GLOSSARY]
        near = difflib.get_close_matches(name, names, n=NEAREST, cutoff=0.0)
        raise ValueError(f"no metric is named {name!r}; the nearest are {', '.join(near)}")
    return found


def table(metrics: Sequence[Metric], columns: int | None = None) -> str:
    """Return name, unit and meaning of each metric, below a line that says when it is written.

    Args:
        metrics: in the order of the table.
        columns: longest line in characters; None for the width of the terminal.
    """
    width = columns or shutil.get_terminal_size((PIPE_COLUMNS, 0)).columns
    names, units = (max(map(len, column)) for column in zip(*_heads(metrics), strict=True))
    lines: list[str] = []
    for when, same in groupby(metrics, key=lambda metric: metric.when):
        lines += ["", f"{when}:"] if lines else [f"{when}:"]
        for metric in same:
            head = f"  {metric.name:<{names}}  {metric.unit:<{units}}  "
            room = max(width - len(head), 20)
            first, *more = textwrap.wrap(metric.meaning, room, break_long_words=False)
            lines += [head + first, *(" " * len(head) + line for line in more)]
    return "\n".join(lines)


def _heads(metrics: Sequence[Metric]) -> list[tuple[str, str]]:
    return [(metric.name, metric.unit) for metric in metrics]
