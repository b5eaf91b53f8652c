"""Mixture of reasoning-gym's procedural tasks, with all that its own scorers need to score them.

The column `entry` holds reasoning-gym's question, answer and metadata, and the dataset's name and
configuration, as JSON; `workers.reward.scorers.gym` reads it. Prompts are plain text after solved
examples (for small models) or chat messages (for models that follow instructions). Runs in the
driver and in `ballast data`. Scores nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from workers.tasks.tables import MESSAGES, TaskTables, build_folder

STYLES = ("few_shot", "chat")
INSTRUCTION = "Think step by step, then give the final answer inside <answer> and </answer>."

Entry = dict[str, Any]


def reasoning(
    *,
    datasets: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, float] | None = None,
    num_train: int = 2048,
    num_eval: int = 128,
    style: str = "few_shot",
    num_shots: int = 3,
    max_question_chars: int = 400,
    seed: int = 0,
) -> TaskTables:
    """Draw prompts from several reasoning-gym datasets, in shuffled order.

    Args:
        datasets: reasoning-gym's name of each dataset and its settings (empty for the defaults).
        weights: a dataset's share of the rows, beside 1 of every dataset without one.
        num_train: rows of the train table, over all datasets.
        num_eval: rows of the held-out table; no question of it is in the train table.
        style: "few_shot" for "Question: ... Answer:" text after solved examples of the same
            dataset, "chat" for one user message that requests <answer> tags.
        num_shots: solved examples in a few-shot prompt; they appear in neither table.
        max_question_chars: longer questions are passed over.
        seed: of everything drawn.

    Raises:
        ValueError: an unknown name or setting, a dataset without a row in a table, or with too few
            different questions.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {STYLES}, got {style!r}")
    if not datasets or min(num_train, num_eval) < len(datasets):
        raise ValueError(
            f"reasoning needs datasets and at least one row of each in both tables, got "
            f"{list(datasets)}, num_train={num_train}, num_eval={num_eval}"
        )
    train: list[Entry] = []
    heldout: list[Entry] = []
    shares = [_shares(n, list(datasets), dict(weights or {})) for n in (num_train, num_eval)]
    for name, settings in datasets.items():
        counts = [share[name] for share in shares]
        drawn = _draw(name, settings, seed, max_question_chars, num_shots + sum(counts))
        shots, rest = drawn[:num_shots], drawn[num_shots:]
        rows = [{**entry, "prompt": _prompt(style, entry, shots)} for entry in rest]
        heldout += rows[: counts[1]]
        train += rows[counts[1] :]
    random.Random(seed).shuffle(train)
    return TaskTables(train=_table(style, train), heldout=_table(style, heldout))


def build_reasoning(
    folder: str | Path | None = None,
    *,
    datasets: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, float] | None = None,
    num_train: int = 2048,
    num_eval: int = 128,
    style: str = "few_shot",
    num_shots: int = 3,
    max_question_chars: int = 400,
    seed: int = 0,
) -> Path:
    """Write `reasoning(...)` under `folder` once, return the folder; see there for the rest."""
    arguments: dict[str, Any] = {
        "datasets": {name: dict(settings or {}) for name, settings in datasets.items()},
        "weights": dict(weights or {}),
        "num_train": num_train,
        "num_eval": num_eval,
        "style": style,
        "num_shots": num_shots,
        "max_question_chars": max_question_chars,
        "seed": seed,
    }
    return build_folder(folder, {"task": "reasoning", **arguments}, lambda: reasoning(**arguments))


def _shares(total: int, names: list[str], weights: Mapping[str, float]) -> dict[str, int]:
    """Divide rows among datasets by weight; the first take what does not divide."""
    for name, weight in weights.items():
        if name not in names or not weight > 0:
            raise ValueError(
                f"weights has {name}={weight}: give a positive number for one of {', '.join(names)}"
            )
    each = [weights.get(name, 1.0) for name in names]
    exact = [total * weight / sum(each) for weight in each]
    counts = [int(share) for share in exact]
    by_rest = sorted(range(len(names)), key=lambda k: counts[k] - exact[k])
    for k in by_rest[: total - sum(counts)]:
        counts[k] += 1
    if 0 in counts:
        raise ValueError(
            f"{names[counts.index(0)]} has no share of {total} rows: raise num_train or num_eval, "
            "or its weight"
        )
    return dict(zip(names, counts, strict=True))


def _draw(
    name: str, settings: Mapping[str, Any], seed: int, max_question_chars: int, count: int
) -> list[Entry]:
    """Draw `count` different questions that are short enough and survive JSON."""
    drawn: dict[str, Entry] = {}
    for entry in _entries(name, settings, seed, size=100 + 20 * count):
        question = str(entry["question"])
        if entry["answer"] is None or len(question) > max_question_chars or question in drawn:
            continue
        drawn[question] = {
            "dataset": name,
            "config": dict(settings or {}),
            "question": question,
            "answer": str(entry["answer"]),
            "metadata": json.loads(json.dumps(entry["metadata"], default=str)),
        }
        if len(drawn) == count:
            break
    else:
        raise ValueError(
            f"reasoning-gym's {name!r} gave only {len(drawn)} different questions of at most "
            f"{max_question_chars} characters, {count} are needed: lower num_train or num_eval, "
            "raise max_question_chars or widen the dataset's settings"
        )
    return list(drawn.values())


def _entries(name: str, settings: Mapping[str, Any], seed: int, size: int) -> Iterator[Entry]:
    import reasoning_gym  # takes over a second to import

    try:
        dataset = reasoning_gym.create_dataset(name, seed=seed, size=size, **(settings or {}))
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(
            f"reasoning-gym dataset {name!r} with settings {dict(settings or {})}: {error}"
        ) from error
    return iter(dataset)


def _prompt(style: str, entry: Entry, shots: list[Entry]) -> Any:
    if style == "chat":
        content = f"{entry['question']}\n\n{INSTRUCTION}"
        return [{"role": "user", "content": content}]
    solved = "".join(f"Question: {x['question']}\nAnswer: {x['answer']}\n\n" for x in shots)
    return f"{solved}Question: {entry['question']}\nAnswer:"


def _table(style: str, rows: list[Entry]) -> pa.Table:
    fields = ("dataset", "config", "question", "answer", "metadata")
    return pa.table(
        {
            "prompt": pa.array(
                [row["prompt"] for row in rows], MESSAGES if style == "chat" else pa.string()
            ),
            "ground_truth": pa.array([row["answer"] for row in rows], pa.string()),
            "dataset": pa.array([row["dataset"] for row in rows], pa.string()),
            "entry": pa.array(
                [json.dumps({key: row[key] for key in fields}) for row in rows], pa.string()
            ),
        }
    )
