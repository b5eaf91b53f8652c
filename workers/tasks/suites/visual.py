"""Held-out prompts made from local copies of MathVista, MathVerse and MathVision.

The three sets show one figure with each question. Their rows become text prompts with `<image>`
before the question, and get MathVista's columns `question_type`, `answer_type`, `precision` and
`choices`, by which the scorer `TypedAnswer` reads an answer. Runs in the driver and in
`ballast data`. Downloads nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from workers.data.images.prompt_images import PLACE
from workers.models.cache import build_once, default_path
from workers.tasks.copy_files import read_rows, source_files
from workers.tasks.figures import IMAGES
from workers.tasks.tables import EVAL_FILE, write_parquet

CHOICE, FREE, MATHEMATICS = "multi_choice", "free_form", "mathematics"
MATHVERSE_CHOICE = "multi-choice"
EXTRA = {"problem_version": pa.string(), "subject": pa.string(), "level": pa.int64()}

Row = Mapping[str, Any]


def build_mathvista(
    folder: str | Path | None = None, *, source: str, split: str = "testmini"
) -> Path:
    """Write MathVista's rows under `folder`, once per content of the source; return the folder.

    Args:
        folder: where the folder goes; the cache if None.
        source: folder of the published Parquet files, with the columns query, answer,
            decoded_image, question_type, answer_type, choices and precision.
        split: files whose names begin so; the answers of "test" are not published.

    Raises:
        ValueError: no such file, or a row without one of the columns.
    """
    recipe = {"task": "mathvista", "source": source, "split": split}
    return _build(folder, recipe, lambda: _mathvista(source, split))


def build_mathverse(
    folder: str | Path | None = None,
    *,
    source: str,
    split: str = "testmini.",
    versions: Sequence[str] = (),
) -> Path:
    """Write MathVerse's rows under `folder`, once per content of the source; return the folder.

    Args:
        folder: where the folder goes; the cache if None.
        source: folder of the published files, with the columns query_cot, answer, image,
            question_type and problem_version.
        split: files whose names begin so; "testmini_text_only" has no figures.
        versions: of problem_version, such as "Vision Only"; empty takes all.

    Raises:
        ValueError: no such file, a row without one of the columns, or no row of these versions.
    """
    recipe = {"task": "mathverse", "source": source, "split": split, "versions": list(versions)}
    return _build(folder, recipe, lambda: _mathverse(source, split, versions))


def build_mathvision(
    folder: str | Path | None = None, *, source: str, split: str = "test-"
) -> Path:
    """Write MathVision's rows under `folder`, once per content of the source; return the folder.

    Args:
        folder: where the folder goes; the cache if None.
        source: folder of the published files, with the columns question, options, answer, level,
            subject, and an image under decoded_image, or its path under image.
        split: files whose names begin so: "test-" for 3,040 rows as Parquet, "test." for the JSON
            lines, "testmini" for 304 of these rows.

    Raises:
        ValueError: no such file, a row without one of the columns, or an answer beyond the options.
    """
    recipe = {"task": "mathvision", "source": source, "split": split}
    return _build(folder, recipe, lambda: _mathvision(source, split))


def _build(
    parent: str | Path | None, recipe: Mapping[str, Any], rows: Callable[[], Iterator[Row]]
) -> Path:
    source = Path(str(recipe["source"])).expanduser().absolute()
    names = [(str(path), path.stat().st_size) for path in source_files(source)]
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    whole = {**recipe, "source": str(source), "files": digest}

    def write(folder: Path) -> None:
        found = list(rows())
        if not found:
            raise ValueError(f"no row with {dict(recipe)}: choose another split, or versions")
        write_parquet(_table(found, str(recipe["task"]), source), folder / EVAL_FILE)

    place = default_path(whole, str(recipe["task"]), "data")
    return build_once(Path(parent) / place.name if parent is not None else place, whole, write)


def _mathvista(source: str, split: str) -> Iterator[Row]:
    columns = ("query", "answer", "decoded_image", "question_type", "answer_type", "precision")
    for row in read_rows(source, columns, split=split, optional=("choices",)):
        yield {
            "prompt": row["query"],
            "ground_truth": row["answer"],
            "image": row["decoded_image"],
            "question_type": row["question_type"],
            "answer_type": row["answer_type"],
            "choices": row["choices"],
            "precision": row["precision"],
        }


def _mathverse(source: str, split: str, versions: Sequence[str]) -> Iterator[Row]:
    columns = ("query_cot", "answer", "image", "question_type", "problem_version")
    for row in read_rows(source, columns, split=split):
        if versions and row["problem_version"] not in versions:
            continue
        chosen = row["question_type"] == MATHVERSE_CHOICE
        yield {
            "prompt": row["query_cot"],  # which holds the choices
            "ground_truth": row["answer"],
            "image": row["image"],
            "question_type": CHOICE if chosen else FREE,
            "answer_type": "text" if chosen else MATHEMATICS,
            "problem_version": row["problem_version"],
        }


def _mathvision(source: str, split: str) -> Iterator[Row]:
    columns = ("question", "options", "answer", "level", "subject")
    for row in read_rows(source, columns, split=split, optional=("decoded_image", "image")):
        options, answer = [str(each) for each in row["options"] or ()], str(row["answer"])
        yield {
            "prompt": row["question"] + _listed(options),
            "ground_truth": _text_of(answer, options, row["question"]),
            "image": row["decoded_image"] or row["image"],
            "question_type": CHOICE if options else FREE,
            "answer_type": "text" if options else MATHEMATICS,
            "choices": options,
            "subject": row["subject"],
            "level": int(row["level"]),
        }


def _listed(options: Sequence[str]) -> str:
    """Return the options as lines with letters; nothing where the figure shows what they are."""
    letters = [chr(ord("A") + number) for number in range(len(options))]
    if list(options) == letters:
        return ""
    return "".join(f"\n({name}) {text}" for name, text in zip(letters, options, strict=True))


def _text_of(answer: str, options: Sequence[str], question: str) -> str:
    """Return the text of the option that an answer's letter names; an answer without options."""
    if not options:
        return answer
    number = ord(answer) - ord("A") if len(answer) == 1 else -1
    if not 0 <= number < len(options):
        raise ValueError(f"the answer {answer!r} names none of {list(options)} ({question[:60]!r})")
    return options[number]


def _file(image: Any, source: Path) -> Any:
    """Return an image as it is, a path among the source's files as an absolute one."""
    if not isinstance(image, str):
        return image
    folder = source if source.is_dir() else source.parent
    for place in (folder, folder / "images", folder.parent):
        if (place / image).is_file():
            return {"bytes": None, "path": str(place / image)}
    raise ValueError(f"{source} has no image {image!r}: unpack the set's images there")


def _table(rows: Sequence[Row], dataset: str, source: Path) -> pa.Table:
    def column(name: str, kind: pa.DataType) -> pa.Array:
        return pa.array([row.get(name) for row in rows], kind)

    return pa.table(
        {
            "prompt": pa.array([PLACE + str(row["prompt"]) for row in rows], pa.string()),
            "ground_truth": pa.array([str(row["ground_truth"]) for row in rows], pa.string()),
            "dataset": pa.array([dataset] * len(rows), pa.string()),
            "image": pa.array([_file(row["image"], source) for row in rows], IMAGES.value_type),
            "question_type": column("question_type", pa.string()),
            "answer_type": column("answer_type", pa.string()),
            "choices": column("choices", pa.list_(pa.string())),
            "precision": column("precision", pa.float64()),
            **{name: column(name, kind) for name, kind in EXTRA.items() if name in rows[0]},
        }
    )
