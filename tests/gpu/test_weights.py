"""Weights on their way to an engine on the same device: layout, fingerprints, CUDA IPC.

What vLLM's `ipc` transport does with them is vLLM's; its packing is tested where it is installed.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from workers.engines.zero.weights import ZeroSource
from workers.weight_sync.builtin import ipc_buffer_bytes
from workers.weight_sync.fingerprint import fingerprint
from workers.weight_sync.layout import Layout

pytestmark = pytest.mark.gpu

GIB = 1 << 30


class Weights(nn.Module):
    """Qwen2.5-7B's embedding, 1.09 GB in bf16, between small tensors; on CPU a small one."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        vocab = 152_064 if device.type == "cuda" else 152
        shapes = {"norm": (3584,), "embed": (vocab, 3584), "odd": (3, 5), "head": (257, 64)}
        torch.manual_seed(0)
        for name, shape in shapes.items():
            drawn = torch.randn(shape, device=device, dtype=torch.bfloat16)
            self.register_parameter(name, nn.Parameter(drawn))


@pytest.fixture(scope="module")
def source(device: torch.device) -> ZeroSource:
    """The module as a publication reads it."""
    return ZeroSource(Weights(device))


def filled(source: ZeroSource, device: torch.device) -> tuple[Layout, Tensor]:
    """All tensors in one byte buffer."""
    layout = Layout.of(source.metadata())
    buffer = torch.empty(layout.num_bytes, dtype=torch.uint8, device=device)
    places = dict(layout.views(buffer))
    for name, tensor in source:
        places[name].copy_(tensor)
    return layout, buffer


def test_layout_and_fingerprints_on_the_device(source: ZeroSource, device: torch.device) -> None:
    layout, buffer = filled(source, device)
    if device.type == "cuda":
        assert layout.num_bytes > GIB
    marks = layout.fingerprints(buffer)
    for name, tensor in source:
        # Integers wrap on a device as they do on a CPU.
        assert (
            marks[name] == fingerprint(tensor.reshape(-1)) == fingerprint(tensor.reshape(-1).cpu())
        )
    dict(layout.views(buffer))["embed"][-1, -1] += 1
    changed = layout.fingerprints(buffer)
    assert [name for name in marks if changed[name] != marks[name]] == ["embed"]


def test_the_buffer_holds_the_largest_tensor(source: ZeroSource, device: torch.device) -> None:
    largest = max(meta.num_bytes for meta in source.metadata())
    assert ipc_buffer_bytes(source.metadata()) == max(GIB, largest)


def receive(connection: Any) -> None:
    """Opens the sender's memory and answers with the fingerprints of what is there."""
    arguments, wire = connection.recv()
    buffer = rebuild_cuda_tensor(*arguments)
    connection.send(Layout.from_dict(wire).fingerprints(buffer))
    del buffer
    torch.cuda.synchronize()
    connection.recv()


def test_another_process_reads_the_same_bytes(source: ZeroSource, device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("CUDA IPC needs CUDA")
    layout, buffer = filled(source, device)
    mine = layout.fingerprints(buffer)
    context = mp.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=receive, args=(there,), daemon=True)
    process.start()
    _, arguments = reduce_tensor(buffer)
    here.send((arguments, layout.to_dict()))
    assert here.poll(120), "the receiver did not answer within 120 s"
    assert here.recv() == mine
    here.send(None)
    process.join(60)
    assert process.exitcode == 0


def test_vllm_packs_a_tensor_above_one_gibibyte(
    source: ZeroSource, device: torch.device, say: Callable[[str], None]
) -> None:
    if device.type != "cuda":
        pytest.skip("vLLM's packing allocates on CUDA")
    packing = pytest.importorskip(
        "vllm.distributed.weight_transfer.packed_tensor", reason="vLLM is not installed"
    )

    def pack(size: int) -> dict[str, Any]:
        importer, marks = packing.PackedBufferImporter(), {}
        identity = str(torch.cuda.get_device_properties(device).uuid)
        chunks = packing.packed_ipc_producer(
            iterator=iter(source),
            gpu_uuid=identity,
            post_iter_func=lambda item: item[1],
            buffer_size_bytes=size,
        )
        for number, chunk in enumerate(chunks):
            say(f"chunk {number}: {', '.join(chunk.names)}, {sum(chunk.tensor_sizes)} bytes")
            marks |= dict.fromkeys(chunk.names)
        importer.close()
        return marks

    with pytest.raises(ValueError, match="exceeds buffer_size_bytes"):
        pack(packing.DEFAULT_PACKED_BUFFER_SIZE_BYTES)
    sent = pack(ipc_buffer_bytes(source.metadata()))
    assert list(sent) == [meta.name for meta in source.metadata()]
