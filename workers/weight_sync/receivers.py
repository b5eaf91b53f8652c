"""Engines' end of the `shm` and `gloo` transports.

Data flows: a flat byte buffer of the whole model arrives, and within the same call every tensor is
loaded into the live model. Nothing is spread over several calls, so that the engine can never take
a step on half a model; vLLM's own layerwise reload re-packs weights where a kernel needs it. Runs
inside vLLM's workers. Checks nothing that arrived: attestation does.
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
from workers.weight_sync.broadcast import Rendezvous, pieces
from workers.weight_sync.fingerprint import Fingerprint, fingerprint
from workers.weight_sync.layout import Layout
from workers.weight_sync.shm import SharedBuffer


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Paths of the shared buffers, and the layout of the tensors in each.

    Worked example:
        paths ["/proc/4711/fd/31", "/proc/4711/fd/32"]    layout {"names": [...], ...} (`Layout`)
    """

    paths: list[str]
    layout: dict[str, Any]


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """Buffer that holds this publication, and the tensors in it that were sent.

    Worked example, the fourth publication:
        slot 1    names ["model.embed_tokens.weight", "model.norm.weight", ...]
    """

    slot: int
    names: list[str]


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Address of the trainer, the holder of every engine's copy, and the place of this engine.

    Worked example, engine 2 of three, of which 0 stands on the trainer's node and 1 and 2 on
    another:
        host "10.0.0.4"    port 40127    holders [-1, 1, 1]    place 2    timeout_s 300.0
        layout {"names": [...], ...} (`Layout`)
    """

    host: str
    port: int
    holders: list[int]
    place: int
    timeout_s: float
    layout: dict[str, Any]


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """Tensors that are about to be broadcast, and the number of this round.

    Worked example, the fourth round of a connection:
        names ["model.embed_tokens.weight", "model.norm.weight", ...]    number 4
    """

    names: list[str]
    number: int


def refresh_heads(model: nn.Module) -> None:
    """Pack output heads again from the weights they share with the embeddings.

    vLLM's CPU kernels keep a packed copy of a head. A tied head is not loaded by itself, so that a
    reload leaves that copy at the old weights.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


class FlatReceiver(WeightTransferEngine[Any, Any]):
    """Receiver that loads a model from one flat buffer, atomically against engine steps."""

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
        """Do nothing: see `receive_weights`."""

    def finish_weight_update(self) -> None:
        """Do nothing: see `receive_weights`."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and load one publication."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":  # synchronizing raises where there is no accelerator
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Any) -> None:
        """Fetch the buffer, load all of it and pack again.

        Raises:
            RuntimeError: an update before `init_weight_transfer_engine`.
        """
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
        """Yield the tensors of the last publication, on the host."""
        if self._layout is None or self._buffer is None:
            return
        for name, tensor in self._layout.views(self._buffer):
            if name in self._names:
                yield name, tensor

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Fingerprint what arrived, from the bytes that were loaded."""
        return {name: fingerprint(tensor.reshape(-1)) for name, tensor in self.received()}

    @abstractmethod
    def _fetch(self, update_info: Any) -> Tensor:
        """Return the byte buffer [num_bytes] of this publication."""


class ShmReceiver(FlatReceiver):
    """Engine's end of the shared-memory transport."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        """Map the trainer's buffers; again if the trainer restarted."""
        self._layout = Layout.from_dict(init_info.layout)
        self._slots: list[Tensor] = []
        for path in init_info.paths:
            shared = SharedBuffer.open(path, self._layout.num_bytes, writable=False)
            shared.close()  # the mapping stays
            self._slots.append(shared.data)

    def _fetch(self, update_info: ShmUpdateInfo) -> Tensor:
        return self._slots[update_info.slot]

    def shutdown(self) -> None:
        """Unmap the buffers."""
        self._slots, self._buffer, self._layout = [], None, None


class GlooReceiver(FlatReceiver):
    """Engine's end of the gloo transport.

    The first worker of a node's first engine receives, into memory that all others there read.
    """

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    _rendezvous: Rendezvous | None = None
    _shared: SharedBuffer | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the trainer's rendezvous, as holder of a copy or as one of its readers.

        Raises:
            ValueError: a place beyond those that the trainer knows.
        """
        self._layout = Layout.from_dict(init_info.layout)
        if init_info.place >= len(init_info.holders):
            raise ValueError(
                f"this engine would be in place {init_info.place} of {len(init_info.holders)}: "
                f"give the engines places from 0 and tell the trainer where each stands"
            )
        self._holder = init_info.holders[init_info.place]
        self._holds = self._holder == init_info.place and self.parallel_config.rank == 0
        self._rendezvous = Rendezvous(
            host=init_info.host,
            port=init_info.port,
            holders=init_info.holders,
            place=init_info.place,
            timeout_s=init_info.timeout_s,
        )
        size = self._layout.num_bytes
        if self._holds:
            self._shared = SharedBuffer.create("ballast-received", size)
            self._path = self._shared.path
            self._rendezvous.set_path(self._path)
            self._rendezvous.join()
        else:
            self._path = self._rendezvous.wait_for_path(self._holder)
            self._shared = SharedBuffer.open(self._path, size, writable=False)
            self._shared.close()  # the mapping stays

    def _fetch(self, update_info: GlooUpdateInfo) -> Tensor:
        assert self._rendezvous is not None and self._shared is not None
        if not self._holds:
            self._rendezvous.wait(self._holder, update_info.number, self._path)
            return self._shared.data
        try:
            for begin, end in pieces(self._shared.data.numel()):
                self._rendezvous.broadcast(self._shared.data[begin:end])
        except RuntimeError:
            self._rendezvous.leave()
            raise
        self._rendezvous.mark_complete(update_info.number)
        return self._shared.data

    def shutdown(self) -> None:
        """Leave the rendezvous, and give back the memory."""
        if self._shared is not None:
            self._shared.close()
        self._rendezvous, self._shared, self._buffer, self._layout = None, None, None, None
