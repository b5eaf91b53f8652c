"""Score with a user's own reward function, given by dotted path or by file.

`def reward(prompt, response, ground_truth, **columns) -> float | dict`: a dict holds "reward" and
any named parts. The driver resolves the path when it builds the scorer, so a wrong path fails
before anything starts; the scoring process resolves the path again. The function's result is
checked by `workers.reward.base`, not here.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.reward.base import RewardSample

TAKEN = frozenset({"prompt", "response", "ground_truth"})  # arguments of every call


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """Scorer that calls a function with prompt, response, ground truth and every other column.

    A column named prompt, response or ground_truth is not handed over: the names are taken.

    Attributes:
        path: "package.module.function", or "/folder/file.py:function".
        arguments: further keyword arguments of every call, which win over columns.
    """

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", dict(self.arguments))
        if taken := sorted(TAKEN & set(self.arguments)):
            raise ValueError(
                f"reward function {self.path!r}: arguments named {', '.join(taken)} are those of "
                "every call; choose other names"
            )
        if ".py:" in self.path:  # the scoring process need not share this one's directory
            object.__setattr__(self, "path", os.path.abspath(os.path.expanduser(self.path)))
        resolve(self.path)

    def prepare(self) -> None:
        """Import the function's module."""
        resolve(self.path)

    def __call__(self, sample: RewardSample) -> float | Mapping[str, float]:
        """Call the function and return its result unchecked."""
        given = {**sample.columns, **self.arguments}
        return resolve(self.path)(
            prompt=sample.prompt,
            response=sample.response,
            ground_truth=sample.ground_truth,
            **{name: value for name, value in given.items() if name not in TAKEN},
        )


@functools.cache
def resolve(path: str) -> Callable[..., Any]:
    """Import the function that a path names.

    Raises:
        ValueError: nothing callable is there; the message names the missing part.
    """
    file, _, name = path.rpartition(":")
    try:
        if file.endswith(".py"):
            found = _load(file)
        else:
            file, _, name = path.rpartition(".")
            found = importlib.import_module(file)
        function = getattr(found, name)
    except (ImportError, AttributeError, OSError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"reward function {path!r} cannot be imported ({type(error).__name__}: {error}): give "
            '"package.module.function" of an installed module, or "/folder/file.py:function"'
        ) from error
    if not callable(function):
        raise ValueError(f"reward function {path!r} is not callable but {function!r}")
    return function


def _load(file: str) -> object:
    spec = importlib.util.spec_from_file_location("ballast_user_reward", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"no Python file at {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
