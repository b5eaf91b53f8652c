"""Common part of every transport on the trainer's side: the round trip of one publication.

Data flows: every rank stages or sends its part of the weights, rank 0 alone calls the engines
through the client, and a `PublishReport` records what was sent. Runs in the learner's ranks; the
report goes to the driver. Not a transport.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor

from workers.engines.zero.weights import ZeroSource
from workers.weight_sync.fingerprint import Fingerprint

COPY_BYTES = 256 << 20  # enough to leave every cache


class WeightSyncClient(Protocol):
    """Client of every engine's weight-transfer calls; each call returns when all engines have.

    vLLM's own protocol. The implementation bounds every wait.
    """

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect every engine to the trainer."""

    def start_weight_update(self) -> None:
        """Open an update on every engine."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Let every engine receive and load."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Close the update and label the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """The way from a trainer rank to the engines, of which each transport reads its part.

    Example: `Route(run_id="run", engine_nodes=["a", "a", "b"], node="a")` has two engines on the
    trainer's own node.

    Attributes:
        run_id: labels what the transport creates.
        engine_nodes: node of every engine, by place.
        node: of this trainer; whichever engine has the same one shares memory with it.
        workers_per_engine: tensor-parallel size of each.
        process_group: the trainer's ranks on CPU tensors (gloo); None is all ranks.
        host: rank 0's address as the engines see it; None asks the system.
        timeout_s: longest wait for an engine inside the transport.
    """

    run_id: str
    engine_nodes: Sequence[str] = ()
    node: str = ""
    workers_per_engine: int = 1
    process_group: dist.ProcessGroup | None = None
    host: str | None = None
    timeout_s: float = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishReport:
    """Report of one publication, by its sender.

    Worked example, one rank and two engines over shared memory; engine 1 died in the publication:
        version 7    transport "shm"    num_bytes 1640960    lost frozenset({1})
        names        ("model.embed_tokens.weight", "model.norm.weight", ...)
        seconds      {"stage": 0.002, "barrier": 0.0, "start": 0.003, "update": 0.021,
                      "finish": 0.004, "total": 0.030}
        fingerprints {"model.norm.weight": (8, 13), ...}    copy_bytes_per_s 9.1e9

    Attributes:
        version: label of the weights.
        transport: name of the transport.
        names: tensors sent, in order.
        num_bytes: sent to each engine.
        seconds: duration by phase; "total" is the whole.
        fingerprints: of what was sent, by name; complete on rank 0.
        copy_bytes_per_s: of a plain memory copy in the sender's process; None where weights do not
            pass through its host memory.
        lost: engines that died before all was done, by number.
    """

    version: int
    transport: str
    names: tuple[str, ...]
    num_bytes: int
    seconds: dict[str, float]
    fingerprints: dict[str, Fingerprint] = field(repr=False)
    copy_bytes_per_s: float | None = None
    lost: frozenset[int] = frozenset()


class Stopwatch:
    """Durations by phase, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def total(self) -> dict[str, float]:
        """Return all phases and the time since the watch was made."""
        return {**self.seconds, "total": time.perf_counter() - self._began}


def copy_bandwidth(buffer: Tensor) -> float:
    """Measure bytes per second of a plain copy inside a byte buffer [n].

    The copy overwrites the first half of the buffer.
    """
    half = min(buffer.numel() // 2, COPY_BYTES)
    for _ in range(2):  # the first touches the pages
        began = time.perf_counter()
        buffer[:half].copy_(buffer[half : 2 * half])
        seconds = time.perf_counter() - began
    return half / seconds


def run_in_thread(call: Any, argument: dict[str, Any]) -> Future[None]:
    """Run a blocking client call in a thread that is not joined if the transfer fails first."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weight-sync")
    future: Future[None] = executor.submit(call, argument)
    executor.shutdown(wait=False)
    return future


class TrainerEndpoint(ABC):
    """Trainer's end of a transport; one on every rank, called on all of them in step.

    Args:
        source: this rank's weights.
        client: calls the engines; used on rank 0 only, None on the others.
        route: where the engines are.
    """

    name: str

    def __init__(
        self, *, source: ZeroSource, client: WeightSyncClient | None, route: Route
    ) -> None:
        if source.rank == 0 and client is None:
            raise ValueError("rank 0 drives the engines: pass it a client")
        self.route = route
        self.source = source
        self.client = client

    @property
    def rank(self) -> int:
        """Rank of this process among the trainer's ranks."""
        return self.source.rank

    @abstractmethod
    def connect(self) -> None:
        """Connect to the engines; before the first publication, on all ranks."""

    @abstractmethod
    def publish(self, version: int) -> PublishReport:
        """Send the weights of this moment to every engine and label them.

        Returns on rank 0 when all engines use them.
        """

    @abstractmethod
    def shutdown(self) -> None:
        """Release buffers and connections; safe to call twice."""

    def _require_client(self) -> WeightSyncClient:
        assert self.client is not None, "only rank 0 drives the engines"
        return self.client
