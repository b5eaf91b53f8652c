"""Turn what Ray raises for a remote call into one error of this project, in one line.

Every process that calls another goes through here (`worker_group.py`). Ray has two dozen errors,
most of them several lines long; a caller needs to know two things of them: which call failed, and
whether the process that was called can still be used. Nothing is called, restarted or logged here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray.exceptions

# The process that was called, or the only copy of what it answered, is gone.
GONE = (
    ray.exceptions.ActorPlacementGroupRemoved,
    ray.exceptions.ActorUnschedulableError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.RayActorError,
    ray.exceptions.RuntimeEnvSetupError,
    ray.exceptions.WorkerCrashedError,
)


class EngineDiedError(RuntimeError):
    """End of the process that samples; the worker that was asked lives."""


class WorkerError(RuntimeError):
    """Remote call that failed or was not answered; says which role, ranks and call."""


class NoAnswerError(WorkerError):
    """Remote call that was not answered in time; the process may hang, and may live."""


def worker_error(call: str, error: ray.exceptions.RayError) -> WorkerError:
    """Return the error of a call for an error of Ray, which becomes its cause where it is raised.

    Args:
        call: the call in words, such as "learner.train, rank 3".
        error: raised by Ray when it made the call or fetched the answer.
    """
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause or error
        return WorkerError(f"{call}: {type(cause).__name__}: {cause}")
    what = "the process died" if isinstance(error, GONE) else "Ray failed"
    return WorkerError(f"{call}: {what}: {type(error).__name__}: {one_line(error)}")


def is_death(error: BaseException | None) -> bool:
    """Return True if the error of a call says that its process, or that process's engine, is gone.

    Args:
        error: raised by Ray, or a `WorkerError` whose cause that is.
    """
    if isinstance(error, WorkerError):
        error = error.__cause__
    if isinstance(error, ray.exceptions.RayTaskError):
        return isinstance(error.cause, EngineDiedError)
    return isinstance(error, GONE)


def one_line(error: BaseException) -> str:
    """Return the first and the last line of a message: what failed, and why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))


@contextmanager
def named(call: str) -> Iterator[None]:
    """Raise what Ray raises inside the block as a `WorkerError` that names the call."""
    try:
        yield
    except ray.exceptions.RayError as error:
        raise worker_error(call, error) from error
