"""Prompt files made from a local copy of APPS or TACO: a problem, and its tests as published.

The ground truth is the JSON of the tests, which `reward=python` reads. Runs in the driver and in
`ballast data`. Runs no program.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workers.tasks.copy_files import digest_of, read_rows
from workers.tasks.local_copy import Row, split_rows
from workers.tasks.tables import TaskTables, build_folder

COLUMNS = ("question", "input_output")
OPTIONAL = ("starter_code", "difficulty")
STANDARD = "Read from standard input and write to standard output."
CALLED = "Complete this code:\n```python\n{starter}\n```"
FORM = "Put the whole program into one ```python block."


def code_set(
    source: str | Path,
    *,
    dataset: str = "code",
    split: str | None = "train",
    heldout_split: str | None = "test",
    difficulties: list[str] | None = None,
    max_tests: int = 64,
    num_heldout: int = 128,
    seed: int = 0,
) -> TaskTables:
    """Make both tables of a code set; problems without tests are passed over.

    Args:
        source: a file, or a folder with Parquet, JSON-lines or JSON files at any depth, that hold
            `question` and `input_output`.
        dataset: the value of the column `dataset`.
        split: files or folders whose name begins so; None takes all.
        heldout_split: the same for the held-out table; None keeps `num_heldout` problems back.
        difficulties: of the problems that are taken, such as ["introductory"]; None takes all.
        max_tests: of a problem; the first ones.
        num_heldout: of the held-out table, at most.
        seed: of the order.

    Raises:
        ValueError: a source that is missing or lacks a column, or has too few problems.
    """

    def rows(part: str | None) -> list[Row]:
        found: list[Row] = []
        for row in read_rows(source, COLUMNS, split=part, optional=OPTIONAL):
            tests = _tests(row["input_output"], max_tests)
            fits = difficulties is None or str(row.get("difficulty")).lower() in difficulties
            if tests is not None and fits:
                found.append((_messages(row, json.loads(tests).get("fn_name")), tests))
        return found

    train = rows(split)
    heldout = None if heldout_split is None else rows(heldout_split)
    return split_rows(train, heldout, dataset, num_heldout=num_heldout, seed=seed, source=source)


def build_code_set(
    folder: str | Path | None = None,
    *,
    source: str,
    dataset: str = "code",
    split: str | None = "train",
    heldout_split: str | None = "test",
    difficulties: list[str] | None = None,
    max_tests: int = 64,
    num_heldout: int = 128,
    seed: int = 0,
) -> Path:
    """Write `code_set(...)` under `folder`, once per content of the source; return the folder."""
    arguments: dict[str, Any] = {
        "dataset": dataset,
        "split": split,
        "heldout_split": heldout_split,
        "difficulties": None if difficulties is None else list(difficulties),
        "max_tests": max_tests,
        "num_heldout": num_heldout,
        "seed": seed,
    }
    recipe = {"task": dataset, **arguments, "sources": [digest_of(source)]}
    return build_folder(folder, recipe, lambda: code_set(source, **arguments))


def _tests(text: Any, max_tests: int) -> str | None:
    """Return the tests as JSON, the first `max_tests` of them; None for a row without any."""
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return None
    if not isinstance(found, dict) or not found.get("inputs") or not found.get("outputs"):
        return None
    kept = {name: found[name][:max_tests] for name in ("inputs", "outputs")}
    return json.dumps({**kept, **({"fn_name": found["fn_name"]} if found.get("fn_name") else {})})


def _messages(row: dict[str, Any], called: str | None) -> list[dict[str, str]]:
    starter = str(row.get("starter_code") or "").strip()
    how = CALLED.format(starter=starter) if called and starter else STANDARD
    if called and not starter:
        how = f"Write a function `{called}`."
    return [{"role": "user", "content": f"{str(row['question']).strip()}\n\n{how}\n{FORM}"}]
