"""A recorded pass names our modules in a trace; a pass that is not recorded has nothing of it.

Under ZeRO-3, on a chosen rank of a real run, the same is recorded in tests/e2e.
"""

import json
import pickle
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workers.data.packing import pack_sequences
from workers.engines.model.policy_model import PolicyModel
from workers.engines.zero.profiler import RankProfiler


@pytest.fixture
def policy() -> PolicyModel:
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return PolicyModel(LlamaForCausalLM(config))


def forward_and_backward(policy: PolicyModel) -> None:
    batch = pack_sequences([[3, 9, 4, 11], [5, 6, 7]])
    logprobs, _ = policy(batch.tokens, batch.position_ids, batch.cu_seqlens, batch.loss_mask)
    logprobs.sum().backward()


def num_hooks(policy: PolicyModel) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in policy.modules())


@pytest.mark.parametrize("memory", [False, True])
def test_a_trace_names_every_module_of_each_pass(
    policy: PolicyModel, tmp_path: Path, memory: bool
) -> None:
    before = num_hooks(policy)
    recording = RankProfiler(policy, torch.device("cpu"), tmp_path / "one", memory=memory)
    for _ in range(2):
        forward_and_backward(policy)
    recording.finish()
    assert num_hooks(policy) == before
    forward_and_backward(policy)
    assert [path.name for path in tmp_path.iterdir()] == ["one.trace.json"]
    events = json.loads((tmp_path / "one.trace.json").read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    spans = [event for event in events if event.get("cat") == "user_annotation"]
    for module in (
        "PolicyModel",
        "LlamaDecoderLayer model.model.layers.1",
        "ChunkedHead model.lm_head",
    ):
        assert sum(event["name"] == module for event in spans) == 2, module
    assert {"aten::mm", "_ChunkedLogprobs", "_ChunkedLogprobsBackward"} <= names
    assert ("[memory]" in names) == memory
    whole = next(event for event in spans if event["name"] == "PolicyModel")
    layer = next(event for event in spans if event["name"].startswith("LlamaDecoderLayer"))
    assert whole["ts"] <= layer["ts"]
    assert layer["ts"] + layer["dur"] <= whole["ts"] + whole["dur"]


def test_a_pass_that_fails_closes_its_spans(policy: PolicyModel, tmp_path: Path) -> None:
    recording = RankProfiler(policy, torch.device("cpu"), tmp_path / "one", memory=False)
    batch = pack_sequences([[3, 99]])  # beyond the vocabulary
    with pytest.raises(IndexError):
        policy(batch.tokens, batch.position_ids, batch.cu_seqlens, batch.loss_mask)
    forward_and_backward(policy)
    recording.finish()
    events = json.loads((tmp_path / "one.trace.json").read_text())["traceEvents"]
    passes = [event for event in events if event.get("name") == "PolicyModel"]
    assert len(passes) == 2
    first, second = sorted(passes, key=lambda event: event["ts"])
    assert first["ts"] + first["dur"] <= second["ts"]


@pytest.mark.gpu
def test_a_memory_snapshot_has_the_allocations(tmp_path: Path) -> None:
    device = torch.device("cuda")
    layer = torch.nn.Linear(64, 64, device=device)
    recording = RankProfiler(layer, device, tmp_path / "one", memory=True)
    layer(torch.ones(8, 64, device=device)).sum().backward()
    recording.finish()
    snapshot = pickle.loads((tmp_path / "one.memory.pickle").read_bytes())
    actions = [event["action"] for trace in snapshot["device_traces"] for event in trace]
    assert "alloc" in actions
    trace = json.loads((tmp_path / "one.trace.json").read_text())
    assert any(event.get("cat") == "kernel" for event in trace["traceEvents"])
