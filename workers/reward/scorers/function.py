"""Score with a user's own function, object or class, given by dotted path or by file.

    def reward(prompt, response, ground_truth, **columns)   a sample: a number, None or a mapping
    async def reward(response, ground_truth)                awaited
    class Reward: def __call__(self, response)              built once in each scoring process
    def reward(samples)                                     all siblings of a prompt at once

The driver resolves the path when it builds the scorer, so a wrong path fails before anything
starts; the scoring process resolves the path again. A function gets the arguments that its
signature names, and all columns only if it has a `**parameter`. The value that comes back is read
by `workers.reward.base`, not here.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from workers.reward.base import RewardSample

CALL = "__call__"
OWN = ("prompt", "response", "ground_truth", "columns")  # of the sample, whatever the columns hold


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """Scorer that calls a function with prompt, response, ground truth and columns by name.

    A column named prompt, response, ground_truth or columns does not replace the sample's own
    value: a function reads that column from the mapping `columns`, if it has such a parameter.

    Attributes:
        path: "package.module.function", or "/folder/file.py:function"; a class is constructed.
        arguments: further keyword arguments of every call, of a class those of its constructor;
            they replace columns of the same name.

    Raises:
        ValueError: nothing callable is there, or `arguments` holds a name of the sample.
    """

    reads_lists: ClassVar[bool] = True  # a function gets what the row holds

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", dict(self.arguments))
        if ".py:" in self.path:  # the scoring process need not share this one's directory
            object.__setattr__(self, "path", os.path.abspath(os.path.expanduser(self.path)))
        found = resolve(self.path)
        taken = sorted({*OWN, "samples"} & set(self.arguments))
        if taken and not inspect.isclass(found):
            raise ValueError(
                f"reward.scorer.arguments holds {taken}, which every sample has itself; give these "
                "arguments other names"
            )

    @property
    def whole_group(self) -> bool:
        """True where the function's first parameter is named `samples`."""
        found = resolve(self.path)
        try:
            names = list(
                inspect.signature(
                    getattr(found, CALL) if inspect.isclass(found) else found
                ).parameters
            )
        except (TypeError, ValueError):  # a function of the C language
            return False
        return [name for name in names if name != "self"][:1] == ["samples"]

    @property
    def reads_images(self) -> bool:
        """True where the function names `images`, or has an attribute `reads_images` that is true.

        A function of whole groups, whose samples have `images`, needs the attribute.
        """
        found = resolve(self.path)
        call = getattr(found, CALL) if inspect.isclass(found) else found
        return bool(getattr(found, "reads_images", False)) or "images" in _signature(call)[0]

    def prepare(self) -> None:
        """Import the function's module; construct the object if the path names a class."""
        _callable(self.path, _Arguments(self.arguments))

    def __call__(self, given: RewardSample | Sequence[RewardSample]) -> Any:
        """Call the function with a sample, or with the siblings; return its result unchecked.

        Raises:
            ValueError: the function needs an argument that the sample does not have.
        """
        function = _callable(self.path, _Arguments(self.arguments))
        more = {} if inspect.isclass(resolve(self.path)) else self.arguments
        if isinstance(given, RewardSample):
            result = function(**_named_arguments(function, given, more, self.path))
        else:
            result = function(given, **more)
        if inspect.isawaitable(result):
            return _event_loop().run_until_complete(_awaited(result))
        return result


class _Arguments(dict[str, Any]):
    """Constructor's arguments as the key of a cache: equal values are one key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


@functools.cache
def _callable(path: str, arguments: _Arguments) -> Callable[..., Any]:
    """Return the function or object that a path names; a class is constructed once."""
    found = resolve(path)
    if not inspect.isclass(found):
        return found
    construct: Any = found
    scorer: Callable[..., Any] = construct(**arguments)
    return scorer


def _named_arguments(
    function: Callable[..., Any], sample: RewardSample, more: Mapping[str, Any], path: str
) -> dict[str, Any]:
    """Return the keyword arguments of one call, as the function's signature asks for them."""
    own = {
        "prompt": sample.prompt,
        "response": sample.response,
        "ground_truth": sample.ground_truth,
    }
    named, takes_all, needed = _signature(function)
    shown = {} if sample.images is None else {"images": sample.images}
    values = {**shown, **sample.columns, **more, **own}
    values.pop("columns", None)
    if "columns" in named:
        values["columns"] = dict(sample.columns)
    missing = sorted(needed - set(values))
    if missing:
        raise ValueError(
            f"reward function {path!r} needs {', '.join(missing)}: a sample has "
            f"{', '.join(own)}, columns and the columns {sorted(sample.columns)}; rename the "
            "parameter, give it a default, or set reward.scorer.arguments"
        )
    if takes_all:
        return values
    return {name: value for name, value in values.items() if name in named}


@functools.cache
def _signature(function: Callable[..., Any]) -> tuple[frozenset[str], bool, frozenset[str]]:
    """Return a function's named parameters, True if it takes any name, and those it must have.

    Of a function of the C language, which tells nothing, no argument is required.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return frozenset(), True, frozenset()
    single = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return (
        frozenset(p.name for p in single),
        any(p.kind is p.VAR_KEYWORD for p in parameters),
        frozenset(p.name for p in single if p.default is p.empty),
    )


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the loop of this process: connections that a reward opens last from call to call."""
    return asyncio.new_event_loop()


async def _awaited(result: Any) -> Any:
    return await result


@functools.cache
def resolve(path: str) -> Callable[..., Any]:
    """Import the function, object or class that a path names.

    Raises:
        ValueError: nothing callable is there; the message names the missing part.
    """
    file, _, name = path.rpartition(":")
    try:
        if file.endswith(".py"):
            found = load_file(file)
        else:
            file, _, name = path.rpartition(".")
            found = importlib.import_module(file)
        function = getattr(found, name)
    # Whatever the user's module raises while it is imported, its path is what must be said.
    except Exception as error:
        raise ValueError(
            f"reward function {path!r} cannot be imported ({type(error).__name__}: {error}): give "
            '"package.module.function" of an installed module, or "/folder/file.py:function"'
        ) from error
    if not callable(function):
        raise ValueError(f"reward function {path!r} is not callable but {function!r}")
    if inspect.isclass(function) and not any(CALL in vars(base) for base in function.__mro__):
        raise ValueError(f"reward class {path!r} has no method __call__, which scores a sample")
    return function  # type: ignore[no-any-return]


def load_file(file: str) -> object:
    """Import a Python file as a module of its own.

    Raises:
        ImportError: no Python file is there.
    """
    spec = importlib.util.spec_from_file_location("ballast_user_reward", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"no Python file at {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
