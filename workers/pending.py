"""Wait for the answers of remote calls in flight, with one time limit for all of them.

A `WorkerGroup` makes the calls; the driver, and a learner rank that calls engines, wait here. What
Ray raises becomes one error that names the role, the rank and the method (`failures.py`). Nothing
is called again, and no process is ended.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import ray

from workers.failures import NoAnswerError, WorkerError, is_death, named

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Pending(Generic[R_co]):
    """Calls in flight; `result` waits for all of them."""

    role: str
    method: str
    refs: Sequence[Awaitable[R_co]]
    timeout_s: float
    ranks: Sequence[int] = ()  # of the calls, where these are not their positions

    def result(self) -> list[R_co]:
        """Answers in rank order.

        What one rank raises is raised at once: the others may be waiting for it in a collective.

        Raises:
            WorkerError: when a call failed, a process died or the time is over.
        """
        waiting, deadline = list(self.refs), time.monotonic() + self.timeout_s
        while waiting:
            left_s = max(0.0, deadline - time.monotonic())
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=left_s)
            if not ready:
                raise self._no_answer([rank for rank, ref in self._by_rank() if ref in waiting])
            self._raise_failure(ready[0])
        with named(f"{self.role}.{self.method}"):  # what has arrived may be lost again
            return list(ray.get(list(self.refs))) if self.refs else []

    def outcomes(self) -> dict[int, R_co | WorkerError]:
        """Return the answer or the failure of every rank, at the latest when the time is over."""
        if not self.refs:
            return {}
        in_time, _ = ray.wait(list(self.refs), num_returns=len(self.refs), timeout=self.timeout_s)
        found: dict[int, R_co | WorkerError] = {}
        for rank, ref in self._by_rank():
            try:
                if ref not in in_time:
                    raise self._no_answer([rank])
                found[rank] = replace(self, refs=[ref], ranks=[rank]).result()[0]
            except WorkerError as error:
                found[rank] = error
        return found

    def survivors(self) -> dict[int, R_co]:
        """Return the answers, by rank, of those whose process lives.

        Raises:
            WorkerError: when a living rank failed or does not answer in time.
        """
        answers, failures = divide(self.outcomes())
        for failure in failures.values():
            if not is_death(failure):
                raise failure
        return answers

    def ready(self, *, wait_s: float = 0.0) -> bool:
        """Return True if `result` would return, or raise, at once; waits `wait_s` for that."""
        done, _ = ray.wait(list(self.refs), num_returns=len(self.refs), timeout=wait_s)
        return len(done) == len(self.refs)

    def _by_rank(self) -> list[tuple[int, Awaitable[R_co]]]:
        return list(zip(self.ranks or range(len(self.refs)), self.refs, strict=True))

    def _no_answer(self, ranks: Sequence[int]) -> NoAnswerError:
        return NoAnswerError(
            f"{self.role}.{self.method}: no answer from rank {ranks} in {self.timeout_s:g} s; look "
            "at that process's log, or raise the limit in cluster.timeouts"
        )

    def _raise_failure(self, ref: Any) -> None:
        rank = next(rank for rank, own in self._by_rank() if own == ref)
        with named(f"{self.role}.{self.method}, rank {rank}"):
            ray.get(ref)


def divide(outcomes: Mapping[int, R | WorkerError]) -> tuple[dict[int, R], dict[int, WorkerError]]:
    """Divide outcomes by rank into answers and failures."""
    answers, failures = {}, {}
    for rank, outcome in outcomes.items():
        if isinstance(outcome, WorkerError):
            failures[rank] = outcome
        else:
            answers[rank] = outcome
    return answers, failures
