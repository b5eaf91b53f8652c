"""Export and reload, and an optimizer's state that leaves the device; without DeepSpeed."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workers.data.packing import PackedBatch, pack_sequences
from workers.engines.model.lora import lora_layers
from workers.engines.model.lora_settings import LoraSettings
from workers.engines.model.policy_model import PolicyModel, load_policy_model
from workers.engines.zero.hf_export import export_hf
from workers.engines.zero.lora_weights import export_source
from workers.engines.zero.optimizers import build_optimizer, move_states
from workers.engines.zero.settings import OptimizerSettings

pytestmark = pytest.mark.gpu


def score(policy: PolicyModel, batch: PackedBatch) -> torch.Tensor:
    """Log-probs [N]."""
    logprobs: torch.Tensor = policy(
        batch.tokens, batch.position_ids, batch.cu_seqlens, batch.loss_mask
    )[0]
    return logprobs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", [None, LoraSettings(rank=4, alpha=8.0)])
def test_an_export_is_the_policy(
    device: torch.device,
    folder: Path,
    tmp_path: Path,
    sequences: list[list[int]],
    dtype: torch.dtype,
    adapter: LoraSettings | None,
) -> None:
    policy = load_policy_model(folder, adapter=adapter).to(device)
    with torch.no_grad():
        for _, parameter in policy.hf_named_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    export_hf(
        tmp_path / "out",
        export_source(policy.model, rank=0, world_size=1, dtype=dtype),
        config=policy.model.config,
        source=folder,
        dtype=dtype,
        writes=True,
        shard_bytes=100_000,
    )
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    loaded = load_policy_model(tmp_path / "out", dtype=dtype)
    weights = {name: parameter.detach() for name, parameter in policy.model.named_parameters()}
    for name, parameter in loaded.model.named_parameters():
        own = weights.get(name)
        if own is not None:  # an adapted layer is another matrix under this name
            assert torch.equal(parameter, own.to(dtype).cpu()), name
    batch = pack_sequences(sequences).to(device)
    with torch.no_grad():
        want, got = score(policy, batch), score(loaded.float().to(device), batch)
    bound = 2e-5 if dtype == torch.float32 else 0.5
    torch.testing.assert_close(got, want, rtol=0, atol=bound)
    assert bool(lora_layers(policy.model)) == (adapter is not None)


def test_state_that_was_moved_away_and_back_trains_the_same(
    device: torch.device, folder: Path, sequences: list[list[int]]
) -> None:
    batch = pack_sequences(sequences).to(device)
    first = load_policy_model(folder).to(device)
    second = copy.deepcopy(first)
    results = []
    for policy, moves in ((first, False), (second, True)):
        optimizer = build_optimizer(OptimizerSettings(lr=1e-3), policy)
        engine: Any = SimpleNamespace(optimizer=optimizer)
        for _ in range(3):
            score(policy, batch).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if moves and device.type == "cuda":
                before = torch.cuda.memory_allocated()
                move_states(engine, torch.device("cpu"), stage=0)
                freed = before - torch.cuda.memory_allocated()
                moments = 8 * sum(p.numel() for _, p in policy.hf_named_parameters())
                assert freed >= moments  # two float32 moments of every weight
                move_states(engine, device, stage=0)
        with torch.no_grad():
            results.append(score(policy, batch))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)
