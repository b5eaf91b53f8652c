"""Publication through vLLM's own transports, `nccl` (packed broadcast) and `ipc` (same device).

Adds what they lack: the label of a publication, fingerprints of what was sent, and for `nccl` a
rendezvous without a port of ours. vLLM's own rendezvous is a TCP store on a port that the caller
names: a second run on the node finds the port taken, its engines may read the store of the first,
and they unpickle what they read. Here NCCL chooses interface and port by itself, in the id that it
makes for every connection; the id reaches the engines through Ray.

Runs in the learner's ranks; needs CUDA, and imports vLLM into these processes. Moves no tensor
itself.
"""

from __future__ import annotations

import base64
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from workers.engines.zero.weights import ParameterMeta, ZeroSource
from workers.weight_sync.endpoint import (
    PublishReport,
    Route,
    Stopwatch,
    TrainerEndpoint,
    WeightSyncClient,
    run_in_thread,
)
from workers.weight_sync.fingerprint import Fingerprint, fingerprint

#: Bytes of the buffer through which vLLM's `ipc` hands tensors over; it refuses larger tensors.
IPC_BUFFER_BYTES = 1 << 30


def ipc_buffer_bytes(metas: Sequence[ParameterMeta]) -> int:
    """Return the bytes of device memory that `ipc` takes on the sender: room for any tensor.

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
    """Trainer's end of one of vLLM's own transports."""

    def __init__(
        self,
        *,
        source: ZeroSource,
        client: WeightSyncClient | None,
        route: Route,
    ) -> None:
        super().__init__(source=source, client=client, route=route)
        self._labels = _LabellingClient(client) if client is not None else None
        self._stream = _FingerprintingSource(source)
        self._engine: Any = None

    def connect(self) -> None:
        """Connect to all engines; a second call leaves the first connection before."""
        self.shutdown()
        self._engine = self._open(self._labels, self._stream)

    @abstractmethod
    def _open(self, client: Any, source: Any) -> Any:
        """Return vLLM's trainer engine, connected."""

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


class NcclEndpoint(BuiltinEndpoint):
    """Trainer's end of vLLM's packed NCCL broadcast, from GPU to GPU.

    Reads the route's `engine_nodes` and `workers_per_engine`.
    """

    name = "nccl"

    def _open(self, client: Any, source: Any) -> Any:
        from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary
        from vllm.distributed.weight_transfer import nccl_common
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

        sender = NCCLTrainerWeightTransferEngine(
            client=client, source=source, is_sender=self.rank == 0
        )
        if self.rank != 0:
            return sender  # gathers together with rank 0, which alone sends
        world_size = 1 + len(self.route.engine_nodes) * self.route.workers_per_engine
        identity = bytes(NCCLLibrary().ncclGetUniqueId().internal)
        info = nccl_common.NCCLWeightTransferInitInfo(
            nccl_unique_id_b64=base64.b64encode(identity).decode(),
            rank_offset=1,  # of the engine in place 0 (VLLMWeights)
            world_size=world_size,
            packed=sender.packed,
            packed_buffer_size_bytes=sender.packed_buffer_size_bytes,
            packed_num_buffers=sender.packed_num_buffers,
        )
        answer = run_in_thread(
            client.init_weight_transfer_engine, nccl_common.worker_init_payload(info)
        )
        sender.model_update_group = nccl_common.uid_init_process_group(
            identity, 0, world_size, torch.accelerator.current_device_index()
        )
        answer.result()
        return sender


class IpcEndpoint(BuiltinEndpoint):
    """Trainer's end of vLLM's CUDA IPC handles, for engines on the trainer's GPU."""

    name = "ipc"

    def _open(self, client: Any, source: Any) -> Any:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        info = IPCTrainerInitInfo(
            packed=True,
            rank=self.rank,
            packed_buffer_size_bytes=ipc_buffer_bytes(self.source.metadata()),
        )
        return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
