r"""Find the final answer in a published solution: after "####", or inside the last \boxed{}.

Pure text, for the converters of local copies. Compares and scores nothing.
"""

from __future__ import annotations

import re

HASHES = re.compile(r"####\s*(.+?)\s*$", re.MULTILINE)
BOXES = (r"\boxed", r"\fbox")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")


def after_hashes(text: str) -> str | None:
    r"""Return the answer of a GSM8K solution, its commas left out; None without one.

    Example: after_hashes("He has 2+3=5.\n#### 1,005") == "1005"
    """
    found = HASHES.findall(text)
    return THOUSANDS.sub("", found[-1]).lstrip("$") if found else None


def last_boxed(text: str) -> str | None:
    r"""Return what stands in the last box of a solution, braces balanced; None without one.

    Example: last_boxed(r"so $\boxed{\frac{1}{2}}$.") == r"\frac{1}{2}"
    """
    start = max(text.rfind(box) for box in BOXES)
    if start < 0:
        return None
    rest = text[start:]
    begin = rest.find("{")
    if begin < 0 or rest[:begin].strip() not in BOXES:  # "\boxed 5"
        words = rest.split(maxsplit=2)
        return words[1].strip("$.") if len(words) > 1 else None
    depth = 0
    for place, letter in enumerate(rest[begin:], begin):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[begin + 1 : place].strip()
    return None
