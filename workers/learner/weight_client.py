"""Call the weight-transfer methods of every engine through Ray, from the learner's rank 0.

The client has the four synchronous methods of vLLM's weight-sync client; each method calls all
engines at once and returns when all have answered, or raises an error that names the call and the
engines. An engine that died is left out from then on and counted as lost; the driver, not this
module, restarts it. The weights themselves travel through a transport.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from workers.calls import Call, bind
from workers.worker_group import Pending, WorkerGroup


class WeightReceiver(Protocol):
    """A worker whose engine takes weights: of `RolloutWorker`, what this client calls."""

    async def init_weight_transfer_engine(self, init_info: dict[str, Any], place: int) -> None:
        """Connect to the trainer, in this engine's place among those that do."""

    async def start_weight_update(self) -> None:
        """Freeze what the engine is sampling."""

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load the weights."""

    async def finish_weight_update(self, weight_version: str | None) -> None:
        """Label the weights and go on sampling."""


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Engines that receive publications, and the transport to them.

    Example, two engines on one node, each on two GPUs:
        Destination(
            transport="nccl",
            dtype="bfloat16",
            engines={0: engine_0, 1: engine_1},
            nodes={0: "3f9a", 1: "3f9a"},
            workers_per_engine=2,
            timeout_s=600.0,
        )

    Attributes:
        transport: name of a row of `conf/tables/transports.py`.
        dtype: what the engines compute in.
        engines: the rollout workers, by number.
        nodes: ids of their nodes, by number.
        workers_per_engine: tensor-parallel size of each.
        timeout_s: longest wait for one step of a publication.
    """

    transport: str
    dtype: str
    engines: WorkerGroup[WeightReceiver]
    nodes: Mapping[int, str]
    workers_per_engine: int
    timeout_s: float


class EngineClient:
    """Weight-sync client of all rollout workers.

    Args:
        engines: the rollout workers, by number.
        timeout_s: longest wait for one call.

    Attributes:
        lost: numbers of the engines that died.
    """

    def __init__(self, engines: WorkerGroup[WeightReceiver], *, timeout_s: float) -> None:
        self._engines, self._timeout_s = engines.only(engines.ranks), timeout_s
        self.lost: set[int] = set()

    def _call(self, call: Call[WeightReceiver, None]) -> None:
        self._await(self._engines.start(call, timeout_s=self._timeout_s))

    def _await(self, pending: Pending[None]) -> None:
        living = pending.survivors()
        for number in self._engines.ranks:
            if number not in living:
                self._engines.remove(number)
                self.lost.add(number)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Engines connect to the trainer, each in its place among those that do."""
        init = WeightReceiver.init_weight_transfer_engine
        calls = [bind(init, init_info, place) for place in range(len(self._engines))]
        self._await(self._engines.start_each(calls, timeout_s=self._timeout_s))

    def start_weight_update(self) -> None:
        """Engines freeze what they are sampling."""
        self._call(bind(WeightReceiver.start_weight_update))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Engines load the weights."""
        self._call(bind(WeightReceiver.update_weights, update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Engines label the weights and go on sampling."""
        self._call(bind(WeightReceiver.finish_weight_update, weight_version))
