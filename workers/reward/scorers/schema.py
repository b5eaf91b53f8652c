"""Check that a response is JSON that a JSON schema accepts.

Runs in a scoring process. The schema is the configuration's or the row's; jsonschema judges. What
the values mean is not looked at.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.reward.base import RewardSample
from workers.reward.scorers.exact import check_stop, cut_at

FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonSchema:
    """1 if the response is JSON and fits the schema, else 0. One fence ```json is looked into.

    Attributes:
        schema: the JSON schema of every row; None to read each row's own from `schema_column`.
        schema_column: a column with a schema, as JSON text or as a struct.
        stop_at: only the response before this text counts, None for all of it.
    """

    schema: Mapping[str, Any] | None = None
    schema_column: str | None = None
    stop_at: str | None = None

    def __post_init__(self) -> None:
        check_stop(self.stop_at)
        if (self.schema is None) == (self.schema_column is None):
            raise ValueError("give either schema or schema_column, not both or none")
        if importlib.util.find_spec("jsonschema") is None:
            raise ModuleNotFoundError(
                "reward=json_schema needs the package jsonschema: run `pip install jsonschema`"
            )
        if self.schema is not None:
            object.__setattr__(self, "schema", dict(self.schema))
            _check(self.schema)

    def prepare(self) -> None:
        """Import jsonschema."""
        import jsonschema  # noqa: F401

    def __call__(self, sample: RewardSample) -> dict[str, float]:
        """Score one response; part "json" is 1 if it is JSON at all.

        Raises:
            ValueError: the row has no schema, or one that is none.
        """
        import jsonschema

        schema = self._schema(sample)
        text = cut_at(sample.response, self.stop_at)
        fenced = FENCE.findall(text)
        try:
            value = json.loads(fenced[0] if len(fenced) == 1 else text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return {"reward": 0.0, "json": 0.0}
        fits = jsonschema.validators.validator_for(schema)(schema).is_valid(value)
        return {"reward": float(fits), "json": 1.0}

    def _schema(self, sample: RewardSample) -> Any:
        if self.schema_column is None:
            return self.schema
        if self.schema_column not in sample.columns:
            raise ValueError(f"no column {self.schema_column!r} among {sorted(sample.columns)}")
        schema = sample.columns[self.schema_column]
        if isinstance(schema, str):
            schema = json.loads(schema)
        _check(schema)
        return schema


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _check(schema: Any) -> None:
    """Raise ValueError where a schema is none itself."""
    import jsonschema

    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"schema is not a JSON schema: {error.message}") from error
