"""What vLLM's own transports are told, up to where they need CUDA."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from workers.engines.zero.weights import ParameterMeta, ZeroSource
from workers.weight_sync.builtin import IpcEndpoint, ipc_buffer_bytes
from workers.weight_sync.endpoint import Route

GIB = 1 << 30


def embedding(vocab: int, hidden: int) -> ParameterMeta:
    """An embedding in bf16."""
    return ParameterMeta(name="embed", dtype=torch.bfloat16, shape=(vocab, hidden))


def test_the_buffer_has_room_for_the_largest_tensor() -> None:
    # Qwen2.5-7B's embedding: 152,064 x 3,584 x 2 bytes, above vLLM's default of 1 GiB.
    assert ipc_buffer_bytes([embedding(152_064, 3584), embedding(10, 3584)]) == 1_089_994_752
    assert ipc_buffer_bytes([embedding(151_936, 1024)]) == GIB


def test_ipc_is_told_the_size_of_its_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own settings, as far as the factory that would allocate on CUDA."""
    factory = pytest.importorskip("vllm.distributed.weight_transfer.factory")
    packing = pytest.importorskip("vllm.distributed.weight_transfer.packed_tensor")
    told: list[Any] = []
    monkeypatch.setattr(
        factory.WeightTransferTrainerFactory,
        "trainer_init",
        lambda info, *, client, source: told.append(info),
    )
    large = nn.Linear(1, 1)
    large.weight = nn.Parameter(torch.empty(152_064, 3584, dtype=torch.bfloat16, device="meta"))
    source = ZeroSource(large)
    client: Any = SimpleNamespace()  # not called before the first publication
    route = Route(run_id="r", node="here", engine_nodes=["here"])
    IpcEndpoint(source=source, client=client, route=route).connect()
    (info,) = told
    assert info.packed
    assert info.packed_buffer_size_bytes == 1_089_994_752
    assert info.packed_buffer_size_bytes > packing.DEFAULT_PACKED_BUFFER_SIZE_BYTES
