"""Call the weight-transfer methods of every engine through Ray, from the learner's rank 0.

The client has the four synchronous methods of vLLM's weight-sync client; each method calls all
engines at once and returns when all have answered, or raises an error that names the call and the
engines. An engine that died is left out from then on and counted as lost; the driver, not this
module, restarts it. The weights themselves travel through a transport.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.worker_group import Pending


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
        transport: name of the weight transport.
        dtype: the dtype in which the engines compute.
        engines: handles of the rollout workers, by number.
        nodes: ids of their nodes, by number.
        workers_per_engine: tensor-parallel size of each.
        timeout_s: longest wait for one step of a publication.
    """

    transport: str
    dtype: str
    engines: Mapping[int, Any]
    nodes: Mapping[int, str]
    workers_per_engine: int
    timeout_s: float


class EngineClient:
    """Weight-sync client of all rollout workers.

    Args:
        engines: handles of the rollout workers, by number.
        timeout_s: longest wait for one call.

    Attributes:
        lost: numbers of the engines that died.
    """

    def __init__(self, engines: Mapping[int, Any], *, timeout_s: float) -> None:
        self._engines, self._timeout_s = dict(engines), timeout_s
        self.lost: set[int] = set()

    def _call(self, method: str, *args: Any) -> None:
        refs = [engine.engine_call.remote(method, *args) for engine in self._engines.values()]
        self._await(method, refs)

    def _await(self, method: str, refs: list[Any]) -> None:
        numbers = list(self._engines)
        living = Pending("rollout", method, refs, self._timeout_s, numbers).survivors()
        for number in numbers:
            if number not in living:
                del self._engines[number]
                self.lost.add(number)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect every engine to the trainer, each by its position among the living engines."""
        method = "init_weight_transfer_engine"
        refs = [
            engine.engine_call.remote(method, init_info, place)
            for place, engine in enumerate(self._engines.values())
        ]
        self._await(method, refs)

    def start_weight_update(self) -> None:
        """Pause sampling in every engine; running requests are kept."""
        self._call("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load the weights in every engine."""
        self._call("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Label the weights in every engine and resume sampling."""
        self._call("finish_weight_update", weight_version)
