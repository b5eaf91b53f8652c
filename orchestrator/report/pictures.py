"""Make small pictures of a record's images, for the page.

Runs beside the rest of the report. A group has the pictures of its prompt, once for all siblings;
a sample has those that its environment showed behind the prompt.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from workers.data.images.decoding import ImageFaultError, thumbnail

PICTURE_SIDE = 160  # pixels of a small picture, at most
MOST_PICTURES = 4  # of one prompt, and of what one sample was shown behind it
BYTES_PER_PICTURE = 9_000  # of the report, about


def small_pictures(files: Sequence[bytes]) -> list[str]:
    """Return the first images of a prompt as `data:` addresses of small JPEG files."""
    found = []
    for file in files[:MOST_PICTURES]:
        try:
            small = thumbnail(file, PICTURE_SIDE)
        except ImageFaultError:
            continue
        found.append(f"data:image/jpeg;base64,{base64.b64encode(small).decode()}")
    return found


def num_in_prompt(row: Mapping[str, Any], num_prompt: int) -> int:
    """Count the images of a row that begin among its first `num_prompt` tokens."""
    return sum(span["offset"] < num_prompt for span in row.get("images") or ())


def num_pictures(file: Path) -> list[tuple[int, int]]:
    """Return for each row of a record the pictures of its prompt, and those behind it."""
    names = pq.read_schema(file).names
    if "images" not in names:
        return [(0, 0)] * int(pq.read_metadata(file).num_rows)
    columns = [name for name in ("images", "turns") if name in names]
    found = []
    for row in pq.read_table(file, columns=columns).to_pylist():
        spans, turns = row["images"] or [], row.get("turns") or []
        start = turns[0]["start"] if turns else None
        before = sum(start is None or span["offset"] < start for span in spans)
        found.append((min(before, MOST_PICTURES), min(len(spans) - before, MOST_PICTURES)))
    return found


def as_words(row: Mapping[str, Any], shown: Sequence[int], words: Sequence[str]) -> list[str]:
    """Return the texts of a row's tokens with `<image>` for all tokens of an image.

    Args:
        row: of the record.
        shown: places of the tokens in the row.
        words: text of each.
    """
    inside: dict[int, str] = {}
    for span in row.get("images") or ():
        inside |= dict.fromkeys(range(span["offset"], span["offset"] + span["length"]), "")
        inside[span["offset"]] = "<image>"
    return [inside.get(place, word) for place, word in zip(shown, words, strict=True)]
