"""Prompt files made from a local copy of MMK12 (MM-EUREKA, 2503.07365): problems with figures.

The set is published as Parquet (`question`, `answer`, `image`), and as the JSON lines that the
authors' trainer reads (`message` or `conversations`, `answer`, `image_urls`). Either becomes chat
prompts with `<image>` for each figure; the files, or their paths, stand beside the prompt. Runs
in the driver and in `ballast data`. Downloads nothing.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.data.images.prompt_images import PLACE, text_of
from workers.tasks.copy_files import source_files
from workers.tasks.tables import MESSAGES, TaskTables, build_folder

IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
COLUMNS = ("question", "answer", "image")

Row = tuple[str, str, list[dict[str, Any]]]  # text with places, answer, images


def figures(
    source: str | Path, *, dataset: str = "mmk12", num_heldout: int = 128, seed: int = 0
) -> TaskTables:
    """Make both tables of a local copy.

    Files whose names begin with "test" are the held-out table; without such a file `num_heldout`
    rows are kept back.

    Args:
        source: a file, or a folder that holds Parquet or JSON-lines files.
        dataset: the value of the column `dataset`.
        num_heldout: read without a test file only.
        seed: of the order, and of what is kept back.

    Raises:
        ValueError: a source that is missing, or a row of another form; names file and row.
    """
    train: list[Row] = []
    heldout: list[Row] = []
    for path in source_files(source):
        rows = heldout if path.name.startswith("test") else train
        rows.extend(_rows(path))
    random.Random(seed).shuffle(train)
    if not heldout:
        if not 0 < num_heldout < len(train):
            raise ValueError(
                f"{source} holds {len(train)} rows, of which num_heldout={num_heldout} can't be "
                "kept back; lower it, or add a file test*.parquet"
            )
        heldout, train = train[:num_heldout], train[num_heldout:]
    return TaskTables(train=_table(train, dataset), heldout=_table(heldout, dataset))


def build_figures(
    folder: str | Path | None = None,
    *,
    source: str,
    dataset: str = "mmk12",
    num_heldout: int = 128,
    seed: int = 0,
) -> Path:
    """Write `figures(...)` under `folder`, once per content of the source; return the folder."""
    arguments = {"dataset": dataset, "num_heldout": num_heldout, "seed": seed}
    names = [(path.name, path.stat().st_size) for path in source_files(source)]
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    recipe = {"task": dataset, **arguments, "source": str(Path(source).absolute()), "files": digest}
    return build_folder(
        folder,
        recipe,
        lambda: figures(source, dataset=dataset, num_heldout=num_heldout, seed=seed),
    )


def _rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise ValueError(
                    f"{path} has no column {missing[0]!r}; it has "
                    f"{', '.join(file.schema_arrow.names)}: give MMK12's own files"
                )
            for batch in file.iter_batches(batch_size=256, columns=list(COLUMNS)):
                for row in batch.to_pylist():
                    image = row["image"]
                    yield _placed(
                        str(row["question"]), str(row["answer"]), [image] if image else []
                    )
        return
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _from_json(json.loads(line), f"line {number} of {path}")


def _from_json(row: Mapping[str, Any], where: str) -> Row:
    messages = row.get("message", row.get("conversations"))
    if isinstance(messages, str):
        messages = json.loads(messages)
    users = [m for m in messages or () if m.get("role") == "user"]
    if not users or row.get("answer") is None:
        raise ValueError(
            f"{where} has no user message under 'message' or 'conversations', or no 'answer'; "
            f"it has {', '.join(row)}"
        )
    content = users[-1]["content"]
    paths = row.get("image_urls") or []
    if not paths and isinstance(content, list):
        paths = [part["image"] for part in content if part.get("type") == "image"]
    images = [{"bytes": None, "path": path} for path in paths]
    return _placed(text_of(content), str(row["answer"]), images)


def _placed(text: str, answer: str, images: list[dict[str, Any]]) -> Row:
    """Put places before a text that names none of its images."""
    return (text if PLACE in text else PLACE * len(images) + text), answer, images


def _table(rows: list[Row], dataset: str) -> pa.Table:
    return pa.table(
        {
            "prompt": pa.array(
                [[{"role": "user", "content": text}] for text, _, _ in rows], MESSAGES
            ),
            "ground_truth": pa.array([answer for _, answer, _ in rows], pa.string()),
            "dataset": pa.array([dataset] * len(rows), pa.string()),
            "image": pa.array([images for _, _, images in rows], IMAGES),
        }
    )
