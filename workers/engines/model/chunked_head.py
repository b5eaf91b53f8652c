"""Language-model head that never holds all logits: log-probabilities and entropies by chunks.

Hidden states [M, H] and the weight [V, H] go in, log-probabilities and full-vocabulary entropies
[M] of the targets come out, in float32. At most `chunk_rows` rows of logits exist at a time, in
the forward and, recomputed, in the backward pass: memory does not grow with M * V. Runs in the
ranks of learner and reference. Samples nothing.

The arithmetic, per row, with raw logits r, their scale s, soft cap c and temperature T:
    z = c * tanh(s * r / c) / T   (s * r / T without a cap)        p = softmax(z)
    logprob = z[target] - logsumexp(z)                     d logprob / dz = onehot(target) - p
    entropy = -sum(p * log p)                              d entropy / dz = -p * (log p + entropy)

Legend: M predicted tokens, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.engines.model.head_rows import default_chunk_rows


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # [M, H]
        weight: Tensor,  # [V, H]
        bias: Tensor | None,  # [V]
        targets: Tensor,  # [M] int64
        temperature: float,
        scale: float,
        softcap: float | None,
        with_entropy: bool,
        chunk_rows: int,
        product_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        # An output that nothing differentiates (entropies that only gate) then costs nothing.
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.with_entropy = temperature, with_entropy
        ctx.scale, ctx.softcap = scale, softcap
        ctx.chunk_rows, ctx.product_dtype = chunk_rows, product_dtype
        logprobs = hidden.new_empty(hidden.shape[0], dtype=torch.float32)  # [M]
        entropies = torch.empty_like(logprobs) if with_entropy else logprobs.new_empty(0)
        factor = weight.to(product_dtype)  # [V, H]
        for rows in _chunks(hidden.shape[0], chunk_rows):
            z = _logits(hidden[rows], factor, bias)  # [m, V]
            _cap_and_divide_(z, temperature=temperature, scale=scale, softcap=softcap)
            picked = targets[rows, None]  # [m, 1]
            if with_entropy or z.is_cuda:
                z = _log_softmax_(z)
                logprobs[rows] = z.gather(1, picked)[:, 0]
            else:
                logprobs[rows] = z.gather(1, picked)[:, 0] - z.logsumexp(dim=-1)
            if with_entropy:
                # From log p: logsumexp(z) - sum(p * z) would cancel where the logits are large.
                entropies[rows] = z.exp().mul_(z).sum(dim=-1).neg_()
            del z  # or the next chunk's logits would lie beside it
        if not with_entropy:
            ctx.mark_non_differentiable(entropies)
        ctx.save_for_backward(hidden, weight, bias, targets, entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        hidden, weight, bias, targets, entropies = ctx.saved_tensors
        grad_logprobs: Tensor | None = grads[0]  # [M]
        grad_entropies = grads[1] if ctx.with_entropy else None  # [M]
        if grad_logprobs is None:
            grad_logprobs = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
        factor = weight.to(ctx.product_dtype)  # [V, H]
        grad_hidden = torch.empty_like(hidden)
        grad_weight: Tensor | None = None  # [V, H] float32
        trains = ctx.needs_input_grad[1]  # not where the head is frozen beside an adapter
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for rows in _chunks(hidden.shape[0], ctx.chunk_rows):
            z = _logits(hidden[rows], factor, bias)  # [m, V]
            slope = _cap_and_divide_(
                z, temperature=ctx.temperature, scale=ctx.scale, softcap=ctx.softcap
            )
            z = _log_softmax_(z)
            _gradient_(
                z,
                targets[rows],
                grad_logprobs[rows],
                None if grad_entropies is None else grad_entropies[rows],
                entropies[rows],
            )
            if isinstance(slope, Tensor) or slope != 1.0:
                z.mul_(slope)
            if grad_bias is not None:
                grad_bias.add_(z.sum(dim=0))
            grad_raw = z.to(ctx.product_dtype)
            grad_hidden[rows] = _product(grad_raw, factor)
            if trains:
                chunk = hidden[rows].to(ctx.product_dtype)
                grad_weight = _add_product_(grad_weight, grad_raw.t(), chunk)
            del z, slope, grad_raw  # or the next chunk's would lie beside them
        if grad_weight is None and trains:
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, *([None] * 7)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right in float32; where the device can, never rounded to the factors' dtype."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


def _add_product_(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Add left @ right [V, H] to `total` in float32, in place where there is a total.

    The first product is taken as it is: filling 100 MB with zeros to add to costs more.
    """
    if total is None:
        return _product(left, right)
    if left.dtype == torch.float32:
        return total.addmm_(left, right)
    if left.is_cuda:
        # One pass over the total, and no product in half precision beside it.
        return torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    return total.add_(left @ right)


def _gpu_bytes(device: torch.device) -> int | None:
    """Return the memory of a GPU; None for a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory


def _chunks(num_rows: int, chunk_rows: int) -> list[slice]:
    return [slice(first, first + chunk_rows) for first in range(0, num_rows, chunk_rows)]


def _logits(hidden: Tensor, factor: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the raw logits [m, V] in float32."""
    logits = _product(hidden.to(factor.dtype), factor.t())
    return logits if bias is None else logits.add_(bias.float())


def _log_softmax_(z: Tensor) -> Tensor:
    """Return log p [m, V], in the memory of `z` where that costs nothing."""
    # On a GPU one kernel reads z and writes log p; the steps in place would pass over it six times.
    return z.log_softmax(dim=-1) if z.is_cuda else z.sub_(z.logsumexp(dim=-1, keepdim=True))


def _gradient_(
    log_p: Tensor,  # [m, V]
    targets: Tensor,  # [m]
    grad_logprobs: Tensor,  # [m]
    grad_entropies: Tensor | None,  # [m]
    entropies: Tensor,  # [m], read where they have a gradient
) -> None:
    """Turn log p [m, V] into the gradient by the logits; entropies take one buffer beside it."""
    if grad_entropies is None:
        log_p.exp_().mul_(-grad_logprobs[:, None])
    else:
        p = log_p.exp()
        log_p.add_(entropies[:, None]).mul_(grad_entropies[:, None]).add_(grad_logprobs[:, None])
        log_p.mul_(p).neg_()
    log_p.scatter_add_(1, targets[:, None], grad_logprobs[:, None])


def _cap_and_divide_(
    logits: Tensor, *, temperature: float, scale: float, softcap: float | None
) -> Tensor | float:
    """Scale, cap and divide `logits` in place; return their derivative by the raw logits."""
    divisor = temperature / scale
    if softcap is None:
        if divisor != 1.0:
            logits.div_(divisor)
        return 1.0 / divisor
    logits.div_(softcap / scale).tanh_()
    slope = (1.0 - logits**2).div_(divisor)
    logits.mul_(softcap / temperature)
    return slope


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute log-probabilities and entropies of `targets` without ever holding [M, V].

    Under autocast the matrix products use its dtype; logits, softmax and results are float32.

    Args:
        hidden: [M, H], any float dtype; M may be 0.
        weight: [V, H].
        targets: [M] int64.
        bias: [V] or None.
        temperature: the logits are divided by it; positive.
        scale: positive factor of the logits, before the cap, as Cohere and Granite have.
        softcap: `c` of `c * tanh(logits / c)`, as Gemma 2 has.
        entropy: also return entropies; both outputs then carry gradients.
        chunk_rows: rows of float32 logits held at a time; None asks `head_rows`.

    Returns:
        Log-probabilities [M] float32, and entropies [M] float32 or None.

    Raises:
        ValueError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(
            f"temperature={temperature}: log-probabilities need a positive one; greedy sampling "
            "has none, score it at the temperature that training uses"
        )
    device = hidden.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    with torch.autocast(device, enabled=False):
        logprobs, entropies = _ChunkedLogprobs.apply(
            hidden,
            weight,
            bias,
            targets,
            float(temperature),
            scale,
            softcap,
            entropy,
            chunk_rows or default_chunk_rows(weight.shape[0], _gpu_bytes(weight.device)),
            product or weight.dtype,
        )
    return logprobs, entropies if entropy else None


class ChunkedHead(nn.Module):
    """Output embedding as a module that owns its (possibly tied) weight.

    ZeRO-3 gathers a parameter around the module that owns it, in forward and in backward: the
    head has to be a module that is called, not a tensor that is reached for.
    """

    def __init__(
        self,
        weight: nn.Parameter,  # [V, H]
        bias: nn.Parameter | None = None,  # [V]
        *,
        scale: float = 1.0,
        softcap: float | None = None,
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.scale, self.softcap = scale, softcap
        self.chunk_rows = chunk_rows
        self.known_ids: int | None = None  # the rest of the rows, which no text has, is left out

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        temperature: float = 1.0,
        entropy: bool = False,
    ) -> Any:
        """Compute log-probabilities and entropies [M] of `targets` [M] after `hidden` [M, H].

        Without targets return what the replaced head would, raw logits [..., V] of `hidden`
        [..., H]: the model's own forward pass, which the self-test runs, works as ever.
        """
        if targets is None:
            return F.linear(hidden, self.weight, self.bias)
        return chunked_logprobs(
            hidden,
            self.weight[: self.known_ids],
            targets,
            bias=None if self.bias is None else self.bias[: self.known_ids],
            temperature=temperature,
            scale=self.scale,
            softcap=self.softcap,
            entropy=entropy,
            chunk_rows=self.chunk_rows,
        )
