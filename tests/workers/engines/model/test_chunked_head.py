"""The chunked head against plain logits: values, gradients, memory."""

import pytest
import torch

from workers.engines.model import chunked_head
from workers.engines.model.chunked_head import _add_product_, _product, chunked_logprobs
from workers.engines.model.head_rows import default_chunk_rows, head_bytes

M, H, V = 37, 16, 101


def tensors(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(M, H, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, H, generator=generator).requires_grad_()
    bias = torch.randn(V, generator=generator).requires_grad_()
    return hidden, weight, bias, torch.randint(0, V, (M,), generator=generator)


def plain(hidden, weight, bias, targets, temperature, softcap, scale=1.0):
    logits = scale * (hidden.float() @ weight.t() + (0 if bias is None else bias))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_p = (logits / temperature).log_softmax(-1)  # [M, V]
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("rows", [1, 5, M, 100])
@pytest.mark.parametrize("softcap", [None, 6.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_equals_plain_logits(
    rows: int, softcap: float | None, with_bias: bool, scale: float
) -> None:
    ours, theirs = tensors(), tensors()
    bias = ours[2] if with_bias else None
    got, entropy = chunked_logprobs(
        ours[0],
        ours[1],
        ours[3],
        bias=bias,
        temperature=0.8,
        scale=scale,
        softcap=softcap,
        entropy=True,
        chunk_rows=rows,
    )
    want, want_entropy = plain(
        theirs[0], theirs[1], theirs[2] if with_bias else None, theirs[3], 0.8, softcap, scale
    )
    torch.testing.assert_close(got, want, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(entropy, want_entropy, rtol=1e-6, atol=2e-6)
    coefficient = torch.linspace(-1, 1, M)
    (got * coefficient - 0.2 * entropy).sum().backward()
    (want * coefficient - 0.2 * want_entropy).sum().backward()
    for index in range(3 if with_bias else 2):
        torch.testing.assert_close(ours[index].grad, theirs[index].grad, rtol=1e-5, atol=1e-5)


def test_entropy_gradient_against_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(4, 3, generator=generator, dtype=torch.float32).requires_grad_()
    weight = torch.randn(6, 3, generator=generator)
    _, entropy = chunked_logprobs(hidden, weight, torch.zeros(4).long(), entropy=True)
    entropy.sum().backward()
    # d/dh by central differences, step 1e-2: the error is O(1e-4)
    numeric = torch.zeros_like(hidden)
    for i in range(4):
        for j in range(3):
            for sign in (1, -1):
                moved = hidden.detach().clone()
                moved[i, j] += sign * 1e-2
                _, value = chunked_logprobs(moved, weight, torch.zeros(4).long(), entropy=True)
                numeric[i, j] += sign * value.sum() / 2e-2
    torch.testing.assert_close(hidden.grad, numeric, rtol=0, atol=1e-3)


def test_bfloat16_hidden_and_autocast_give_float32() -> None:
    hidden, weight, _, targets = tensors(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = chunked_logprobs(hidden, weight, targets)
    want, _ = plain(hidden, weight, None, targets, 1.0, None)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=0.1)  # bf16 products: 8 bits, |logit| < 16
    got.sum().backward()
    want.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32


def test_uniform_logits_by_hand() -> None:
    # weight 0: p = 1/4 everywhere, log p = -ln 4 = -1.386294, entropy ln 4
    got, entropy = chunked_logprobs(
        torch.ones(2, 3), torch.zeros(4, 3), torch.tensor([0, 3]), entropy=True
    )
    torch.testing.assert_close(got, torch.full((2,), -1.3862944))
    torch.testing.assert_close(entropy, torch.full((2,), 1.3862944))


def test_no_rows_still_reach_the_weight() -> None:
    hidden, weight, _, _ = tensors()
    got, _ = chunked_logprobs(hidden[:0], weight, torch.empty(0, dtype=torch.int64))
    got.sum().backward()
    assert got.shape == (0,)
    assert weight.grad.abs().max() == 0


def test_temperature_zero_is_refused() -> None:
    hidden, weight, _, targets = tensors()
    with pytest.raises(ValueError, match="temperature=0"):
        chunked_logprobs(hidden, weight, targets, temperature=0.0)


def test_a_frozen_weight_costs_no_gradient() -> None:
    trained, frozen = tensors(), tensors()
    frozen[1].requires_grad_(False)
    for hidden, weight, _, targets in (trained, frozen):
        chunked_logprobs(hidden, weight, targets, chunk_rows=5)[0].sum().backward()
    assert torch.equal(frozen[0].grad, trained[0].grad)
    assert frozen[1].grad is None


def test_rows_of_a_chunk_by_device() -> None:
    # CPU: 64 MiB / (4 x 151936) = 110.4. GPU of 80 GiB: 1.25 GiB / (4 x 151936) = 2208, at most
    # 2048; of 24 GiB: 662; of 80 GiB at 256 thousand tokens: 1310.
    assert default_chunk_rows(151_936, None) == 110
    assert default_chunk_rows(151_936, 80 << 30) == 2048
    assert default_chunk_rows(151_936, 24 << 30) == 662
    assert default_chunk_rows(256_000, 80 << 30) == 1310
    assert default_chunk_rows(1 << 30, None) == 1
    assert head_bytes(1000, None, 7) == 3 * 4 * 7 * 1000


def test_half_precision_products_on_a_gpu_are_declared_as_they_are_called() -> None:
    """Shapes and dtypes only, by torch's own meta functions; a GPU computes them."""
    left = torch.empty(7, 5, device="meta", dtype=torch.bfloat16)
    right = torch.empty(5, 9, device="meta", dtype=torch.bfloat16)
    total = torch.empty(7, 9, device="meta")
    assert torch.mm(left, right, out_dtype=torch.float32).dtype == torch.float32
    added = torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    assert added is total
    assert _product(left, right).dtype == torch.float32
    assert _add_product_(total, left, right) is total


def test_entropies_that_nothing_differentiates_cost_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as a gate's: their part of the backward pass is left out."""
    seen = []
    original = chunked_head._gradient_

    def gradient(log_p, targets, grad_logprobs, grad_entropies, entropies):
        seen.append(grad_entropies is not None)
        return original(log_p, targets, grad_logprobs, grad_entropies, entropies)

    monkeypatch.setattr(chunked_head, "_gradient_", gradient)
    gradients = []
    for used in ("neither", "gate", "bonus"):
        hidden, weight, _, targets = tensors()
        logprobs, entropy = chunked_logprobs(hidden, weight, targets, entropy=used != "neither")
        loss = logprobs * torch.linspace(-1, 1, M)
        if used == "gate":
            assert entropy is not None
            loss = loss * (entropy.detach() < 100)
        if used == "bonus":
            assert entropy is not None
            loss = loss + 0.0 * entropy
        loss.sum().backward()
        gradients.append((hidden.grad, weight.grad))
    assert seen == [False, False, True]
    for one, other in zip(gradients[0], gradients[1], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(gradients[0], gradients[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_an_entropy_alone_has_a_gradient() -> None:
    hidden, weight, _, targets = tensors()
    _, entropy = chunked_logprobs(hidden, weight, targets, entropy=True)
    assert entropy is not None
    entropy.sum().backward()
    ours = hidden.grad, weight.grad
    hidden, weight, _, targets = tensors()
    plain(hidden, weight, None, targets, 1.0, None)[1].sum().backward()
    for one, other in zip(ours, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
