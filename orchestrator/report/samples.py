"""Read the tokens of chosen groups and bring them into the form that the page shows.

Runs beside the rest of the report. Groups are taken in the given order until the report is full;
within a long response the middle is left out. The page gets numbers that it can colour by; it
computes differences and ratios of log-probs itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from orchestrator.report.pictures import (
    BYTES_PER_PICTURE,
    as_words,
    num_in_prompt,
    num_pictures,
    small_pictures,
)
from orchestrator.report.rows import COMPUTED, PER_TOKEN, RecordedStep, outcome_kind
from orchestrator.report.selection import ChosenGroup
from orchestrator.report.token_texts import TokenTexts
from workers.data.plans import FLAGS

SHOWN_TOKENS = 600  # at the begin of a long response, and as many at its end
PROMPT_CHARACTERS = 4_000
PIECE_CHARACTERS = 500  # of one token
NOTE_CHARACTERS = 1_000  # of a text of the scorer
TEXT_CHARACTERS = 20_000  # of a response whose tokens have no texts
BYTES_PER_TOKEN = 36  # of the report, measured
MAX_BYTES = 9_000_000  # of samples in a report
COLUMNS = {  # column of the record -> its short name in the page
    "rollout_logprobs": "sampler",
    "old_logprobs": "old",
    "logprobs": "now",
    "ref_logprobs": "ref",
    "old_entropy": "entropy",
    "values": "value",
    "advantages": "adv",
    FLAGS: "flags",
}


@dataclass(kw_only=True)
class Pieces:
    """Texts that occur in samples, each once; a sample refers to them by number."""

    texts: list[str] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def number(self, text: str) -> int:
        """Return the number of a text, a new one where the text is new."""
        if text not in self._numbers:
            self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return self._numbers[text]


def load_groups(
    steps: Sequence[RecordedStep],
    chosen: Sequence[ChosenGroup],
    texts: TokenTexts,
    *,
    max_bytes: int = MAX_BYTES,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return groups as the page reads them, and the texts that their tokens refer to.

    Args:
        steps: that `chosen` counts.
        chosen: groups, the most important first; those beyond `max_bytes` are left out.
        texts: of the run's tokenizer.
        max_bytes: about the size of the answer as JSON.
    """
    kept = _fitting(steps, chosen, max_bytes)
    by_place: dict[int, list[ChosenGroup]] = {}
    for group in kept:
        by_place.setdefault(group.place, []).append(group)
    pieces = Pieces()
    loaded: dict[tuple[int, int], dict[str, Any]] = {}
    for place, groups in by_place.items():
        step = steps[place]
        rows = [row for group in groups for row in group.rows]
        table = pq.read_table(step.file).take(rows)
        shown = table.column("image_files") if "image_files" in table.column_names else None
        plain = table if shown is None else table.drop_columns(["image_files"])
        found = iter(enumerate(plain.to_pylist()))
        for group in groups:
            numbers, siblings = zip(*(next(found) for _ in group.rows), strict=True)
            files = [[] if shown is None else shown[number].as_py() for number in numbers]
            made = _group(step, group, siblings, texts, pieces)
            _add_pictures(made, siblings, files)
            loaded[place, group.rows[0]] = made
    return [loaded[group.place, group.rows[0]] for group in kept], pieces.texts


def _fitting(
    steps: Sequence[RecordedStep], chosen: Sequence[ChosenGroup], max_bytes: int
) -> list[ChosenGroup]:
    """Return the groups from the front that fit; at least one, however large."""
    kept: list[ChosenGroup] = []
    used = 0
    lengths: dict[int, Sequence[int]] = {}
    images: dict[int, Sequence[tuple[int, int]]] = {}
    for group in chosen:
        file = steps[group.place].file
        if group.place not in lengths:
            lengths[group.place] = list_lengths(file, "loss_mask")
            images[group.place] = num_pictures(file)
        tokens = sum(min(lengths[group.place][row], 2 * SHOWN_TOKENS) for row in group.rows)
        counts = [images[group.place][row] for row in group.rows]
        pictures = counts[0][0] + sum(later for _, later in counts)
        size = tokens * BYTES_PER_TOKEN + 600 * len(group.rows) + pictures * BYTES_PER_PICTURE
        if not kept or used + size <= max_bytes:
            kept.append(group)
            used += size
    return kept


def _add_pictures(
    group: dict[str, Any], siblings: Sequence[Mapping[str, Any]], files: Sequence[Sequence[bytes]]
) -> None:
    """Add the pictures of the prompt to a group, and the later ones to its samples."""
    of_prompt = num_in_prompt(siblings[0], _prompt_length(siblings[0]))
    if of_prompt:
        group["images"] = small_pictures(files[0][:of_prompt])
    for sample, row, own in zip(group["samples"], siblings, files, strict=True):
        later = own[num_in_prompt(row, _prompt_length(row)) :]
        if later:
            sample["images"] = small_pictures(later)


def list_lengths(file: Path, column: str) -> Sequence[int]:
    """Return the lengths of a column's lists; zeros where a record has no such column."""
    if column not in pq.read_schema(file).names:
        return [0] * int(pq.read_metadata(file).num_rows)
    lists = pq.read_table(file, columns=[column])[column].combine_chunks()
    return [int(length) for length in lists.value_lengths().to_pylist()]


def prompt_text(row: Mapping[str, Any], length: int, texts: TokenTexts) -> str:
    """Return the text of the first `length` tokens of a row, `<image>` for those of an image."""
    tokens = row["tokens"][:length]
    pieces, begin = [], 0
    shown = (span for span in row.get("images") or () if span["offset"] < length)
    for span in shown:
        pieces += [texts.text(tokens[begin : span["offset"]]), "<image>"]
        begin = span["offset"] + span["length"]
    return "".join([*pieces, texts.text(tokens[begin:])])


def _group(
    step: RecordedStep,
    group: ChosenGroup,
    siblings: Sequence[Mapping[str, Any]],
    texts: TokenTexts,
    pieces: Pieces,
) -> dict[str, Any]:
    first = siblings[0]
    prompt = prompt_text(first, _prompt_length(first), texts)
    return {
        "step": step.step,
        "group": first["group_id"],
        "prompt_uid": first["prompt_uid"],
        "dataset": first["dataset"],
        "why": group.why,
        "prompt": _clipped(prompt, PROMPT_CHARACTERS),
        "samples": [
            _sample(row, _facts(step, place), texts, pieces)
            for row, place in zip(siblings, group.rows, strict=True)
        ],
    }


def _marks(turns: Sequence[Mapping[str, Any]], shown: Sequence[int]) -> list[dict[str, Any]]:
    """Return the turns that begin among the shown tokens, each with its place among them.

    Example: [{"at": 0, "number": 1, "reward": 0.25, "finish": "stop"}]
    """
    places = {token: place for place, token in enumerate(shown)}
    return [
        {
            "at": places[turn["start"]],
            "number": turn["number"],
            "reward": rounded(turn["reward"]),
            "finish": turn["finish_reason"],
        }
        for turn in turns
        if turn["start"] in places
    ]


def _prompt_length(row: Mapping[str, Any]) -> int:
    """Return the number of tokens before the first one that the engine drew."""
    drawn = (place for place, version in enumerate(row["weight_versions"]) if version >= 0)
    return next(drawn, len(row["tokens"]))


def _facts(step: RecordedStep, place: int) -> dict[str, Any]:
    return {name: rounded(values[place]) for name, values in step.facts.items()}


def _sample(
    row: Mapping[str, Any], facts: dict[str, Any], texts: TokenTexts, pieces: Pieces
) -> dict[str, Any]:
    begin, end = _prompt_length(row), len(row["tokens"])
    shown = list(range(begin, end))
    left_out = max(0, len(shown) - 2 * SHOWN_TOKENS)
    if left_out:
        shown = shown[:SHOWN_TOKENS] + shown[-SHOWN_TOKENS:]
    words = as_words(row, shown, texts.pieces([row["tokens"][place] for place in shown]))
    sample = {
        "id": row["rollout_id"],
        "reward": rounded(row["reward"]),
        "parts": {name: rounded(value) for name, value in row["reward_parts"] or ()},
        "notes": {
            name: _clipped(text, NOTE_CHARACTERS) for name, text in row.get("reward_notes") or ()
        },
        "outcome": row["outcome"],
        "kind": outcome_kind(row["outcome"], row["prompt_uid"]),
        "finish": row["finish_reason"],
        "turns": row["num_turns"],
        "branch": row.get("branch") or 0,
        "marks": _marks(row.get("turns") or (), shown),
        "seconds": {name: rounded(value) for name, value in row["timings"] or ()},
        "facts": facts,
        "left_out": left_out,
        "tokens": [pieces.number(_clipped(word, PIECE_CHARACTERS)) for word in words],
        "trains": _compact([int(row["loss_mask"][place]) for place in shown]),
        "version": _compact([row["weight_versions"][place] for place in shown]),
    }
    if not texts.known:
        sample["text"] = _clipped(row["response_text"] or "", TEXT_CHARACTERS)
    for column in (*PER_TOKEN, *COMPUTED):
        values = row.get(column)
        if column in COLUMNS and values is not None and len(values) == end:
            sample[COLUMNS[column]] = _compact([rounded(values[place]) for place in shown])
    return sample


def _compact(values: list[Any]) -> Any:
    """Return one value where all are equal, else the list."""
    return values[0] if values and all(value == values[0] for value in values) else values


def _clipped(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    return f"{text[:characters]} … ({len(text) - characters} more characters)"


def rounded(value: Any, digits: int = 4) -> Any:
    """Return a number with few digits; None for one that JSON does not have, such as NaN."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{float(value):.{digits}g}")
    return int(short) if short == int(short) and abs(short) < 1e9 else short


def rounded_all(values: Iterable[Any], digits: int = 5) -> list[Any]:
    """Return numbers with few digits; None for those that JSON does not have."""
    return [rounded(value, digits) for value in values]
