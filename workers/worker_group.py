"""Call the Ray actors of one role together, with a time limit and a name on every call.

All remote calls of actors are made here, in the driver and in workers that call others: a group
starts its actors in the bundles of a placement group, sends a call (`calls.py`) to all ranks, and
turns an exception of Ray into one error that names the role, the ranks and the method. Nothing here
depends on the work of the methods.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
import ray.exceptions
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from workers.calls import Call
from workers.failures import EngineDiedError, NoAnswerError, WorkerError, is_death, named
from workers.pending import Pending, divide

__all__ = [
    "EngineDiedError",
    "NoAnswerError",
    "Pending",
    "Placement",
    "WorkerError",
    "WorkerGroup",
    "divide",
    "is_death",
]

W_co = TypeVar("W_co", covariant=True)  # a group of a class is a group of its bases
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Bundles of a placement group that a role's processes occupy, one bundle each."""

    group: PlacementGroup
    bundles: Sequence[int]
    num_cpus: float
    num_gpus: float


class WorkerGroup(Generic[W_co]):
    """Group of the processes of one role, in rank order; each is a worker of class `W_co`.

    Args:
        role: name of the group in errors.
        handles: of the actors; ranks are their positions, or the keys of a mapping.
    """

    def __init__(self, role: str, handles: Sequence[Any] | Mapping[int, Any]) -> None:
        self.role = role
        self._members = dict(handles if isinstance(handles, Mapping) else enumerate(handles))

    @property
    def ranks(self) -> list[int]:
        """Ranks of the processes in the group; not contiguous where processes left."""
        return list(self._members)

    @property
    def handles(self) -> list[Any]:
        """Handles of the actors, in the order of `ranks`."""
        return list(self._members.values())

    def __getitem__(self, rank: int) -> Any:
        return self._members[rank]

    def only(self, ranks: Iterable[int]) -> WorkerGroup[W_co]:
        """Return a group of some of these processes, under the same ranks."""
        return WorkerGroup(self.role, {rank: self._members[rank] for rank in ranks})

    def add(self, rank: int, handle: Any) -> None:
        """Add one more process to the group."""
        self._members[rank] = handle

    def remove(self, rank: int) -> Any:
        """Remove a process from the group; return its handle.

        The process goes on until the handle is killed.
        """
        return self._members.pop(rank)

    @classmethod
    def launch(
        cls,
        role: str,
        actor_class: type[W_co],
        *,
        num_workers: int = 0,
        ranks: Sequence[int] | None = None,
        arguments: Callable[[int], Mapping[str, Any]],
        env: Callable[[int], Mapping[str, str]],
        placement: Placement | None = None,
        num_cpus: float = 0,
        num_gpus: float = 0,
        max_concurrency: int = 1,
        restarts: bool = False,
        retries: int = 0,
    ) -> WorkerGroup[W_co]:
        """Start actors; rank r gets the arguments `arguments(r)` and the environment `env(r)`.

        Ranks are 0 to `num_workers` - 1 unless `ranks` names them. Without a `placement` Ray
        spreads the actors over the nodes that have `num_cpus` and `num_gpus` for each.
        With `restarts` an actor whose process died is constructed again under the same handle. A
        call that it had not answered is made again up to `retries` times (-1: always), then fails.
        """
        handles = {}
        for position, rank in enumerate(range(num_workers) if ranks is None else ranks):
            options: dict[str, Any] = {
                "num_cpus": num_cpus,
                "num_gpus": num_gpus,
                "scheduling_strategy": "SPREAD",
                "runtime_env": {"env_vars": dict(env(rank))},
                "max_concurrency": max_concurrency,
                "max_restarts": -1 if restarts else 0,
                "max_task_retries": retries,
            }
            if placement is not None:
                options["num_cpus"] = placement.num_cpus
                options["num_gpus"] = placement.num_gpus
                options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                    placement.group, placement_group_bundle_index=placement.bundles[position]
                )
            remote_class = ray.remote(actor_class).options(**options)
            handles[rank] = remote_class.remote(**arguments(rank))
        return cls(role, handles)

    def __len__(self) -> int:
        return len(self._members)

    def send(self, rank: int, call: Call[W_co, R]) -> Awaitable[R]:
        """Call one rank; return a reference to its answer, whose time limit the caller sets."""
        method = getattr(self._members[rank], call.method)
        with named(f"{self.role}.{call.method}, rank {rank}"):
            reference: Awaitable[R] = method.remote(*call.args, **call.kwargs)
        return reference

    def send_pair(
        self, rank: int, call: Call[W_co, tuple[A, B]]
    ) -> tuple[Awaitable[A], Awaitable[B]]:
        """Call one rank; return a reference to each of the two values that it answers."""
        method = getattr(self._members[rank], call.method).options(num_returns=2)
        with named(f"{self.role}.{call.method}, rank {rank}"):
            first, second = method.remote(*call.args, **call.kwargs)
        return first, second

    def start(self, call: Call[W_co, R], *, timeout_s: float) -> Pending[R]:
        """Call every rank with the same arguments and do not wait."""
        return self.start_each([call] * len(self), timeout_s=timeout_s)

    def start_each(self, calls: Sequence[Call[W_co, R]], *, timeout_s: float) -> Pending[R]:
        """Call every rank with its own arguments, in the order of `ranks`, and do not wait."""
        refs = [self.send(rank, call) for rank, call in zip(self.ranks, calls, strict=True)]
        return self._pending(calls, refs, timeout_s)

    def start_pairs(
        self, calls: Sequence[Call[W_co, tuple[A, B]]], *, timeout_s: float
    ) -> tuple[list[Awaitable[A]], Pending[B]]:
        """Call every rank with its own arguments, for answers of two values, and do not wait.

        Returns:
            References to the first values, which stay in the object store, and the second values.
        """
        pairs = [self.send_pair(rank, call) for rank, call in zip(self.ranks, calls, strict=True)]
        seconds = self._pending(calls, [second for _, second in pairs], timeout_s)
        return [first for first, _ in pairs], seconds

    def _pending(
        self, calls: Sequence[Call[Any, Any]], refs: Sequence[Awaitable[R]], timeout_s: float
    ) -> Pending[R]:
        method = calls[0].method if calls else "nothing"  # a group may be empty
        return Pending(self.role, method, refs, timeout_s, self.ranks)

    def start_one(self, rank: int, call: Call[W_co, R], *, timeout_s: float) -> Pending[R]:
        """Call one rank and do not wait."""
        return Pending(self.role, call.method, [self.send(rank, call)], timeout_s, [rank])

    def call(self, call: Call[W_co, R], *, timeout_s: float) -> list[R]:
        """Call every rank, wait for all answers, and return them in rank order."""
        return self.start(call, timeout_s=timeout_s).result()

    def call_first(self, call: Call[W_co, R], *, timeout_s: float) -> R:
        """Call rank 0 alone, wait for its answer, and return it."""
        return self.start_one(0, call, timeout_s=timeout_s).result()[0]

    def put(self, value: Any) -> Any:
        """Store a value; return a reference for many calls, so that each node gets it once."""
        with named(f"{self.role}, a value for its calls"):
            return ray.put(value)

    def ready(self, refs: Sequence[Awaitable[R]], *, timeout_s: float) -> list[Awaitable[R]]:
        """Return the references that have an answer; wait up to `timeout_s` s for the first."""
        first, waiting = ray.wait(list(refs), num_returns=1, timeout=timeout_s)
        if not first or not waiting:
            return list(first)
        more, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [*first, *more]

    def answer(self, ref: Awaitable[R]) -> R:
        """Return the answer of a call, or raise its exception."""
        answered: R = ray.get(ref)
        return answered

    def kill(self, rank: int) -> None:
        """End a process that may hang; Ray restarts it if it was launched with `restarts`."""
        ray.kill(self._members[rank], no_restart=False)

    def stop(self, *, last: Call[W_co, object] | None = None, timeout_s: float = 20.0) -> None:
        """End the processes, after a last call if one is given; raise nothing."""
        if last is not None:
            with contextlib.suppress(WorkerError, ray.exceptions.RayError):
                self.call(last, timeout_s=timeout_s)
        for handle in self.handles:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(handle)
