"""The chunked head against plain logits at a vocabulary of 152 thousand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.engines.model.chunked_head import chunked_logprobs
from workers.engines.model.head_rows import head_bytes

pytestmark = pytest.mark.gpu

M, H = 700, 96


def draw(device: torch.device, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [M, H], a weight [V, H] and targets [M]."""
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(M, H, device=device, generator=generator)
    weight = torch.randn(vocab, H, device=device, generator=generator) * 0.3
    return hidden, weight, torch.randint(0, vocab, (M,), device=device, generator=generator)


def plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [M] by way of logits [M, V] in float64."""
    logits = hidden.double() @ weight.double().t()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_p = (logits / temperature).log_softmax(-1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def relative(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want||."""
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.fixture
def vocab(device: torch.device) -> int:
    """Qwen's, and on CPU a small one."""
    return 151_936 if device.type == "cuda" else 503


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("rows", [None, 64])
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (0.7, 15.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_plain_logits(
    device: torch.device,
    vocab: int,
    dtype: torch.dtype,
    temperature: float,
    softcap: float | None,
    rows: int | None,
    entropy: bool,
) -> None:
    hidden, weight, targets = draw(device, vocab)
    # What autocast rounds is rounded before, so that the two see the same factors.
    hidden, weight = (x.to(dtype).float() for x in (hidden, weight))
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        got, uncertainty = chunked_logprobs(
            *ours,
            targets,
            temperature=temperature,
            softcap=softcap,
            entropy=entropy,
            chunk_rows=rows,
        )
    want, expected = plain(*theirs, targets, temperature, softcap)
    # Products of bf16 factors are exact in float32: on CUDA only their sum is rounded. A CPU
    # rounds each logit to bf16.
    exact = dtype == torch.float32 or device.type == "cuda"
    bound = 5e-5 if exact else 0.2
    torch.testing.assert_close(got.double(), want, rtol=0, atol=bound)
    coefficient = torch.linspace(-1, 1, M, device=device)
    mine, plain_sum = (got * coefficient).sum(), (want * coefficient).sum()
    if entropy:
        assert uncertainty is not None
        torch.testing.assert_close(uncertainty.double(), expected, rtol=0, atol=2 * bound)
        mine, plain_sum = mine - 0.2 * uncertainty.sum(), plain_sum - 0.2 * expected.sum()
    mine.backward()
    plain_sum.backward()
    limit = 2e-5 if dtype == torch.float32 else 8e-3
    for one, other in zip(ours, theirs, strict=True):
        assert relative(one.grad, other.grad) < limit


def test_many_chunks_add_up_as_one_does(device: torch.device, vocab: int) -> None:
    """Partial products of a bf16 head are added in float32, however many there are."""
    if device.type != "cuda":
        pytest.skip("a CPU rounds every partial product to bf16")
    hidden, weight, targets = draw(device, vocab)
    gradients = []
    for rows in (7, M):
        leaf = weight.clone().requires_grad_()
        with torch.autocast(device.type, torch.bfloat16):
            chunked_logprobs(hidden, leaf, targets, chunk_rows=rows)[0].sum().backward()
        gradients.append(leaf.grad)
    assert relative(*gradients) < 1e-4


def test_memory_is_that_of_a_chunk(
    device: torch.device,
    vocab: int,
    peak: Callable[[Callable[[], Any]], int],
    say: Callable[[str], None],
) -> None:
    if device.type != "cuda":
        pytest.skip("counts CUDA's allocations")
    hidden, weight, targets = draw(device, vocab)
    hidden = hidden.repeat(12, 1).requires_grad_()  # 8400 rows: logits of 5.1 GB
    weight.requires_grad_()
    targets = targets.repeat(12)
    planned = head_bytes(vocab, torch.cuda.get_device_properties(device).total_memory, None)
    weights = 4 * 2 * vocab * H  # the gradient, and what rounds and adds it
    for entropy, softcap in ((False, None), (True, None), (False, 30.0), (True, 30.0)):

        def step(entropy: bool = entropy, softcap: float | None = softcap) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                logprobs, values = chunked_logprobs(
                    hidden, weight, targets, entropy=entropy, softcap=softcap
                )
            (logprobs.sum() + (values.sum() if values is not None else 0)).backward()

        taken = peak(step)
        say(
            f"head, entropy {entropy}, cap {softcap}: "
            f"peak {taken / planned:.2f} of {planned / 2**20:.0f} MiB"
        )
        assert taken < 1.1 * planned + weights
