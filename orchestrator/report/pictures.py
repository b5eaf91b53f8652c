"""Show the images of a recorded prompt in the report: small pictures, and `<image>` in its text.

Runs beside the rest of the report. A picture that can't be decoded is left out.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from orchestrator.report.token_texts import TokenTexts
from workers.data.images.decoding import ImageFaultError, thumbnail

SIDE = 160  # pixels of a small picture, at most
MOST = 4  # pictures of one prompt
BYTES_PER_PICTURE = 9_000  # of the report, about


def small_pictures(files: Sequence[bytes]) -> list[str]:
    """Return the first images of a prompt as `data:` addresses of small JPEG files."""
    found = []
    for file in files[:MOST]:
        try:
            small = thumbnail(file, SIDE)
        except ImageFaultError:
            continue
        found.append(f"data:image/jpeg;base64,{base64.b64encode(small).decode()}")
    return found


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
    for span in row.get("images") or ():
        pieces += [texts.text(tokens[begin : span["offset"]]), "<image>"]
        begin = span["offset"] + span["length"]
    return "".join([*pieces, texts.text(tokens[begin:])])
