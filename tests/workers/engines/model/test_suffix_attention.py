"""Siblings behind one computed prefix equal each sibling by itself; no suffix sees another."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_families import CONFIGS, TEMPERATURE, alone, build

from workers.data.packing import PackedBatch, pack
from workers.data.shared_prefixes import ALONE
from workers.engines.model import attention, sequence_attention, suffix_attention
from workers.engines.model.attention import attention_arguments
from workers.engines.model.attention_kernels import flash_varlen, tiled_attention
from workers.engines.model.critic_model import CriticModel
from workers.engines.model.policy_model import PolicyModel
from workers.engines.model.suffix_attention import Suffixes


def draw(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 61, size=length).tolist()


LONG, SHORT, ODD = draw(130, 1), draw(11, 2), draw(23, 3)
# Ragged siblings, a group of one, identical siblings, siblings that are prefixes of others, and a
# sequence that shares nothing although its tokens are those of a sibling.
ROWS: list[tuple[int, list[int]]] = [
    (0, LONG + draw(3, 10)),
    (0, LONG + draw(71, 11)),
    (1, SHORT + draw(5, 12)),
    (0, LONG + draw(9, 13)),
    (2, ODD + draw(4, 14)),
    (2, ODD + draw(4, 14)),
    (1, SHORT + draw(1, 15)),
    (3, draw(17, 16)),
    (4, ODD + draw(8, 17)),
    (4, ODD + draw(8, 17)[:5]),
    (4, ODD + draw(8, 17)[:2] + draw(6, 18)),
    (ALONE, SHORT + draw(5, 12)),
]


def packed(rows: list[tuple[int, list[int]]], *, shared: bool = True) -> PackedBatch:
    """Pack rows of which every token but the first trains."""
    return pack(
        {
            "tokens": pa.array([tokens for _, tokens in rows], pa.list_(pa.int32())),
            "loss_mask": pa.array([np.arange(len(t)) > 0 for _, t in rows], pa.list_(pa.bool_())),
        },
        groups=[group for group, _ in rows] if shared else None,
    )


def compute(model: torch.nn.Module, batch: PackedBatch, *options: object) -> torch.Tensor:
    return model(
        batch.tokens,
        batch.position_ids,
        batch.cu_seqlens,
        batch.loss_mask,
        *options,
        prefixes=batch.prefixes,
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_shared_equals_unshared_with_gradients(name: str, checkpointing: bool) -> None:
    plain, policy = build(name), PolicyModel(build(name))
    if checkpointing:
        policy.enable_gradient_checkpointing(reentrant=False)
    batch = packed(ROWS)
    assert batch.prefixes is not None
    parts = [alone(plain, tokens) for _, tokens in ROWS]
    want = torch.cat([part[0] for part in parts])  # [N]
    want_entropy = torch.cat([part[1] for part in parts])  # [N]
    got, entropy = compute(policy, batch, TEMPERATURE, True)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy, want_entropy, rtol=0, atol=1e-5)

    coefficient = torch.linspace(-1, 1, len(want))  # [N]
    (want * coefficient + 0.3 * want_entropy).sum().backward()
    (got * coefficient + 0.3 * entropy).sum().backward()
    expected = dict(plain.named_parameters())
    for key, parameter in policy.hf_named_parameters():
        difference = (parameter.grad - expected[key].grad).norm()
        assert difference <= 1e-5 * expected[key].grad.norm(), key


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_critic_reads_shared_prefixes(name: str) -> None:
    critic = CriticModel(build(name).model)
    torch.nn.init.normal_(critic.value_head.weight)
    results = []
    for shared in (False, True):
        critic.zero_grad()
        values = compute(critic, packed(ROWS, shared=shared))
        (values * torch.linspace(-1, 1, len(values))).sum().backward()
        gradients = {key: p.grad.clone() for key, p in critic.hf_named_parameters()}
        results.append((values, gradients))
    (want, expected), (got, found) = results
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for key, gradient in found.items():
        assert (gradient - expected[key]).norm() <= 1e-5 * expected[key].norm(), key


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_suffix_cannot_see_a_sibling_or_another_group(name: str) -> None:
    model = PolicyModel(build(name))
    rows = list(ROWS)
    rows[1] = (0, LONG + [(token - 2) % 58 + 3 for token in rows[1][1][len(LONG) :]])
    before, after = packed(ROWS), packed(rows)
    with torch.no_grad():
        one, other = (compute(model, batch)[0] for batch in (before, after))
    suffix = (before.sequence_ids == 1) & (before.position_ids >= len(LONG))
    torch.testing.assert_close(other[~suffix], one[~suffix], rtol=0, atol=0)
    assert (other[suffix] != one[suffix]).all()


def test_the_order_of_rows_does_not_matter() -> None:
    model = PolicyModel(build("gemma3"))
    order = np.random.default_rng(5).permutation(len(ROWS))
    with torch.no_grad():
        straight, mixed = packed(ROWS), packed([ROWS[row] for row in order])
        one, other = (batch.split(compute(model, batch)[0]) for batch in (straight, mixed))
    for place, row in enumerate(order):
        np.testing.assert_allclose(other[place], one[row], rtol=0, atol=1e-5)


def test_blocks_hold_every_suffix_once_behind_its_own_prefix() -> None:
    batch = packed(ROWS)
    assert batch.prefixes is not None
    suffixes = Suffixes(batch.prefixes)
    padded = suffixes.blocks
    flat = padded.queries[padded.places]
    assert flat.tolist() == list(range(suffixes.first, batch.num_computed))
    keys = padded.keys.split([b.shape[0] * sum(b.shape[1:]) for b in padded.blocks])
    for block, index in zip(padded.blocks, keys, strict=True):
        count, length, widest = block.shape
        absent = torch.zeros(count, 1, 1, length + widest, dtype=torch.bool)
        absent = absent if block.absent is None else block.absent
        for own, gone in zip(index.view(count, -1), absent[:, 0, 0], strict=True):
            positions = batch.position_ids[batch.prefixes.computed[own[~gone]]]
            seen = int(positions.max()) + 1
            assert positions[:seen].tolist() == list(range(seen))
    assert len(padded.blocks) == 3  # behind 130 tokens: 71, and 9 3; behind 11 to 28: all others


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_what_a_gpu_would_be_asked_is_what_a_cpu_computes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefixes in one call and suffixes in another, whose queries are the last of their keys."""

    def flash(
        query, key, value, *, cu_seqlens, longest, scale, window, cu_keys=None, longest_key=None
    ):
        cu_keys = cu_seqlens if cu_keys is None else cu_keys
        assert longest == int(cu_seqlens.diff().max())
        assert (longest_key or longest) == int(cu_keys.diff().max())
        parts = []
        for number in range(len(cu_seqlens) - 1):
            rows = slice(*cu_seqlens[number : number + 2].tolist())
            columns = slice(*cu_keys[number : number + 2].tolist())
            q = query[rows].transpose(0, 1)[None]
            k, v = (x[columns].transpose(0, 1)[None] for x in (key, value))
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
            out = tiled_attention(q, k, v, scale=scale, window=window, softcap=None)
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts)

    model = PolicyModel(build(name))
    batch = packed(ROWS)
    want, _ = compute(model, batch)
    monkeypatch.setattr(attention, "flash_computes", lambda *_, **__: True)
    monkeypatch.setattr(sequence_attention, "flash_varlen", flash)
    monkeypatch.setattr(suffix_attention, "flash_varlen", flash)
    got, _ = compute(model, batch)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    gradients = []
    for values in (got, want):
        model.zero_grad()
        (values * torch.linspace(-1, 1, len(values))).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("window", [None, 3, 300])
def test_flash_attention_takes_more_keys_than_queries(window: int | None) -> None:
    """Shapes only, by torch's own meta functions, with a backward pass."""
    options = {"device": "meta", "dtype": torch.bfloat16, "requires_grad": True}
    query, key = torch.empty(10, 4, 32, **options), torch.empty(25, 2, 32, **options)
    ends = torch.empty(3, device="meta", dtype=torch.int32)
    out = flash_varlen(
        query,
        key,
        key,
        cu_seqlens=ends,
        longest=6,
        cu_keys=ends,
        longest_key=14,
        scale=0.2,
        window=window,
    )
    assert out.shape == query.shape
    gradients = torch.autograd.grad(out.float().sum(), [query, key])
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape]


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("window", [None, 5, 50])
def test_tiles_of_suffixes_equal_one_tile(window: int | None, softcap: float | None) -> None:
    torch.manual_seed(0)
    query = torch.randn(3, 2, 40, 8, requires_grad=True)
    key, value = (torch.randn(3, 2, 100, 8, requires_grad=True) for _ in range(2))
    absent = (torch.arange(100) < torch.tensor([[0], [13], [60]]))[:, None, None]
    options = {"scale": 0.3, "window": window, "softcap": softcap, "absent": absent}
    results = []
    for elements in (None, 3 * 2 * 100 * 7):  # 7 rows at a time, 5 in the last tile
        out = tiled_attention(query, key, value, **options, tile_elements=elements)
        results.append((out, *torch.autograd.grad(out.square().sum(), [query, key, value])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_an_attention_without_shared_prefixes_refuses_them() -> None:
    batch = packed(ROWS)
    with pytest.raises(ValueError, match=r"'flash_attention_2' cannot share prefixes: choose"):
        attention_arguments("flash_attention_2", batch.cu_seqlens, batch.prefixes)
