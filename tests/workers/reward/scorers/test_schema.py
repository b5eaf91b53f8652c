"""A response is JSON that fits its row's schema, or it is not."""

from __future__ import annotations

import json

import pytest

from workers.reward.base import RewardResult, RewardSample, score_sample
from workers.reward.scorers.schema import JsonSchema

SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
    "additionalProperties": False,
}


def result(response: str, scorer: JsonSchema | None = None, **columns: object) -> RewardResult:
    sample = RewardSample(prompt="", response=response, columns=columns)
    return score_sample(scorer or JsonSchema(schema=SCHEMA), sample)


@pytest.mark.parametrize(
    ("response", "reward", "is_json"),
    [
        ('{"age": 3}', 1.0, 1.0),
        (' {"age": 0}\n', 1.0, 1.0),
        ('Here:\n```json\n{"age": 3}\n```\n', 1.0, 1.0),
        ('{"age": -1}', 0.0, 1.0),
        ('{"age": 3, "x": 1}', 0.0, 1.0),
        ('{"age": "3"}', 0.0, 1.0),
        ("{}", 0.0, 1.0),
        ("3", 0.0, 1.0),
        ("{age: 3}", 0.0, 0.0),
        ('{"age": 3', 0.0, 0.0),
        ('{"age": NaN}', 0.0, 0.0),
        ("", 0.0, 0.0),
        ('```json\n{"age": 3}\n```\n```json\n{"age": 4}\n```', 0.0, 0.0),
        ("[" * 100_000, 0.0, 0.0),
    ],
)
def test_one_schema(response: str, reward: float, is_json: float) -> None:
    found = result(response)
    assert (found.reward, found.parts) == (reward, {"json": is_json})


def test_every_row_has_its_own_schema() -> None:
    scorer = JsonSchema(schema_column="schema")
    assert result("3", scorer, schema={"type": "integer"}).reward == 1.0
    assert result("3", scorer, schema=json.dumps({"type": "string"})).reward == 0.0


def test_a_row_without_a_schema_fails() -> None:
    scorer = JsonSchema(schema_column="schema")
    assert "no column 'schema' among ['x']" in result("3", scorer, x=1).outcome
    assert "not a JSON schema" in result("3", scorer, schema={"type": "number!"}).outcome


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="give either schema or schema_column"):
        JsonSchema()
    with pytest.raises(ValueError, match="schema is not a JSON schema"):
        JsonSchema(schema={"type": 3})
