"""The engines' end of the `shm` and `gloo` transports; runs inside vLLM's workers.

Data flows: a flat byte buffer of the whole model arrives, and within the same call every tensor is
loaded into the live model. Nothing is spread over several calls, so that the engine can never take
a step on half a model; vLLM's own layerwise reload re-packs weights where a kernel needs it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from workers.weight_sync.adapters import is_adapter
from workers.weight_sync.fingerprint import Fingerprint, fingerprint
from workers.weight_sync.gloo import BroadcastGroup, pieces
from workers.weight_sync.layout import Layout
from workers.weight_sync.shm import SharedBuffer


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Paths of the shared buffers, and how tensors lie in each."""

    paths: list[str]
    layout: dict[str, Any]


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """Which buffer holds this publication, and the tensors in it that were sent."""

    slot: int
    names: list[str]


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Where the group meets, and which of its ranks is this engine's first worker."""

    host: str
    port: int
    rank_offset: int
    world_size: int
    timeout_s: float
    layout: dict[str, Any]


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The tensors that are about to be broadcast."""

    names: list[str]


def refresh_heads(model: nn.Module) -> None:
    """Re-packs output heads from the weights they share with the embeddings.

    vLLM's CPU kernels keep a packed copy of a head. A tied head is not loaded by itself, so that a
    reload leaves that copy at the old weights.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


class FlatReceiver(WeightTransferEngine[Any, Any]):
    """Loads a model from one flat buffer, atomically against engine steps."""

    def __init__(
        self,
        config: WeightTransferConfig,
        vllm_config: VllmConfig,
        device: torch.device,
        model: nn.Module,
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._layout: Layout | None = None
        self._buffer: Tensor | None = None  # [num_bytes], the last publication
        self._names: frozenset[str] = frozenset()

    def start_weight_update(self) -> None:
        """Nothing: see `receive_weights`."""

    def finish_weight_update(self) -> None:
        """Nothing: see `receive_weights`."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receives and loads one publication."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":  # synchronizing raises where there is no accelerator
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Any) -> None:
        """Fetches the buffer, loads all of it and re-packs."""
        if self._layout is None:
            raise RuntimeError("update before init: call init_weight_transfer_engine first")
        self._buffer = self._fetch(update_info)
        self._names = frozenset(update_info.names)
        if is_adapter(self._names):
            return  # beside weights that stay; `apply_adapter` follows vLLM's end of the update
        initialize_layerwise_reload(self.model)
        self.model.load_weights((name, tensor.to(self.device)) for name, tensor in self.received())
        finalize_layerwise_reload(self.model, self.model_config)
        refresh_heads(self.model)

    def received(self) -> Iterator[tuple[str, Tensor]]:
        """Yields what the last publication contained, on the host."""
        if self._layout is None or self._buffer is None:
            return
        for name, tensor in self._layout.views(self._buffer):
            if name in self._names:
                yield name, tensor

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Fingerprints what arrived, from the bytes that were loaded."""
        return {name: fingerprint(tensor.reshape(-1)) for name, tensor in self.received()}

    @abstractmethod
    def _fetch(self, update_info: Any) -> Tensor:
        """Returns the byte buffer [num_bytes] of this publication."""


class ShmReceiver(FlatReceiver):
    """The engine's end of the shared-memory transport."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        """Maps the trainer's buffers; again if the trainer restarted."""
        self._layout = Layout.from_dict(init_info.layout)
        self._slots: list[Tensor] = []
        for path in init_info.paths:
            shared = SharedBuffer.open(path, self._layout.num_bytes, writable=False)
            shared.close()  # the mapping stays
            self._slots.append(shared.data)

    def _fetch(self, update_info: ShmUpdateInfo) -> Tensor:
        return self._slots[update_info.slot]

    def shutdown(self) -> None:
        """Unmaps the buffers."""
        self._slots, self._buffer, self._layout = [], None, None


class GlooReceiver(FlatReceiver):
    """The engine's end of the gloo transport."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Joins the trainer's group."""
        self._layout = Layout.from_dict(init_info.layout)
        rank = init_info.rank_offset + self.parallel_config.rank
        if rank >= init_info.world_size:
            raise ValueError(
                f"this worker would be rank {rank} of {init_info.world_size}: give the engines "
                f"places from 0 and tell the trainer how many there are"
            )
        self._group: BroadcastGroup | None = BroadcastGroup(
            host=init_info.host,
            port=init_info.port,
            rank=rank,
            world_size=init_info.world_size,
            timeout_s=init_info.timeout_s,
        )
        self._group.join()
        self._received = torch.zeros(self._layout.num_bytes, dtype=torch.uint8)

    def _fetch(self, update_info: GlooUpdateInfo) -> Tensor:  # noqa: ARG002
        assert self._group is not None
        for begin, end in pieces(self._received.numel()):
            self._group.broadcast(self._received[begin:end])
        return self._received

    def shutdown(self) -> None:
        """Leaves the group."""
        self._group, self._buffer, self._layout = None, None, None
