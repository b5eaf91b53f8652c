"""Publication through vLLM's own transports, `nccl` (packed broadcast) and `ipc` (same device).

Adds the two things that they lack: the label of a publication, and fingerprints of what was sent.
Runs in the learner's ranks; needs CUDA, and imports vLLM into these processes. Moves no tensor
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from workers.engines.zero.weights import ParameterMeta, ZeroSource
from workers.weight_sync.endpoint import (
    PublishReport,
    Stopwatch,
    TrainerEndpoint,
    WeightSyncClient,
)
from workers.weight_sync.fingerprint import Fingerprint, fingerprint
from workers.weight_sync.gloo import own_address

#: Bytes of the buffer through which vLLM's `ipc` hands tensors over; it refuses larger tensors.
IPC_BUFFER_BYTES = 1 << 30


def ipc_buffer_bytes(metas: Sequence[ParameterMeta]) -> int:
    """Bytes of device memory that `ipc` takes on the sender: room for the largest tensor.

    The embedding of a 7B model with 152 thousand tokens is larger than vLLM's default of 1 GiB.
    """
    return max(IPC_BUFFER_BYTES, *(meta.num_bytes for meta in metas))


class _LabellingClient:
    """Client that hands vLLM's calls on, with the label that vLLM's trainer engines do not send."""

    def __init__(self, client: WeightSyncClient) -> None:
        self._client = client
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._client.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self._client.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._client.update_weights(update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._client.finish_weight_update(weight_version or str(self.version))


class _FingerprintingSource:
    """Source that fingerprints the tensors it yields, on the sender."""

    def __init__(self, source: ZeroSource) -> None:
        self._source = source
        self.fingerprints: dict[str, Fingerprint] = {}

    def metadata(self) -> list[ParameterMeta]:
        return self._source.metadata()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self.fingerprints = {}
        for name, tensor in self._source:
            if self._source.rank == 0:
                self.fingerprints[name] = fingerprint(tensor.view(-1))
            yield name, tensor


class BuiltinEndpoint(TrainerEndpoint):
    """Trainer's end of vLLM's own transports.

    Args:
        name: "nccl" or "ipc".
        source: this rank's weights.
        client: the way to the engines, on rank 0.
        num_engines: engines, with ids 0 to num_engines - 1.
        workers_per_engine: tensor-parallel size of each.
        port: free port on this node for the NCCL rendezvous.
        host: this node's address as the engines see it; None reads the system's.
    """

    def __init__(
        self,
        name: str,
        *,
        source: ZeroSource,
        client: WeightSyncClient | None,
        num_engines: int,
        workers_per_engine: int = 1,
        port: int = 29555,
        host: str | None = None,
    ) -> None:
        super().__init__(source=source, client=client)
        self.name = name
        self._world_size = 1 + num_engines * workers_per_engine
        self._host, self._port = host or own_address(), port
        self._labels = _LabellingClient(client) if client is not None else None
        self._stream = _FingerprintingSource(source)
        self._engine: Any = None

    def connect(self) -> None:
        """Connect to all engines."""
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        info: Any
        if self.name == "nccl":
            info = NCCLTrainerInitInfo(
                master_address=self._host,
                master_port=self._port,
                world_size=self._world_size,
                rank=self.rank,
            )
        else:
            info = IPCTrainerInitInfo(
                packed=True,
                rank=self.rank,
                packed_buffer_size_bytes=ipc_buffer_bytes(self.source.metadata()),
            )
        client: Any = self._labels
        self._engine = WeightTransferTrainerFactory.trainer_init(
            info, client=client, source=self._stream
        )

    def publish(self, version: int) -> PublishReport:
        """See `TrainerEndpoint.publish`; fingerprints on rank 0 only."""
        if self._engine is None:
            raise RuntimeError("publish before connect: call connect() on every rank first")
        if self._labels is not None:
            self._labels.version = version
        watch = Stopwatch()
        with watch.phase("update"):
            self._engine.send_weights()
        return PublishReport(
            version=version,
            transport=self.name,
            names=tuple(self._stream.fingerprints),
            num_bytes=sum(meta.num_bytes for meta in self.source.metadata()),
            seconds=watch.total(),
            fingerprints=dict(self._stream.fingerprints),
        )

    def shutdown(self) -> None:
        """Destroy the communicators."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()
