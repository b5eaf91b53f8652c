"""Prompt files made from a local copy of a published dataset: Parquet, JSON lines or JSON.

Reads the columns that hold the question and its answer, keeps every question once, and writes chat
prompts with their ground truth. Data flows from the dataset's own files through `convert` to
`train.parquet` and `eval.parquet`. Runs in the driver and in `ballast data`. Downloads nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from workers.tasks.answers import after_hashes, last_boxed
from workers.tasks.copy_files import digest_of, read_rows
from workers.tasks.tables import MESSAGES, TaskTables, build_folder

LANGUAGES = ("any", "english")
# Han, kana and hangul: DAPO-Math-17k holds its Chinese half in the same file.
NOT_ENGLISH = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")

ANSWERS: dict[str, Callable[[str], str | None]] = {
    "text": str,
    "hashes": after_hashes,
    "boxed": last_boxed,
}

Message = dict[str, str]
Row = tuple[list[Message], str | None]  # prompt and ground truth


def convert(
    source: str | Path,
    *,
    prompt_column: str = "prompt",
    ground_truth_column: str = "reward_model.ground_truth",
    answer: str = "text",
    dataset: str = "local",
    language: str = "any",
    split: str | None = None,
    heldout_split: str | None = None,
    heldout_source: str | Path | None = None,
    num_heldout: int = 128,
    seed: int = 0,
) -> TaskTables:
    """Make both tables of a dataset; rows in which no answer is found are passed over.

    Args:
        source: a file, or a folder that holds Parquet, JSON-lines or JSON files at any depth.
        prompt_column: the question, as text or as a list of {role, content} messages; a dot leads
            into a record.
        ground_truth_column: the answer, likewise.
        answer: "text" for all of that column, "hashes" for what follows "####", "boxed" for what
            stands in the last box of a solution.
        dataset: the value of the column `dataset`.
        language: "english" passes over questions with Han, kana or hangul characters.
        split: of `source`, files or folders whose name begins so; None takes all.
        heldout_split: the same for the held-out table.
        heldout_source: another such file or folder for the held-out table; its questions leave the
            train table. Without it and `heldout_split`, `num_heldout` questions are kept back.
        num_heldout: read where questions are kept back only.
        seed: of the order, and of what is kept back.

    Raises:
        ValueError: a source that is missing or holds no such file, a column that is missing, or a
            dataset with too few questions.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {LANGUAGES}, got {language!r}")
    if answer not in ANSWERS:
        raise ValueError(f"answer must be one of {', '.join(ANSWERS)}, got {answer!r}")
    columns = (prompt_column, ground_truth_column)

    def rows(place: str | Path, part: str | None) -> Iterator[Row]:
        for row in read_rows(place, columns, split=part):
            truth = ANSWERS[answer](str(row[ground_truth_column]))
            if truth is not None:
                yield _messages(row[prompt_column]), truth

    train = [
        row
        for row in rows(source, split)
        if not (language == "english" and NOT_ENGLISH.search(_key(row[0])))
    ]
    heldout = None
    if heldout_source is not None or heldout_split is not None:
        heldout = list(rows(heldout_source or source, heldout_split))
    return split_rows(train, heldout, dataset, num_heldout=num_heldout, seed=seed, source=source)


def split_rows(
    rows: Sequence[Row],
    heldout: Sequence[Row] | None,
    dataset: str,
    *,
    num_heldout: int,
    seed: int,
    source: str | Path,
    more: Callable[[list[Message]], dict[str, str]] | None = None,
) -> TaskTables:
    """Make both tables of rows: every question once, with its first answer, in shuffled order.

    Args:
        rows: for training.
        heldout: questions that leave the train table; None keeps `num_heldout` of `rows` back.
        dataset: the value of the column `dataset`.
        num_heldout: questions to keep back.
        seed: of the order.
        source: named in the error.
        more: returns further columns of a question.

    Raises:
        ValueError: too few questions.
    """
    train = _different(rows)
    random.Random(seed).shuffle(train)
    if heldout is not None:
        kept = _different(heldout)
        known = {_key(messages) for messages, _ in kept}
        train = [row for row in train if _key(row[0]) not in known]
    else:
        if not 0 < num_heldout < len(train):
            raise ValueError(
                f"{source} holds {len(train)} different questions, of which num_heldout="
                f"{num_heldout} can't be kept back; lower it, or give heldout_source"
            )
        kept, train = train[:num_heldout], train[num_heldout:]
    return TaskTables(train=_table(train, dataset, more), heldout=_table(kept, dataset, more))


def build_local_copy(
    folder: str | Path | None = None,
    *,
    source: str,
    prompt_column: str = "prompt",
    ground_truth_column: str = "reward_model.ground_truth",
    answer: str = "text",
    dataset: str = "local",
    language: str = "any",
    split: str | None = None,
    heldout_split: str | None = None,
    heldout_source: str | None = None,
    num_heldout: int = 128,
    seed: int = 0,
) -> Path:
    """Write `convert(...)` under `folder`, once per content of the source; return the folder."""
    arguments: dict[str, Any] = {
        "prompt_column": prompt_column,
        "ground_truth_column": ground_truth_column,
        "answer": answer,
        "dataset": dataset,
        "language": language,
        "split": split,
        "heldout_split": heldout_split,
        "num_heldout": num_heldout,
        "seed": seed,
    }
    sources = [source] if heldout_source is None else [source, heldout_source]
    recipe = {"task": dataset, **arguments, "sources": [digest_of(place) for place in sources]}
    return build_folder(
        folder, recipe, lambda: convert(source, heldout_source=heldout_source, **arguments)
    )


def _different(rows: Sequence[Row]) -> list[Row]:
    """Return the questions in their order; a repeated one keeps its first answer."""
    found: dict[str, Row] = {}
    for messages, truth in rows:
        key = _key(messages)
        if key and key not in found:
            found[key] = (messages, truth)
    return list(found.values())


def _messages(prompt: Any) -> list[Message]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in prompt]


def _key(messages: Sequence[Message]) -> str:
    return "\n".join(message["content"].strip() for message in messages)


def _table(
    rows: Sequence[Row],
    dataset: str,
    more: Callable[[list[Message]], dict[str, str]] | None,
) -> pa.Table:
    columns = [{} if more is None else more(messages) for messages, _ in rows]
    names = columns[0] if columns else {}
    return pa.table(
        {
            "prompt": pa.array([messages for messages, _ in rows], MESSAGES),
            "ground_truth": pa.array([truth for _, truth in rows], pa.string()),
            "dataset": pa.array([dataset] * len(rows), pa.string()),
            **{name: pa.array([row[name] for row in columns], pa.string()) for name in names},
        }
    )
