r"""Compare an answer in the form that its row says: a choice, a whole number, a decimal, a list.

Rows are those of MathVista (2310.02255): `question_type`, `answer_type`, `precision`, `choices`;
the converters of MathVerse and MathVision write the same columns. MathVista's own script has a
language model find the answer in a response; here rules find it, and what no rule finds is wrong.
Runs in a scoring process.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workers.reward.base import RewardSample
from workers.reward.scorers.exact import check_stop, cut_at, truth_of
from workers.reward.scorers.math import Math

CHOICE = ("multi_choice", "multi-choice")  # MathVista's spelling, MathVerse's
NUMBER = r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
FRACTION = re.compile(
    rf"(-?)\\?[dt]?(?:frac)\{{({NUMBER})\}}\{{({NUMBER})\}}|({NUMBER})/({NUMBER})"
)
PHRASE = re.compile(r"(?i:answer)\**(?:\s*:|\s+(?i:is|should\s+be)\s*:?)\s*(?!(?i:not)\b)([^\n]+)")
NO_NUMBER = re.compile(r"\\[A-Za-z]+|[\^√π]|/\s*\d|\d\s*/")  # what makes another number of one
WRAPPER = re.compile(r"\\(?:text|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
POWER_OF_UNIT = re.compile(r"(?<=[A-Za-z}])\s*\^\{?-?\d\}?")
DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})")


@dataclass(frozen=True, kw_only=True, slots=True)
class TypedAnswer:
    r"""1 if the response's answer is the ground truth in the row's form, else 0.

    The answer is the content of the last \boxed{}, else of the last <answer> block, else what
    follows the last "answer is" or "answer:" in its sentence, else the last line that is not empty.

    A choice is given by its letter, with or without its text, or by its text; two letters are no
    answer. A number may have a unit, a thousands comma, or an equation before it, and is a
    decimal, a fraction or the only number there. A whole number is compared as it is, a decimal
    after rounding to the row's precision, a list element by element. A row of another answer type
    is compared as mathematics.

    Attributes:
        stop_at: only the response before this text counts, None for all of it.
    """

    stop_at: str | None = None

    def __post_init__(self) -> None:
        check_stop(self.stop_at)

    def prepare(self) -> None:
        """Import what the comparison of mathematics needs."""
        Math().prepare()

    def __call__(self, sample: RewardSample) -> dict[str, float | str]:
        """Score one response; part "answered" is 1 if an answer of the row's form is found.

        Raises:
            ValueError: a ground truth that is not of the row's form, or a row without a precision.
        """
        truth, row = truth_of(sample).strip(), sample.columns
        marked = _marked(cut_at(sample.response, self.stop_at))
        if row.get("question_type") in CHOICE:
            return _choice(marked, truth, list(row.get("choices") or ()))
        kind = row.get("answer_type")
        if kind == "integer":
            return _number(marked, _truth_number(truth, kind), places=None)
        if kind == "float":
            return _number(marked, _truth_number(truth, kind), places=_places(row))
        if kind == "list":
            return _list(marked, truth)
        return _mathematics(sample, marked, truth)


def _marked(response: str) -> str:
    """Return the part of a response that it gives as its answer."""
    if boxed := _boxed(response):
        return boxed[-1].strip()
    if blocks := re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL):
        return str(blocks[-1]).strip()
    if phrases := PHRASE.findall(response):
        return re.split(r"[.;](?:\s|$)", str(phrases[-1]).strip(" *:"))[0].strip(" *")
    lines = [line.strip() for line in response.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _boxed(text: str) -> list[str]:
    r"""Return the contents of every \boxed{}, whose braces may hold braces."""
    found = []
    for match in re.finditer(r"\\boxed\s*\{", text):
        depth = 1
        for end in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                found.append(text[match.end() : end])
                break
    return found


def _result(right: bool, answer: str | None) -> dict[str, float | str]:
    if answer is None:
        return {"reward": 0.0, "answered": 0.0}
    return {"reward": float(right), "answered": 1.0, "answer": answer}


# ---- choices ----


def _choice(marked: str, truth: str, choices: Sequence[str]) -> dict[str, float | str]:
    """Compare the chosen letter with that of the truth, which is a choice's text or a letter."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices) or 10]
    right = _letter_of_text(truth, choices) or _letter(truth, letters)
    if right is None:
        raise ValueError(
            f"the ground truth {truth!r} is neither one of the choices {list(choices)} nor the "
            f"letter of one, {letters}"
        )
    found = _letter(marked, letters) or _letter_of_text(marked, choices)
    return _result(found == right, found)


def _letter(text: str, letters: str) -> str | None:
    """Return the letter of "B", "(b)", "B." or "(B) text"; None where another letter follows."""
    plain = re.sub(r"^(?i:option|choice)\s+", "", _plain(text))
    whole = re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", plain)
    labelled = re.match(r"\(?([A-Z])(?:\)|[.:](?=\s))(.*)", plain, re.DOTALL)
    if whole is not None:
        letter = whole.group(1).upper()
    elif labelled is not None and not re.search(r"\b[A-Z]\)", labelled.group(2)):
        letter = labelled.group(1)
    else:
        return None
    return letter if letter in letters else None


def _letter_of_text(text: str, choices: Sequence[str]) -> str | None:
    """Return the letter of the choice whose words, or whose number, a text is."""
    wanted, number = _words(text), _value(text, alone=True)
    for position, choice in enumerate(choices):
        if _words(choice) == wanted:
            return chr(ord("A") + position)
    equal = [
        chr(ord("A") + position)
        for position, choice in enumerate(choices)
        if number is not None and number == _value(choice, alone=True)
    ]
    return equal[0] if len(equal) == 1 else None


def _words(text: str) -> str:
    return " ".join(_plain(text).strip(" .\"'").casefold().split())


# ---- numbers ----


def _number(marked: str, truth: float, *, places: int | None) -> dict[str, float | str]:
    """Compare numbers: as they are, or both rounded to so many places after the point."""
    value = _value(marked)
    if value is None:
        return _result(False, None)
    if places is not None:
        value, truth = round(value, places), round(truth, places)
    return _result(math.isclose(value, truth, rel_tol=1e-9, abs_tol=1e-12), f"{value:.12g}")


def _truth_number(truth: str, kind: str) -> float:
    try:
        return float(truth)
    except ValueError as error:
        raise ValueError(f"the ground truth {truth!r} is no number, answer_type={kind}") from error


def _places(row: Mapping[str, Any]) -> int:
    precision = row.get("precision")
    if precision is None or not float(precision).is_integer():
        raise ValueError(f"a row with answer_type=float needs a precision, it has {precision!r}")
    return int(precision)


def _value(text: str, *, alone: bool = False) -> float | None:
    """Return the number that a text gives; None where it gives none, or several.

    Args:
        text: such as "x = 14 cm", "1,200", "3/4" or "1.5e3".
        alone: nothing but the number may be there.
    """
    plain = re.split(r"=|\\approx|≈", _plain(text))[-1]
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", POWER_OF_UNIT.sub("", plain)).strip(" .$%°")
    fractions = list(FRACTION.finditer(plain))
    if len(fractions) == 1:
        sign, top, bottom, over, under = fractions[0].groups()
        rest = plain[: fractions[0].start()] + plain[fractions[0].end() :]
        if re.search(r"\d", rest) or (alone and rest.strip()):
            return None
        below = float(bottom or under)
        return None if below == 0 else float(f"{sign or ''}1") * float(top or over) / below
    if NO_NUMBER.search(plain):
        return None
    found = re.findall(rf"(?<![\w.]){NUMBER}", plain)
    if len(found) != 1 or (alone and found[0] != plain):
        return None
    value = float(found[0])
    return value if math.isfinite(value) else None


def _plain(text: str) -> str:
    """Return a text without the marks of LaTeX and Markdown that change no answer."""
    for _ in range(2):  # one wrapper in another
        text = WRAPPER.sub(r"\1", text)
    text = DEGREES.sub("", text.replace("\\!", "").replace("\\,", " ").replace("\\ ", " "))
    for mark in ("\\left", "\\right", "\\(", "\\)", "\\%", "\\$", "$", "**"):
        text = text.replace(mark, " " if mark in ("\\(", "\\)") else "")
    return text.replace("−", "-").strip()


# ---- lists and mathematics ----


def _list(marked: str, truth: str) -> dict[str, float | str]:
    """Compare lists element by element: numbers as numbers, other elements as texts."""
    right = _elements(truth)
    if right is None:
        raise ValueError(f"the ground truth {truth!r} is no list, answer_type=list")
    found = _elements(marked)
    if found is None:
        return _result(False, None)
    same = len(found) == len(right) and all(map(_same, found, right))
    return _result(same, json.dumps(found))


def _elements(text: str) -> list[Any] | None:
    """Return the elements of the only list in a text, whose texts may have either quote."""
    lists = re.findall(r"\[[^\[\]]*\]", _plain(text))
    if len(lists) != 1:
        return None
    inner = lists[0][1:-1].strip()
    parts = [part.strip().strip("'\"") for part in inner.split(",")] if inner else []
    return [part if (value := _value(part, alone=True)) is None else value for part in parts]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return type(one) is type(other) and str(one).casefold() == str(other).casefold()


def _mathematics(sample: RewardSample, marked: str, truth: str) -> dict[str, float | str]:
    """Compare as mathematics; a truth that is none is compared word by word."""
    if _words(marked) == _words(truth):
        return _result(True, _words(marked))
    right_number = _value(truth, alone=True)
    if right_number is not None and _value(marked) is not None:
        return _number(marked, right_number, places=None)
    try:
        given = replace(sample, response=f"\\boxed{{{marked}}}", ground_truth=truth)
        right = bool(Math()(given)) if marked else False
    except ValueError:  # words, such as the name of a colour
        right = False
    return _result(right, Math().extract(given) or marked if marked else None)
