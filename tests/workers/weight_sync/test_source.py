"""The source under ZeRO 0 to 3: names, dtypes, and slices that make up the whole."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from workers.engines.zero.weights import ParameterMeta, ZeroSource, expected_names
from workers.weight_sync.layout import Layout


class Tied(nn.Module):
    """Embedding [7, 3], a bias-free layer [5, 3] and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.layer = nn.Linear(3, 5, bias=False)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight


def test_tied_parameters_appear_once():
    module = Tied()
    assert expected_names(module) == ["embed.weight", "layer.weight"]
    assert [name for name, _ in ZeroSource(module)] == ["embed.weight", "layer.weight"]


def test_metadata_agrees_with_iteration_after_cast_and_rename():
    source = ZeroSource(Tied(), dtype=torch.bfloat16, rename=lambda name: f"model.{name}")
    metas = source.metadata()
    assert metas[0] == ParameterMeta(name="model.embed.weight", dtype=torch.bfloat16, shape=(7, 3))
    for meta, (name, tensor) in zip(metas, source, strict=True):
        assert (meta.name, meta.dtype, meta.shape) == (name, tensor.dtype, tuple(tensor.shape))


@pytest.mark.parametrize("world_size", [1, 2, 4, 30])
def test_replicated_parameters_are_divided_without_gap_or_overlap(world_size):
    module = Tied()
    whole = {name: torch.full((p.numel(),), torch.nan) for name, p in module.named_parameters()}
    for rank in range(world_size):
        for shard in ZeroSource(module, rank=rank, world_size=world_size).shards():
            target = whole[shard.name][shard.offset : shard.offset + shard.flat.numel()]
            assert target.isnan().all()
            target.copy_(shard.flat)
    for name, parameter in module.named_parameters():
        assert torch.equal(whole[name], parameter.detach().view(-1))


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 2\), got 2"):
        ZeroSource(Tied(), rank=2, world_size=2)


def test_layout_survives_the_wire_and_aligns_every_tensor():
    layout = Layout.of(ZeroSource(Tied()).metadata())
    assert layout.offsets == (0, 128)  # 21 floats take 84 bytes, rounded up to 64s
    assert layout.num_bytes == 192  # 15 floats take 60
    assert Layout.from_dict(layout.to_dict()) == layout
    with pytest.raises(ValueError, match="nothing to publish"):
        Layout.of([])


def two_ranks(script, *arguments):
    """What two processes of a script print, which must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = Path(__file__).with_name(script)
    root = Path(__file__).parents[3]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(path), *arguments],
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(root),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = []
    try:
        outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, output[-3000:]
    return outputs


def test_zero3_slices_of_two_ranks_are_the_gathered_parameters(tiny_model):
    """Two processes with real DeepSpeed; see `zero3_rank.py`."""
    for output in two_ranks("zero3_rank.py", str(tiny_model)):
        assert "slices equal" in output


def test_twenty_connections_of_two_ranks_leave_no_process_group():
    """Two processes whose own group is not gloo's; see `shm_rank.py`."""
    for output in two_ranks("shm_rank.py"):
        assert "as before" in output
