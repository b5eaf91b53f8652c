"""Read the ground truth of a row: text, or several texts of which any is right.

Runs in the driver. Judges no answer.
"""

from __future__ import annotations

import math
from typing import Any

LARGEST_WHOLE = 2.0**53  # floats below are exact where they are whole

Truth = str | list[str] | None


def read_truth(value: Any) -> Truth:
    """Return a cell of the ground truth's column as text; a list of values as a list of texts.

    Parquet stores whole numbers beside nulls as floats, so that 2.0 is "2". NaN is a missing value.

    Raises:
        ValueError: a record, or a list that holds records or lists.
    """
    if isinstance(value, list):
        texts = [_text(each) for each in value]
        known = [text for text in texts if text is not None]
        return known or None
    return _text(value)


def _text(value: Any) -> str | None:
    if isinstance(value, (dict, list, tuple)):
        raise ValueError(f"the ground truth is a record or a list of them: {str(value)[:80]}")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_WHOLE:
        return str(int(value))
    return str(value)
