"""Publication over TCP with gloo, for engines on other nodes without CUDA.

Rank 0 gathers the weights into one host buffer and broadcasts it piece by piece to every worker
of every engine while the rest is being gathered. All engines get the same init info; `VLLMEngine`
shifts its `rank_offset` by the engine's place, as it does for vLLM's own `nccl`.
"""

from __future__ import annotations

import socket
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workers.weight_sync.fingerprint import Fingerprint, fingerprint
from workers.weight_sync.layout import Layout
from workers.weight_sync.publication import (
    PublishReport,
    Stopwatch,
    TrainerEndpoint,
    WeightSyncClient,
)
from workers.weight_sync.source import ZeroSource

CHUNK_BYTES = 32 << 20


class BroadcastGroup:
    """A gloo group beside the process's default one: rank 0 sends, all others receive.

    Args:
        host: address of rank 0.
        port: of its store; 0 on rank 0 picks a free one.
        rank: this member.
        world_size: number of members.
        timeout_s: longest wait for any of them.
    """

    def __init__(
        self, *, host: str, port: int, rank: int, world_size: int, timeout_s: float
    ) -> None:
        timeout = timedelta(seconds=timeout_s)
        self.rank = rank
        self._world_size = world_size
        self._timeout = timeout
        self._store = dist.TCPStore(
            host, port, world_size, is_master=rank == 0, timeout=timeout, wait_for_workers=False
        )
        self._group: Any = None

    @property
    def port(self) -> int:
        """Port of the store."""
        return int(self._store.port)

    def join(self) -> None:
        """Meets the other members; blocks until all are there."""
        self._group = dist.ProcessGroupGloo(
            dist.PrefixStore("ballast", self._store), self.rank, self._world_size, self._timeout
        )

    def broadcast(self, buffer: Tensor) -> None:
        """Sends (rank 0) or fills (others) a byte buffer [n], in place."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.timeout = self._timeout
        self._group.broadcast([buffer], options).wait()


def pieces(num_bytes: int) -> list[tuple[int, int]]:
    """Cuts a buffer into (begin, end) pieces, the same on both sides."""
    return [
        (begin, min(begin + CHUNK_BYTES, num_bytes)) for begin in range(0, num_bytes, CHUNK_BYTES)
    ]


class GlooEndpoint(TrainerEndpoint):
    """The trainer's end of the gloo transport.

    Args:
        source: this rank's weights.
        client: the way to the engines, on rank 0.
        num_engines: engines, with ids 0 to num_engines - 1.
        workers_per_engine: tensor-parallel size of each.
        host: this node's address as the engines see it; None asks the system.
        timeout_s: longest wait for an engine inside the transport.
    """

    name = "gloo"

    def __init__(
        self,
        *,
        source: ZeroSource,
        client: WeightSyncClient | None,
        num_engines: int,
        workers_per_engine: int = 1,
        host: str | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        super().__init__(source=source, client=client)
        if num_engines < 1 or workers_per_engine < 1:
            raise ValueError(
                f"gloo needs at least one engine and worker, got num_engines={num_engines}, "
                f"workers_per_engine={workers_per_engine}"
            )
        self._world_size = 1 + num_engines * workers_per_engine
        self._host = host or own_address()
        self._timeout_s = timeout_s
        self._layout = Layout.of(source.metadata())
        self._group: BroadcastGroup | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def connect(self) -> None:
        """Meets all engines; after an engine restarted, call it again for all of them."""
        if self.rank != 0:
            return
        self._group = BroadcastGroup(
            host=self._host,
            port=0,
            rank=0,
            world_size=self._world_size,
            timeout_s=self._timeout_s,
        )
        if not self._buffer.numel():
            self._buffer = torch.zeros(self._layout.num_bytes, dtype=torch.uint8)
        init_info = {
            "host": self._host,
            "port": self._group.port,
            "world_size": self._world_size,
            "rank_offset": 1,  # of place 0; every engine adds its own workers' (VLLMEngine)
            "timeout_s": self._timeout_s,
            "layout": self._layout.to_dict(),
        }
        answer = _beside(self._drive().init_weight_transfer_engine, init_info)
        self._group.join()
        answer.result()

    def publish(self, version: int) -> PublishReport:
        """See `TrainerEndpoint.publish`; fingerprints on rank 0 only."""
        watch = Stopwatch()
        fingerprints: dict[str, Fingerprint] = {}
        if self.rank == 0:
            if self._group is None:
                raise RuntimeError("publish before connect: call connect() on every rank first")
            client = self._drive()
            with watch.phase("start"):
                client.start_weight_update()
            with watch.phase("update"):
                names = [meta.name for meta in self._layout.metas]
                answer = _beside(client.update_weights, {"names": names})
                fingerprints = self._send(answer)
                answer.result()
            with watch.phase("finish"):
                client.finish_weight_update(str(version))
        else:
            with watch.phase("gather"):
                for _ in self.source:
                    pass
        return PublishReport(
            version=version,
            transport=self.name,
            names=tuple(fingerprints),
            num_bytes=self._layout.num_bytes,
            seconds=watch.total(),
            fingerprints=fingerprints,
        )

    def shutdown(self) -> None:
        """Leaves the group."""
        self._group = None
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def _send(self, answer: Future[None]) -> dict[str, Fingerprint]:
        """Fills the buffer from the source and broadcasts each piece as soon as it is complete."""
        assert self._group is not None
        flat = self._layout.flat_views(self._buffer)
        ends = dict(zip(flat, (*self._layout.offsets[1:], self._layout.num_bytes), strict=True))
        remaining = pieces(self._layout.num_bytes)
        fingerprints: dict[str, Fingerprint] = {}
        for name, tensor in self.source:
            target = flat[name]
            target.copy_(tensor.view(-1))
            fingerprints[name] = fingerprint(target)
            while remaining and remaining[0][1] <= ends[name]:
                begin, end = remaining.pop(0)
                if answer.done():
                    answer.result()  # the engines refused: say so instead of waiting for them
                self._group.broadcast(self._buffer[begin:end])
        for begin, end in remaining:
            self._group.broadcast(self._buffer[begin:end])
        return fingerprints


def own_address() -> str:
    """Returns this node's address on its default route; loopback if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address; nothing is sent
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _beside(call: Any, argument: dict[str, Any]) -> Future[None]:
    """Runs a blocking client call in a thread that nobody joins if the transfer fails first."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weight-sync")
    future: Future[None] = executor.submit(call, argument)
    executor.shutdown(wait=False)
    return future
