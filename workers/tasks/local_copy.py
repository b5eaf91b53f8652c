"""Prompt files made from a local copy of a published dataset: Parquet, JSON lines or JSON.

Reads the columns that hold the question and its answer, keeps every question once, and writes chat
prompts with their ground truth. Data flows from the dataset's own files through `convert` to
`train.parquet` and `eval.parquet`. Runs in the driver and in `ballast data`. Downloads nothing.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from workers.tasks.tables import MESSAGES, TaskTables, build_folder

SUFFIXES = (".parquet", ".jsonl", ".json")
LANGUAGES = ("any", "english")
# Han, kana and hangul: DAPO-Math-17k holds its Chinese half in the same file.
NOT_ENGLISH = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")

Message = dict[str, str]


def convert(
    source: str | Path,
    *,
    prompt_column: str = "prompt",
    ground_truth_column: str = "reward_model.ground_truth",
    dataset: str = "local",
    language: str = "any",
    heldout_source: str | Path | None = None,
    num_heldout: int = 128,
    seed: int = 0,
) -> TaskTables:
    """Make both tables of a dataset.

    Args:
        source: a file, or a folder that holds Parquet, JSON-lines or JSON files at any depth.
        prompt_column: the question, as text or as a list of {role, content} messages; a dot leads
            into a record.
        ground_truth_column: the answer, likewise.
        dataset: the value of the column `dataset`.
        language: "english" passes over questions with Han, kana or hangul characters.
        heldout_source: another such file or folder for the held-out table; its questions leave the
            train table. None keeps `num_heldout` questions of `source` back.
        num_heldout: read without `heldout_source` only.
        seed: of the order, and of what is kept back.

    Raises:
        ValueError: a source that is missing or holds no such file, a column that is missing, or a
            dataset with too few questions.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {LANGUAGES}, got {language!r}")
    columns = (prompt_column, ground_truth_column)
    rows = _questions(source, columns, language)
    random.Random(seed).shuffle(rows)
    if heldout_source is not None:
        heldout = _questions(heldout_source, columns, "any")
        known = {_key(messages) for messages, _ in heldout}
        train = [row for row in rows if _key(row[0]) not in known]
    else:
        if not 0 < num_heldout < len(rows):
            raise ValueError(
                f"{source} holds {len(rows)} different questions, of which num_heldout="
                f"{num_heldout} can't be kept back; lower it, or give heldout_source"
            )
        heldout, train = rows[:num_heldout], rows[num_heldout:]
    return TaskTables(train=_table(train, dataset), heldout=_table(heldout, dataset))


def build_local_copy(
    folder: str | Path | None = None,
    *,
    source: str,
    prompt_column: str = "prompt",
    ground_truth_column: str = "reward_model.ground_truth",
    dataset: str = "local",
    language: str = "any",
    heldout_source: str | None = None,
    num_heldout: int = 128,
    seed: int = 0,
) -> Path:
    """Write `convert(...)` under `folder`, once per content of the source; return the folder."""
    arguments: dict[str, Any] = {
        "prompt_column": prompt_column,
        "ground_truth_column": ground_truth_column,
        "dataset": dataset,
        "language": language,
        "num_heldout": num_heldout,
        "seed": seed,
    }
    sources = [source] if heldout_source is None else [source, heldout_source]
    recipe = {"task": dataset, **arguments, "sources": [_digest(place) for place in sources]}
    return build_folder(
        folder, recipe, lambda: convert(source, heldout_source=heldout_source, **arguments)
    )


def source_files(source: str | Path) -> list[Path]:
    """List the files of one kind below `source`, Parquet before JSON, in the order of their names.

    Raises:
        ValueError: `source` does not exist, or holds no such file.
    """
    place = Path(source).expanduser()
    if not place.exists():
        raise ValueError(
            f"data.build.source={place} does not exist: put a local copy of the dataset there, or "
            "name your folder with data.build.source=FOLDER (or $BALLAST_DATA, which holds all)"
        )
    found = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    for suffix in SUFFIXES:
        if files := [path for path in found if path.suffix == suffix]:
            return files
    raise ValueError(f"{place} holds no {', '.join(SUFFIXES)} file; it is not a dataset's copy")


def _digest(source: str | Path) -> str:
    total = hashlib.sha256()
    for path in source_files(source):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _questions(
    source: str | Path, columns: tuple[str, str], language: str
) -> list[tuple[list[Message], str]]:
    """List different questions in the order of the files; a repeated one keeps its first answer."""
    found: dict[str, tuple[list[Message], str]] = {}
    for path in source_files(source):
        for row in _rows(path, columns):
            prompt, truth = (_field(row, column, path) for column in columns)
            messages = _messages(prompt)
            key = _key(messages)
            if key and key not in found and not (language == "english" and NOT_ENGLISH.search(key)):
                found[key] = (messages, str(truth))
    return list(found.values())


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        data = pads.dataset(path, format="parquet")
        wanted = {column.split(".")[0] for column in columns}
        present = [name for name in data.schema.names if name in wanted]
        for batch in data.to_batches(columns=present):
            yield from batch.to_pylist()
        return
    text = path.read_text()
    if text.lstrip().startswith("["):
        yield from json.loads(text)
    else:
        yield from (json.loads(line) for line in text.splitlines() if line.strip())


def _field(row: dict[str, Any], column: str, path: Path) -> Any:
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, dict) or name not in value:
            raise ValueError(
                f"{path} has no column {column!r}; a row has {', '.join(row)}: set "
                "data.build.prompt_column and data.build.ground_truth_column"
            )
        value = value[name]
    return value


def _messages(prompt: Any) -> list[Message]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in prompt]


def _key(messages: Sequence[Message]) -> str:
    return "\n".join(message["content"].strip() for message in messages)


def _table(rows: Sequence[tuple[list[Message], str]], dataset: str) -> pa.Table:
    return pa.table(
        {
            "prompt": pa.array([messages for messages, _ in rows], MESSAGES),
            "ground_truth": pa.array([truth for _, truth in rows], pa.string()),
            "dataset": pa.array([dataset] * len(rows), pa.string()),
        }
    )
