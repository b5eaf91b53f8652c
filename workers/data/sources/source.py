"""Turn the rows of one source into prompts.

The driver reads: columns by name, a dot leading into records, so that files in verl's layout
(`reward_model.ground_truth`) are read as they were published. The order of prompts and their states
are kept elsewhere.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from workers.data.images.columns import sources_of
from workers.data.sources.messages import PromptFormat
from workers.data.sources.rows import RECORD, RECORDS, Rows, open_rows
from workers.data.sources.truths import Truth, read_truth

LABEL = "dataset"  # the column that says from which set a row is


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One row of a prompt file.

    Example:
        Prompt(uid="train:7", prompt="2+3=", ground_truth="5", dataset="add")

    Example, of a row with an image:
        Prompt(
            uid="train:8",
            prompt="<image>colour?",
            ground_truth="red",
            dataset="colours",
            images=("/data/colours/8.png",),
        )

    Attributes:
        ground_truth: a list means that any of its texts is right.
        images: path or bytes of each.
        environment: key of the one that plays the row; empty: the run's.
    """

    uid: str
    prompt: str | list[dict[str, Any]]
    ground_truth: Truth
    dataset: str
    columns: dict[str, Any] = field(default_factory=dict)
    images: tuple[str | bytes, ...] = ()
    environment: str = ""


class PromptSource:
    """Prompts of one file or folder.

    Args:
        path: Parquet, JSON lines, or a folder of one of them or of Arrow files.
        prompt_column: text, or chat messages.
        ground_truth_column: the answer.
        image_column: paths or bytes, which are no column of the reward; None: prompts show none.
        name: label of every row, in its uid and its column `dataset`. None: the file's name, and
            rows keep the `dataset` that they have.
        weight: share of the prompts that a run begins, relative to other sources; None: its rows.
        form: of every prompt.
        more: columns that every row gets, in the place of its own of that name.
        environment: key of the one that plays every row; empty: the run's.

    Raises:
        ValueError: the path is missing, unreadable or empty, lacks a named column, or has records
            in the ground truth's column.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        prompt_column: str,
        ground_truth_column: str,
        image_column: str | None = None,
        name: str | None = None,
        weight: float | None = None,
        form: PromptFormat | None = None,
        more: Mapping[str, Any] | None = None,
        environment: str = "",
    ) -> None:
        self.path = Path(path).expanduser().absolute()  # a run changes its folder
        self.name, self._named = name or self.path.stem, name is not None
        self._prompt_column, self._truth_column = prompt_column, ground_truth_column
        self.image_column = image_column
        self._form, self._more = form or PromptFormat(), dict(more or {})
        self.environment = environment
        self._rows = open_rows(self.path)
        if len(self._rows) == 0:
            raise ValueError(f"{self.path} holds no prompt; give a file with rows")
        for key, column in (
            ("data.prompt_column", prompt_column),
            ("data.ground_truth_column", ground_truth_column),
            ("data.image_column", image_column),
        ):
            if column is not None:
                _check_column(self.path, self._rows, key, column)
        _check_truths(self.path, self._rows, ground_truth_column)
        self.weight = float(len(self._rows)) if weight is None else weight

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Prompt:
        values = self._rows[row]
        prompt, truth = (
            values.pop(column, None) if column in self._top else _find(values, column)
            for column in (self._prompt_column, self._truth_column)
        )
        images: tuple[str | bytes, ...] = ()
        if self.image_column is not None:
            folder = self.path if self.path.is_dir() else self.path.parent
            images = sources_of(values.pop(self.image_column, None), folder)
        if self._named:
            values[LABEL] = self.name
        return Prompt(
            uid=f"{self.name}:{row}",
            prompt=self._form.apply(prompt),
            ground_truth=read_truth(truth),
            dataset=str(values.get(LABEL, self.name)),
            columns=values | self._more,
            images=images,
            environment=self.environment,
        )

    @cached_property
    def _top(self) -> frozenset[str]:
        """Columns that are named as a whole: a name with a dot may be one, too."""
        wanted = (self._prompt_column, self._truth_column)
        return frozenset(name for name in wanted if "." not in name or name in self._rows[0])

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the bytes of the files, read once, for the run manifest and the ledger."""
        total = hashlib.sha256()
        for name in self._rows.files:
            with name.open("rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
        return total.hexdigest()


def _find(values: Mapping[str, Any], column: str) -> Any:
    """Return the value to which a dotted name leads, or None where it ends in nothing."""
    found: Any = values
    for name in column.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _check_column(path: Path, rows: Rows, key: str, column: str) -> None:
    if column in rows.kinds:
        return
    near = difflib.get_close_matches(column, rows.kinds, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    names = [name for name in rows.kinds if "." not in name]
    raise ValueError(f"{path} has no column {column!r} ({key}); it has {', '.join(names)}{hint}")


def _check_truths(path: Path, rows: Rows, column: str) -> None:
    """Refuse records as ground truths: as text they would match no answer."""
    kind = rows.kinds[column]
    if kind not in (RECORD, RECORDS):
        return
    inner = [name for name in rows.kinds if name.startswith(f"{column}.")]
    remedy = (
        f"name one of its fields: {', '.join(inner)}"
        if inner
        else "write the answer as text, or as a list of texts, into a column of its own"
    )
    raise ValueError(
        f"the ground truth of {path} is a {kind} (data.ground_truth_column={column}); {remedy}"
    )
