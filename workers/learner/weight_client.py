"""How the trainer's rank 0 reaches every engine's weight-transfer calls through Ray.

The four synchronous methods of vLLM's weight-sync client; each calls all engines at once and
returns when all have answered, or raises an error that names the call and the engines. An engine
that died is left out from then on and counted as lost; the driver restarts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.worker_group import Pending


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where publications go, and how.

    Attributes:
        transport: name of a row of `conf/transports.py`.
        dtype: what the engines compute in.
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
    """Rollout workers as one weight-sync client.

    Args:
        engines: handles of the rollout workers, by number.
        timeout_s: longest wait for one call.
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
        """Engines connect to the trainer, each in its place among those that do."""
        method = "init_weight_transfer_engine"
        refs = [
            engine.engine_call.remote(method, init_info, place)
            for place, engine in enumerate(self._engines.values())
        ]
        self._await(method, refs)

    def start_weight_update(self) -> None:
        """Engines freeze what they are sampling."""
        self._call("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Engines load the weights."""
        self._call("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Engines label the weights and go on sampling."""
        self._call("finish_weight_update", weight_version)
