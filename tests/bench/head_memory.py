"""Peak memory of the language-model head against tokens and vocabulary, plain beside chunked.

    python tests/bench/head_memory.py [--tokens 1024 4096 16384] [--hidden 64] [--device cpu]

What it is: forward and backward of log-probs from hidden states [M, H] and a weight [V, H], once by
way of the logits [M, V] in float32 and once by `chunked_logprobs`. Memory is the peak above hidden
states, weight and both of their gradients. Seconds (CPU seconds on CPU) are printed because the
chunked head computes its logits twice. A plain head above `--limit-gib` is not run; what it would
take is extrapolated from the last one that was, and stands in brackets.

The hidden size is small because it costs time and no memory that the two heads differ in.
On CPU every measurement is a forked process of its own.
"""

import argparse
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workers.engines.model.chunked_head import chunked_logprobs

MIB, GIB = 1 << 20, 1 << 30
VOCABULARIES = (1024, 8192, 32768, 49152, 131072, 151936)
PLAIN_COPIES = 3.0  # [M, V] float32 that a plain head holds at its peak, until one was measured


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One head at one size."""

    peak_bytes: int
    seconds: float


def plain_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Log-probs [M] by way of the logits [M, V]."""
    logits = (hidden @ weight.t()).float()
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(head: str, tokens: int, vocab: int, options: argparse.Namespace) -> Measured:
    """Forward and backward of one head, in this process."""
    on_cuda = options.device.startswith("cuda")
    generator = torch.Generator(options.device).manual_seed(0)
    place: dict[str, Any] = {"device": options.device, "generator": generator}
    hidden = torch.randn(tokens, options.hidden, **place).requires_grad_()
    weight = torch.randn(vocab, options.hidden, **place).mul_(0.1).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,), **place)
    for tensor in (hidden, weight):
        tensor.grad = torch.full_like(tensor, 0.0).add_(0.0)  # written, so that it is resident
    if on_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        before = resident("VmRSS")
    clock = time.perf_counter if on_cuda else time.process_time
    began = clock()
    if head == "plain":
        logprobs = plain_logprobs(hidden, weight, targets)
    else:
        logprobs = chunked_logprobs(hidden, weight, targets)[0]
    logprobs.sum().backward()
    if on_cuda:
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = resident("VmHWM") - before
    return Measured(peak_bytes=int(peak), seconds=clock() - began)


def apart(head: str, tokens: int, vocab: int, options: argparse.Namespace) -> Measured:
    """`measure`, in a forked process on CPU so that nothing that another one freed is reused."""
    if options.device.startswith("cuda"):
        torch.cuda.empty_cache()
        return measure(head, tokens, vocab, options)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measure, (head, tokens, vocab, options))


def main() -> None:
    """Measures every size and prints one line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--vocab", type=int, nargs="+", default=list(VOCABULARIES))
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--limit-gib", type=float, default=6.0, help="largest plain head to run")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    print(
        "| tokens | vocabulary | one [M, V] MiB | plain MiB | chunked MiB | plain s | chunked s |"
    )
    print("|---|---|---|---|---|---|---|")
    copies = PLAIN_COPIES
    for tokens in options.tokens:
        for vocab in options.vocab:
            logits = tokens * vocab * 4
            chunked = apart("chunked", tokens, vocab, options)
            if copies * logits <= options.limit_gib * GIB:
                plain = apart("plain", tokens, vocab, options)
                copies = max(1.0, plain.peak_bytes / logits)
                cells = f"{plain.peak_bytes / MIB:.0f}", f"{plain.seconds:.1f}"
            else:
                cells = f"({copies:.1f} x = {copies * logits / MIB:.0f})", "-"
            print(
                f"| {tokens} | {vocab} | {logits / MIB:.0f} | {cells[0]} "
                f"| {chunked.peak_bytes / MIB:.0f} | {cells[1]} | {chunked.seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
