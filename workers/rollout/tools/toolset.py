"""Define the contract of toolsets, and make one of Python functions with type hints.

A toolset lives in a tool process (`server.py`), which can be killed at any time. Nothing here knows
the conversation, the policy, or a limit of time.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, Protocol, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

Schema = dict[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}
Function = Callable[..., object]
# A parameter of a docstring's section "Args:", and the lines that go on with its description.
PARAMETER = re.compile(r"^ +(\w+)(?: \([^)]*\))?:[ ]*(.*(?:\n {8,}.*)*)", re.MULTILINE)


class WrongCallError(ValueError):
    """Arguments that do not fit a tool; the message tells the policy why."""


class Toolset(Protocol):
    """Tools that one object offers."""

    def prepare(self) -> None:
        """Get ready, before the clock of the first call starts."""

    def schemas(self) -> Sequence[Schema]:
        """Return the JSON schema of each tool, as chat templates and vLLM take them."""

    def call(self, name: str, arguments: Mapping[str, Any]) -> object:
        """Call a tool; return text, a value that JSON can hold, or images (`content.content_of`).

        Raises:
            WrongCallError: the arguments do not fit.
            Exception: whatever the tool raises.
        """


@dataclass(frozen=True, kw_only=True)
class Functions:
    """Toolset of Python functions, named by their dotted paths.

    A function's name, type hints and docstring make its schema; descriptions of parameters are read
    from the docstring's section "Args:".

    Example: Functions(paths=["workers.rollout.tools.calculator.calculate"])
    """

    paths: Sequence[str] = ()

    def functions(self) -> Sequence[Function]:
        """Return the functions, which may be methods of an object."""
        return [_imported(path) for path in self.paths]

    def prepare(self) -> None:
        """Import the functions and read their signatures.

        Raises:
            ValueError: a path names no function, or a function lacks a docstring or a type hint.
        """
        self.schemas()

    def schemas(self) -> Sequence[Schema]:
        """See `Toolset`."""
        return [tool.schema for tool in self._tools.values()]

    def call(self, name: str, arguments: Mapping[str, Any]) -> object:
        """See `Toolset`."""
        return self._tools[name].call(arguments)

    @cached_property
    def _tools(self) -> dict[str, TypedFunction]:
        return {tool.name: tool for tool in map(TypedFunction, self.functions())}


class TypedFunction:
    """A function whose arguments are checked against its type hints, by pydantic.

    Args:
        function: with a docstring, and a type hint for each parameter.

    Attributes:
        name: of the function.
        schema: JSON schema of its parameters.

    Raises:
        ValueError: the function lacks a docstring or a type hint.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self.name = function.__name__
        documentation = inspect.getdoc(function)
        if not documentation:
            raise ValueError(f"tool {self.name} has no docstring to describe it; add one")
        hints = get_type_hints(function, include_extras=True)
        notes = {name: " ".join(text.split()) for name, text in PARAMETER.findall(documentation)}
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if name not in hints or parameter.kind in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
                parameter.POSITIONAL_ONLY,
            ):
                raise ValueError(
                    f"tool {self.name} needs a type hint for {name}, and a name to pass it by"
                )
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (hints[name], Field(default, description=notes.get(name)))
        self._model: type[BaseModel] = create_model(
            self.name, __config__=ConfigDict(extra="forbid"), **fields
        )
        self.schema: Schema = {
            "type": "function",
            "function": {
                "name": self.name,
                "description": documentation.split("\n\n", 1)[0].replace("\n", " "),
                "parameters": _plain(self._model.model_json_schema()),
            },
        }

    def call(self, arguments: Mapping[str, Any]) -> object:
        """Call the function with checked arguments.

        Raises:
            WrongCallError: the arguments do not fit.
        """
        try:
            checked = self._model.model_validate(dict(arguments))
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise WrongCallError("; ".join(faults)) from error
        return self._function(
            **{name: getattr(checked, name) for name in type(checked).model_fields}
        )


def as_text(value: object) -> str:
    """Return a tool's result as the policy sees it: text as it is, all else as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _plain(schema: Schema) -> Schema:
    """Return a schema of parameters without the titles that pydantic adds."""
    properties = {
        name: {key: value for key, value in entry.items() if key != "title"}
        for name, entry in schema.get("properties", {}).items()
    }
    return {"type": "object", "properties": properties} | {
        key: schema[key] for key in ("required", "$defs") if key in schema
    }


def _imported(path: str) -> Function:
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(f"{path!r} is no dotted path of a function, such as my_tools.lookup")
    function = getattr(import_module(module), name, None)
    if not callable(function):
        raise ValueError(f"{module} has no function {name!r}; check environment.player.tools")
    return function
