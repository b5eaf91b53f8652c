"""Packed equals padded, and no token sees across sequences; Llama, Qwen3, Gemma 2 and 3."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_families import CONFIGS, TEMPERATURE, alone, build

from workers.data.packing import pack_sequences
from workers.engines.model import attention, sequence_attention
from workers.engines.model.attention import attention_arguments, check_attention, sequence_blocks
from workers.engines.model.attention_kernels import (
    flash_computes,
    flash_varlen,
    tiled_attention,
    visible,
)
from workers.engines.model.policy_model import PolicyModel

LENGTHS = (3, 141, 9, 1, 23, 140)  # blocks 141 140, 23 9, 3 1: either side of PLAIN_LENGTH


def sequences() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 61, size=length).tolist() for length in LENGTHS]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_packed_equals_unpacked_with_gradients(name: str, checkpointing: bool) -> None:
    plain, packed = build(name), PolicyModel(build(name))
    if checkpointing:
        packed.enable_gradient_checkpointing(reentrant=False)
    batch = pack_sequences(sequences())
    parts = [alone(plain, tokens) for tokens in sequences()]
    want = torch.cat([part[0] for part in parts])  # [N]
    want_entropy = torch.cat([part[1] for part in parts])  # [N]
    got, entropy = packed(
        batch.tokens, batch.position_ids, batch.cu_seqlens, batch.loss_mask, TEMPERATURE, True
    )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy, want_entropy, rtol=0, atol=1e-5)

    coefficient = torch.linspace(-1, 1, len(want))  # [N]
    (want * coefficient + 0.3 * want_entropy).sum().backward()
    (got * coefficient + 0.3 * entropy).sum().backward()
    expected = dict(plain.named_parameters())
    for key, parameter in packed.hf_named_parameters():
        scale = expected[key].grad.abs().max()
        torch.testing.assert_close(
            parameter.grad / scale, expected[key].grad / scale, rtol=0, atol=1e-5, msg=key
        )


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_token_cannot_see_across_sequences(name: str) -> None:
    model = PolicyModel(build(name))
    rows = sequences()
    batch = pack_sequences(rows)
    rows[1] = [(token + 1) % 61 for token in rows[1]]  # 141 tokens, between its neighbours
    changed = pack_sequences(rows)
    with torch.no_grad():
        before, _ = model(batch.tokens, batch.position_ids, batch.cu_seqlens, batch.loss_mask)
        after, _ = model(changed.tokens, batch.position_ids, batch.cu_seqlens, batch.loss_mask)
    same = batch.sequence_ids != 1
    torch.testing.assert_close(after[same], before[same], rtol=0, atol=0)
    assert (after[~same][1:] != before[~same][1:]).all()


def test_blocks_hold_every_token_once_and_little_padding() -> None:
    lengths = torch.tensor([100, 5, 90, 70, 30, 1, 64])
    ends = torch.cat([torch.zeros(1), lengths.cumsum(0)]).to(torch.int32)
    layout = sequence_blocks(ends)
    # 100: down to 75 -> {100, 90}; 70: down to 52 -> {70, 64}; 30: down to 14 -> {30}; 5: {5, 1}
    assert [block.shape for block in layout.blocks] == [(2, 100), (2, 70), (1, 30), (2, 5)]
    flat = torch.cat([block.tokens for block in layout.blocks])
    assert flat[layout.places].tolist() == list(range(360))
    assert not layout.in_order
    assert sequence_blocks(torch.tensor([0, 4, 8, 12], dtype=torch.int32)).in_order


def test_what_packed_attention_cannot_compute_is_refused() -> None:
    with pytest.raises(ValueError, match="attention 'flex'"):
        check_attention("flex")
    with pytest.raises(ValueError, match="flash-attn"):
        check_attention("flash_attention_2")
    model = PolicyModel(build("llama"))
    model.model.model.layers[0].self_attn.is_causal = False
    batch = pack_sequences([[3, 4, 5]])
    with pytest.raises(ValueError, match="bidirectional attention"):
        model(batch.tokens, batch.position_ids, batch.cu_seqlens, batch.loss_mask)


def test_flash_attention_gets_its_own_arguments() -> None:
    arguments = attention_arguments("flash_attention_2", torch.tensor([0, 3, 5]).int())
    assert arguments["max_length_q"] == 3
    assert arguments["cu_seq_lens_k"].tolist() == [0, 3, 5]


def test_visible_by_hand() -> None:
    # Two queries that are keys 2 and 3 of four; a window of 2 shows a key its neighbour and itself.
    assert visible(2, 4, 2, window=None, device=torch.device("cpu")).int().tolist() == [
        [1, 1, 1, 0],
        [1, 1, 1, 1],
    ]
    assert visible(2, 4, 2, window=2, device=torch.device("cpu")).int().tolist() == [
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize("window", [None, 5, 50])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_tiles_equal_one_tile_with_gradients(window: int | None, softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, 3, 40, 8, generator=generator) for _ in range(3)]
    results = []
    for elements in (1 << 20, 2 * 3 * 40 * 7):  # 7 rows at a time, 5 in the last tile
        tensors = [tensor.clone().requires_grad_() for tensor in drawn]
        out = tiled_attention(
            *tensors, scale=0.3, window=window, softcap=softcap, tile_elements=elements
        )
        results.append((out, *torch.autograd.grad(out.square().sum(), tensors)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_what_a_gpu_would_be_asked_is_what_a_cpu_computes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flat batch, its ends, the scale and the window arrive at the kernel as they should."""
    batch = pack_sequences(sequences())
    arguments = (batch.tokens, batch.position_ids, batch.cu_seqlens, batch.loss_mask)
    calls = []

    def flash(query, key, value, *, cu_seqlens, longest, scale, window):
        calls.append(window)
        assert longest == max(LENGTHS)
        parts = []
        for first, last in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
            q, k, v = (x[first:last].transpose(0, 1)[None] for x in (query, key, value))
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
            out = tiled_attention(q, k, v, scale=scale, window=window, softcap=None)
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts)

    model = PolicyModel(build(name))
    with torch.no_grad():
        want, _ = model(*arguments)
        monkeypatch.setattr(attention, "flash_computes", lambda *_, **__: True)
        monkeypatch.setattr(sequence_attention, "flash_varlen", flash)
        got, _ = model(*arguments)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert calls == ([7, None] if name == "gemma3" else [None, None])


@pytest.mark.parametrize("window", [None, 3, 300])
def test_flash_attention_is_called_as_torch_declares_it(window: int | None) -> None:
    """Shapes only, by torch's own meta functions: grouped heads, windows, a backward pass."""
    options = {"device": "meta", "dtype": torch.bfloat16, "requires_grad": True}
    query, key = torch.empty(10, 4, 32, **options), torch.empty(10, 2, 32, **options)
    ends = torch.empty(3, device="meta", dtype=torch.int32)
    out = flash_varlen(query, key, key, cu_seqlens=ends, longest=6, scale=0.2, window=window)
    assert out.shape == query.shape
    gradients = torch.autograd.grad(out.float().sum(), [query, key])
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape]


def test_flash_attentions_arguments_are_in_their_places() -> None:
    schema = torch.ops.aten._flash_attention_forward.default._schema
    assert [argument.name for argument in schema.arguments][:10] == [
        "query",
        "key",
        "value",
        "cum_seq_q",
        "cum_seq_k",
        "max_q",
        "max_k",
        "dropout_p",
        "is_causal",
        "return_debug_mask",
    ]
    named = {argument.name for argument in schema.arguments if argument.kwarg_only}
    assert {"scale", "window_size_left", "window_size_right"} <= named


def test_a_cpu_has_no_flash_attention() -> None:
    assert not flash_computes(torch.empty(1, 64, dtype=torch.bfloat16), softcap=None)
