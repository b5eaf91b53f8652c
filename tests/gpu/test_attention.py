"""The kernels of packed attention against scores in float64, and the memory they take."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from workers.data.shared_prefixes import SharedPrefixes, share_prefixes
from workers.engines.model.attention import attention_arguments, varlen_sdpa
from workers.engines.model.attention_kernels import (
    dense_is_faster,
    dense_varlen,
    flash_computes,
    tiled_attention,
)

pytestmark = pytest.mark.gpu

GIB = 1 << 30
LENGTHS = (5, 257, 1, 130, 64)


def ends_of(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """`cu_seqlens` [S+1]."""
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], device=device).int()


def draw(
    lengths: tuple[int, ...], heads: tuple[int, int], size: int, dtype: torch.dtype, device: Any
) -> list[Tensor]:
    """Query [1, H, N, D], key and value [1, Hk, N, D]."""
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(1, count, sum(lengths), size, device=device, generator=generator)
        .to(dtype)
        .requires_grad_()
        for count in (heads[0], heads[1], heads[1])
    ]


def reference(
    tensors: list[Tensor], lengths: tuple[int, ...], window: int | None, softcap: float | None
) -> Tensor:
    """Attention [1, N, H, D] of each sequence by itself, in float64."""
    q, k, v = (tensor[0].double() for tensor in tensors)  # [H, N, D]
    k, v = (tensor.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for tensor in (k, v))
    parts, first = [], 0
    for length in lengths:
        rows = slice(first, first + length)
        scores = q[:, rows] @ k[:, rows].transpose(1, 2) * q.shape[-1] ** -0.5  # [H, L, L]
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        place = torch.arange(length, device=q.device)
        distance = place[:, None] - place
        hidden = distance < 0
        if window is not None:
            hidden |= distance >= window
        parts.append(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v[:, rows])
        first += length
    return torch.cat(parts, dim=1).transpose(0, 1)[None]


def siblings(prompts: tuple[int, ...], responses: tuple[tuple[int, ...], ...]) -> SharedPrefixes:
    """Layout of siblings behind prompts of so many tokens, whose responses have so many."""
    rng = np.random.default_rng(0)
    rows, groups = [], []
    for number, (prompt, own) in enumerate(zip(prompts, responses, strict=True)):
        shared = rng.integers(0, 1 << 30, prompt)
        rows += [np.concatenate([shared, rng.integers(0, 1 << 30, size)]) for size in own]
        groups += [number] * len(own)
    ends = np.cumsum([0, *(len(row) for row in rows)])
    layout = share_prefixes(np.concatenate(rows), ends, np.asarray(groups))
    assert layout is not None
    return layout


def attend(tensors: list[Tensor], lengths: tuple[int, ...], **options: Any) -> Tensor:
    """What a layer of a model calls."""
    ends = ends_of(lengths, tensors[0].device)
    arguments = attention_arguments("varlen_sdpa", ends)
    return varlen_sdpa(nn.Module(), *tensors, None, **options, **arguments)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [32, 128, 256])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (33, None), (None, 5.0), (33, 5.0)])
def test_equals_float64(
    device: torch.device, dtype: torch.dtype, size: int, window: int | None, softcap: float | None
) -> None:
    tensors = draw(LENGTHS, (4, 2), size, dtype, device)
    got = attend(tensors, LENGTHS, sliding_window=window, softcap=softcap)
    assert got.dtype == dtype
    weights = torch.randn(
        got.shape, device=device, generator=torch.Generator(device).manual_seed(1)
    )
    gradients = torch.autograd.grad((got.float() * weights).sum(), tensors)
    want = reference(tensors, LENGTHS, window, softcap)
    expected = torch.autograd.grad((want * weights).sum(), tensors)
    bound = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for one, other in zip((got, *gradients), (want, *expected), strict=True):
        assert float((one.double() - other).detach().norm() / other.double().norm()) < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_sequence_after_the_other_equals_float64(
    device: torch.device, dtype: torch.dtype
) -> None:
    tensors = draw(LENGTHS, (4, 2), 64, dtype, device)
    flat = [tensor[0].transpose(0, 1) for tensor in tensors]
    got = dense_varlen(*flat, lengths=LENGTHS, scale=64**-0.5)[None]
    gradients = torch.autograd.grad(got.float().square().sum(), tensors)
    want = reference(tensors, LENGTHS, None, None)
    expected = torch.autograd.grad(want.square().sum(), tensors)
    bound = 2e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip((got, *gradients), (want, *expected), strict=True):
        assert float((one.double() - other).detach().norm() / other.double().norm()) < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (33, None), (400, None), (33, 5.0)])
def test_siblings_behind_one_prompt_equal_float64(
    device: torch.device, dtype: torch.dtype, size: int, window: int | None, softcap: float | None
) -> None:
    prompts, responses = (300, 9, 64, 5), ((3, 131, 40, 128), (1, 17), (257, 2, 2), (1,))
    layout = siblings(prompts, responses).to(device)
    lengths = tuple(
        prompt + own for prompt, all_own in zip(prompts, responses, strict=True) for own in all_own
    )
    tensors = draw((len(layout.computed),), (4, 2), size, dtype, device)
    arguments = attention_arguments("varlen_sdpa", ends_of(lengths, device), layout)
    options: dict[str, Any] = {"sliding_window": window, "softcap": softcap}
    got = varlen_sdpa(nn.Module(), *tensors, None, **options, **arguments)[0]
    assert got.dtype == dtype
    weights = torch.randn(
        got.shape, device=device, generator=torch.Generator(device).manual_seed(1)
    )
    gradients = torch.autograd.grad((got.float() * weights).sum(), tensors)
    whole = [tensor[:, :, layout.places] for tensor in tensors]  # every sequence with its prompt
    want = reference(whole, lengths, window, softcap)[:, layout.computed]
    expected = torch.autograd.grad((want * weights).sum(), tensors)
    bound = 2e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip((got, *gradients), (want, *expected), strict=True):
        assert float((one.double() - other).detach().norm() / other.double().norm()) < bound


def test_long_sequences_are_not_packed_on_a_hopper(device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        pytest.skip("the kernel that is faster there is a Hopper's")
    query = torch.empty(1, 8, device=device)
    assert dense_is_faster(query, (4096,), window=None)
    assert dense_is_faster(query, (16, 8200), window=9000)
    assert not dense_is_faster(query, (4096,), window=4095)
    assert not dense_is_faster(query, (4096, 4000), window=None)


def test_tiles_equal_one_tile(device: torch.device) -> None:
    q, k, v = (tensor.detach() for tensor in draw((200,), (3, 3), 16, torch.float32, device))
    options: dict[str, Any] = {"scale": 0.25, "window": 50, "softcap": 4.0}
    results = []
    for elements in (1 << 26, 3 * 200 * 7):  # 7 rows at a time, 4 in the last tile
        tensors = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        out = tiled_attention(*tensors, **options, tile_elements=elements)
        results.append((out, *torch.autograd.grad(out.square().sum(), tensors)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_half_precision_is_flash_attention(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("FlashAttention is a CUDA kernel")
    query = torch.empty(1, 8, device=device)
    assert flash_computes(query.bfloat16(), softcap=None)
    assert flash_computes(query.half(), softcap=None)
    assert not flash_computes(query, softcap=None)
    assert not flash_computes(query.half(), softcap=5.0)


@pytest.mark.parametrize(
    ("dtype", "window", "softcap", "length", "limit"),
    [
        (torch.bfloat16, None, None, 32_768, 1.5),  # scores of a head alone would be 4 GiB
        (torch.bfloat16, 4096, None, 32_768, 1.5),
        (torch.float32, None, None, 16_384, 2.5),
        (torch.float32, 1024, None, 16_384, 4.0),
        (torch.bfloat16, None, 50.0, 8_192, 4.0),
    ],
)
def test_memory_does_not_grow_with_the_square(
    device: torch.device,
    peak: Callable[[Callable[[], Any]], int],
    say: Callable[[str], None],
    dtype: torch.dtype,
    window: int | None,
    softcap: float | None,
    length: int,
    limit: float,
) -> None:
    if device.type != "cuda":
        length = 512
    tensors = draw((length,), (8, 2), 128, dtype, device)

    def step() -> None:
        attend(tensors, (length,), sliding_window=window, softcap=softcap).float().sum().backward()

    taken = peak(step)
    say(f"{length} tokens, {dtype}, window {window}, cap {softcap}: {taken / GIB:.2f} GiB")
    assert taken < limit * GIB
