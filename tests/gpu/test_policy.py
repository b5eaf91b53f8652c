"""A policy and a critic on packed batches against the model's own forward pass, one by one."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from workers.data.packing import PackedBatch, pack, pack_sequences
from workers.engines.model.critic_model import CriticModel
from workers.engines.model.lora import lora_layers
from workers.engines.model.lora_settings import LoraSettings
from workers.engines.model.policy_model import PolicyModel

pytestmark = pytest.mark.gpu

Build = Callable[..., PreTrainedModel]
TEMPERATURE = 0.7


def alone(
    model: PreTrainedModel, rows: list[list[int]], autocast: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [N], each sequence by itself, by eager attention and plain logits."""
    picked, uncertain = [], []
    for row in rows:
        tokens = torch.tensor([row], device=model.device)
        with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
            logits = model(tokens, use_cache=False).logits[0].float() / TEMPERATURE
        log_p = logits.log_softmax(-1)  # [L, V]
        zero = log_p.new_zeros(1)
        picked += [zero, log_p[:-1].gather(1, tokens[0, 1:, None])[:, 0]]
        uncertain += [zero, -(log_p.exp() * log_p).sum(-1)[:-1]]
    return torch.cat(picked), torch.cat(uncertain)


def packed(policy: PolicyModel, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """The same of one packed batch."""
    batch = pack_sequences(rows).to(policy.model.device)
    logprobs, entropy = policy(
        batch.tokens, batch.position_ids, batch.cu_seqlens, batch.loss_mask, TEMPERATURE, True
    )
    assert entropy is not None
    return logprobs, entropy


def siblings(rows: list[list[int]], groups: list[int], *, shared: bool) -> PackedBatch:
    """Pack rows of which every token but the first trains."""
    return pack(
        {
            "tokens": pa.array(rows, pa.list_(pa.int32())),
            "loss_mask": pa.array([np.arange(len(row)) > 0 for row in rows], pa.list_(pa.bool_())),
        },
        groups=groups if shared else None,
    )


def of_siblings(policy: PolicyModel, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [N] of one packed batch, shared prefixes once."""
    logprobs, entropy = policy(
        batch.tokens,
        batch.position_ids,
        batch.cu_seqlens,
        batch.loss_mask,
        TEMPERATURE,
        True,
        prefixes=batch.prefixes,
    )
    assert entropy is not None
    return logprobs, entropy


def behind(prompts: list[list[int]], responses: list[list[int]]) -> tuple[list[list[int]], list]:
    """Siblings in turn behind each of the prompts, and their groups."""
    groups = [number % len(prompts) for number in range(len(responses))]
    return [prompts[group] + own for group, own in zip(groups, responses, strict=True)], groups


def backward(logprobs: Tensor, entropy: Tensor) -> None:
    """A loss in which every token has a coefficient of its own."""
    coefficient = torch.linspace(-1, 1, len(logprobs), device=logprobs.device)
    (logprobs * coefficient + 0.3 * entropy).sum().backward()


def relative(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want||."""
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_float32_equals_the_model_itself(
    build: Build, family: str, sequences: list[list[int]], checkpointing: bool
) -> None:
    plain, policy = build(family), PolicyModel(build(family))
    if checkpointing:
        policy.enable_gradient_checkpointing(reentrant=False)
    want, got = alone(plain, sequences), packed(policy, sequences)
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=3e-5)
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=3e-5)
    backward(*want)
    backward(*got)
    expected = dict(plain.named_parameters())
    for name, parameter in policy.hf_named_parameters():
        assert parameter.grad is not None
        assert relative(parameter.grad, expected[name].grad) < 5e-5, name


def test_bf16_is_as_close_to_float32_as_the_model_itself(
    build: Build, family: str, sequences: list[list[int]], say: Callable[[str], None]
) -> None:
    exact = build(family)
    own, policy = build(family), PolicyModel(build(family), autocast=torch.bfloat16)
    want = alone(exact, sequences)
    theirs, ours = alone(own, sequences, torch.bfloat16), packed(policy, sequences)
    assert ours[0].dtype == torch.float32
    for values in (want, theirs, ours):
        backward(*values)
    gaps = [float((values[0] - want[0]).abs().mean()) for values in (theirs, ours)]
    references = dict(exact.named_parameters())
    errors = {
        name: [
            max(
                relative(parameter.grad, references[key].grad)
                for key, parameter in parameters
                if parameter.dim() > 1
            )
        ]
        for name, parameters in {
            "theirs": list(own.named_parameters()),
            "ours": list(policy.hf_named_parameters()),
        }.items()
    }
    say(
        f"{family} bf16: log-prob gap {gaps[1]:.4f} (model's own {gaps[0]:.4f}), "
        f"gradient {errors['ours'][0]:.3f} ({errors['theirs'][0]:.3f})"
    )
    assert gaps[1] <= 1.3 * gaps[0] + 1e-3
    assert errors["ours"][0] <= 1.5 * errors["theirs"][0] + 1e-2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_siblings_behind_one_prompt_equal_the_model_itself(
    build: Build, family: str, sequences: list[list[int]], checkpointing: bool
) -> None:
    plain, policy = build(family), PolicyModel(build(family))
    if checkpointing:
        policy.enable_gradient_checkpointing(reentrant=False)
    rows, groups = behind([sequences[4], sequences[2]], sequences)
    batch = siblings(rows, groups, shared=True).to(plain.device)
    assert batch.num_computed == batch.num_tokens - 2 * 131 - 2 * 9
    want, got = alone(plain, rows), of_siblings(policy, batch)
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=3e-5)
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=3e-5)
    backward(*want)
    backward(*got)
    expected = dict(plain.named_parameters())
    for name, parameter in policy.hf_named_parameters():
        assert parameter.grad is not None
        assert relative(parameter.grad, expected[name].grad) < 5e-5, name


def test_siblings_in_bf16_are_as_close_to_float32_as_without_sharing(
    build: Build, family: str, sequences: list[list[int]], say: Callable[[str], None]
) -> None:
    rows, groups = behind([sequences[4], sequences[2]], sequences)
    exact = build(family)
    values = [alone(exact, rows)]
    backward(*values[0])
    models: list[torch.nn.Module] = [exact]
    for shared in (False, True):
        policy = PolicyModel(build(family), autocast=torch.bfloat16)
        batch = siblings(rows, groups, shared=shared).to(exact.device)
        values.append(of_siblings(policy, batch))
        backward(*values[-1])
        models.append(policy.model)
    gaps = [float((own[0] - values[0][0]).abs().mean()) for own in values[1:]]
    weights = dict(exact.named_parameters())
    errors = []
    for model in models[1:]:
        named = dict(model.named_parameters())
        errors.append(
            max(
                relative(named[name].grad, parameter.grad)
                for name, parameter in weights.items()
                if parameter.dim() > 1 and name in named
            )
        )
    say(
        f"{family} bf16, shared prompts: log-prob gap {gaps[1]:.4f} (not shared {gaps[0]:.4f}), "
        f"gradient {errors[1]:.3f} ({errors[0]:.3f})"
    )
    assert gaps[1] <= 1.3 * gaps[0] + 1e-3
    assert errors[1] <= 1.5 * errors[0] + 1e-2


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("prompt", [1024, 4096])
def test_seconds_and_memory_of_eight_siblings(
    device: torch.device,
    peak: Callable[[Callable[[], Any]], int],
    say: Callable[[str], None],
    prompt: int,
    dtype: torch.dtype | None,
) -> None:
    """Eight responses of 256 tokens, forward and backward; the figures are the point."""
    if device.type != "cuda":
        pytest.skip("seconds and memory are measured on CUDA")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    policy = PolicyModel(
        AutoModelForCausalLM.from_config(config).to(device).train(), autocast=dtype
    )
    rng = np.random.default_rng(0)
    shared_prompt = rng.integers(3, 32_000, prompt).tolist()
    responses = [rng.integers(3, 32_000, 256).tolist() for _ in range(8)]
    rows, groups = behind([shared_prompt], responses)
    taken: dict[bool, tuple[float, int, float]] = {}
    for shared in (False, True):
        batch = siblings(rows, groups, shared=shared)
        batch = replace(batch, loss_mask=batch.position_ids >= prompt).to(device)

        def step(batch: PackedBatch = batch) -> Tensor:
            policy.zero_grad(set_to_none=False)
            logprobs = of_siblings(policy, batch)[0]
            logprobs.sum().backward()
            return logprobs.detach().sum()

        step()
        memory = peak(step)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(3):
            total = step()
        torch.cuda.synchronize()
        taken[shared] = (time.perf_counter() - began) / 3, memory, float(total)
    (plain_s, plain_bytes, plain_sum), (shared_s, shared_bytes, shared_sum) = taken.values()
    say(
        f"8 x 256 behind {prompt}, {dtype or torch.float32}, 4 layers of Qwen3-0.6B's shape: "
        f"{shared_s * 1e3:.1f} ms and {shared_bytes / 2**30:.2f} GiB shared, "
        f"{plain_s * 1e3:.1f} ms and {plain_bytes / 2**30:.2f} GiB not shared"
    )
    assert shared_sum == pytest.approx(plain_sum, rel=2e-3)
    assert shared_s < plain_s
    assert shared_bytes < plain_bytes


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_token_cannot_see_across_sequences(
    build: Build, family: str, sequences: list[list[int]], dtype: torch.dtype | None
) -> None:
    policy = PolicyModel(build(family), autocast=dtype)
    changed = [list(row) for row in sequences]
    changed[1] = [(token + 1) % 211 for token in changed[1]]  # 300 tokens, between its neighbours
    ids = pack_sequences(sequences).sequence_ids
    with torch.no_grad():
        before, after = (packed(policy, rows)[0].cpu() for rows in (sequences, changed))
    assert torch.equal(after[ids != 1], before[ids != 1])
    assert (after[ids == 1][1:] != before[ids == 1][1:]).all()


def test_lora_trains_alone_and_starts_as_the_base(
    build: Build, family: str, sequences: list[list[int]]
) -> None:
    adapter = LoraSettings(rank=4, alpha=8.0)
    policy = PolicyModel(build(family), adapter=adapter)
    want = alone(build(family), sequences)
    got = packed(policy, sequences)
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=3e-5)
    backward(*got)
    trained = dict(policy.hf_named_parameters())
    assert trained
    assert all("lora_" in name for name in trained)
    for name, parameter in policy.model.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
        moved = packed(policy, sequences)[0]
        with policy.base():
            base = packed(policy, sequences)[0]
    assert (moved - want[0]).abs().max() > 1e-2
    torch.testing.assert_close(base, want[0], rtol=0, atol=3e-5)
    # W + (alpha / rank) B A is the same policy.
    merged = build(family)
    weights = dict(merged.named_parameters())
    with torch.no_grad():
        for name, layer in lora_layers(policy.model).items():
            product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            weights[f"{name}.weight"] += 2.0 * product
    torch.testing.assert_close(moved, alone(merged, sequences)[0], rtol=0, atol=1e-4)


def test_a_critic_reads_the_state_before_the_token(
    build: Build, family: str, sequences: list[list[int]], device: torch.device
) -> None:
    plain = build(family).get_decoder()
    critic = CriticModel(build(family).get_decoder()).to(device)
    torch.nn.init.normal_(critic.value_head.weight, std=0.3)
    batch = pack_sequences(sequences).to(device)
    got = critic(batch.tokens, batch.position_ids, batch.cu_seqlens, batch.loss_mask)
    parts = []
    for row in sequences:
        tokens = torch.tensor([row], device=device)
        hidden = plain(tokens, use_cache=False).last_hidden_state[0]
        parts += [hidden.new_zeros(1), critic.value_head(hidden)[:-1, 0]]
    torch.testing.assert_close(got, torch.cat(parts), rtol=1e-4, atol=1e-4)


def test_bf16_gap_of_a_wider_model(
    device: torch.device, say: Callable[[str], None], sequences: list[list[int]]
) -> None:
    """What a correction of the sampler's mismatch has to live with; the figures are the point."""
    config = Qwen3Config(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(device).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
    with torch.no_grad():
        exact = packed(PolicyModel(model), sequences)
        rounded = packed(PolicyModel(model, autocast=torch.bfloat16), sequences)
        halved = packed(PolicyModel(model, autocast=torch.float16), sequences)
    for name, values in (("bf16", rounded), ("fp16", halved)):
        gap = (values[0] - exact[0]).abs()
        say(f"12 layers, {name} autocast: log-prob gap mean {gap.mean():.4f}, max {gap.max():.3f}")
    assert (rounded[0] - exact[0]).abs().mean() < 0.1
    assert (halved[0] - exact[0]).abs().mean() < (rounded[0] - exact[0]).abs().mean()
