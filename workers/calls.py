"""Bind a worker's method to the arguments of one call, with the types that mypy checks.

    learner.call(bind(PolicyWorker.load, "checkpoints/step_5/learner"), timeout_s=600)

A call is given the method itself and not its name, so that mypy checks the arguments and knows the
answer, and an editor finds the definition. The driver binds calls, and so do workers that call
others; nothing is sent here, `worker_group.py` does that.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

P = ParamSpec("P")
W = TypeVar("W")
R = TypeVar("R")
W_contra = TypeVar("W_contra", contravariant=True)  # a call of a base is a call of the class
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Call(Generic[W_contra, R_co]):
    """Call of a method of the worker class `W_contra`; the answer is an `R_co`.

    Example: bind(RolloutWorker.sleep, 2) == Call("sleep", (2,), {}), a Call[RolloutWorker, None]
    """

    method: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@overload
def bind(
    method: Callable[Concatenate[W, P], Coroutine[Any, Any, R]],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> Call[W, R]: ...
@overload
def bind(
    method: Callable[Concatenate[W, P], R], /, *args: P.args, **kwargs: P.kwargs
) -> Call[W, R]: ...
def bind(method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call[Any, Any]:
    """Bind a method of a worker class, async or not, to the arguments of one call.

    An argument of type Any may be a reference into the object store: the worker is given the value.
    """
    return Call(method.__name__, args, kwargs)
