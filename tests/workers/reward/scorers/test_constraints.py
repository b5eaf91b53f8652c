"""Every constraint has a response that meets it and one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from workers.reward.base import RewardResult, RewardSample, score_sample
from workers.reward.scorers.constraint_checks import CHECKS
from workers.reward.scorers.constraints import Constraints

GERMAN = "Das ist ein kurzer Satz, den jeder Mensch in Deutschland versteht."
ENGLISH = "this is a short sentence that every person in the country understands."
# name, arguments, a response that meets it, one that does not
CASES: tuple[tuple[str, dict[str, Any], str, str], ...] = (
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "AB CD ef",
        "AB cd",
    ),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH),
    ("change_case:english_lowercase", {}, ENGLISH, ENGLISH.capitalize()),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi!", "Hi! Say hi."),
    ("combination:two_responses", {}, "one ****** two", "one ****** one"),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        "[name] and [place]",
        "[name]",
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        "Dear all\nP.S. bye",
        "Dear all P.S.",
    ),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\nin Section 2",
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a\n* b\n* c"),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "*a* and **b c**",
        "*a* and * *",
    ),
    ("detectable_format:title", {}, "<<Night>>\nIt is dark", "<Night>"),
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "A Cat; a dog", "concatenate dogs"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "concatenate", "The CAT"),
    (
        "keywords:frequency",
        {"keyword": "a", "frequency": 2, "relation": "less than"},
        "a bad cat",
        "a a",
    ),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": "at least"},
        "Eee",
        "ee",
    ),
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    (
        "length_constraints:number_characters",
        {"num_characters": 3, "relation": "less than"},
        " ab ",
        "abc",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        "One. Two 3.5 times!",
        "One. Two. Three.",
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        "it's a well-known",
        "it's well-known",
    ),
    ("punctuation:no_comma", {}, "a b", "a, b"),
    ("startend:end_checker", {"end_phrase": "The end."}, "a. the end.", "The end. Or not"),
    ("startend:quotation", {}, '"hello"', '"hello" she said'),
)


def score(response: str, scorer: Constraints | None = None, **columns: object) -> RewardResult:
    sample = RewardSample(prompt="Say hi.", response=response, columns=columns)
    return score_sample(scorer or Constraints(), sample)


def test_every_constraint_has_a_case() -> None:
    assert sorted(name for name, *_ in CASES) == sorted(CHECKS)


@pytest.mark.parametrize(("name", "arguments", "met", "missed"), CASES, ids=[c[0] for c in CASES])
def test_met_and_missed(name: str, arguments: dict[str, Any], met: str, missed: str) -> None:
    # Parquet fills the arguments of all constraints into every row, as nulls.
    row = {"instruction_id_list": [name], "kwargs": [{**arguments, "of_another": None}]}
    assert [score(met, **row).reward, score(missed, **row).reward] == [1.0, 0.0]


def test_the_share_that_is_met() -> None:
    names = ("punctuation:no_comma", "startend:quotation")
    row = {"instruction_id_list": list(names)}
    assert score("no comma", **row).reward == 0.5
    assert score("no comma", **row).parts == {names[0]: 1.0, names[1]: 0.0}
    whole = Constraints(names=names, all_or_nothing=True)
    assert [score(text, whole).reward for text in ("no comma", '"both"')] == [0.0, 1.0]


def test_an_empty_response_meets_nothing() -> None:
    assert score(" \n", instruction_id_list=["punctuation:no_comma"]).reward == 0.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "no column 'instruction_id_list'"),
        ({"instruction_id_list": []}, "needs one constraint at least"),
        ({"instruction_id_list": ["no:such"]}, "unknown constraint 'no:such'"),
        (
            {"instruction_id_list": ["startend:quotation"], "kwargs": [{"x": 1}]},
            "takes the arguments",
        ),
        ({"instruction_id_list": ["startend:quotation"], "kwargs": []}, ""),
    ],
)
def test_a_row_that_cannot_be_checked_fails(row: dict[str, Any], message: str) -> None:
    found = score("text", **row)
    assert (found.reward is None) == bool(message)
    assert message in found.outcome


def test_a_wrong_name_in_the_configuration_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="unknown constraint 'no:such'"):
        Constraints(names=("no:such",))
