"""The learner on one GPU: tokens/s, share of peak arithmetic and memory, and what decides them.

    python tests/bench/gpu_learner.py [--device cuda] [--parts learner head attention profile]

What it is: optimizer steps (forward, backward, clipping, AdamW) of the policy loss on a model with
random weights in the shape of Qwen3, by the classes that a learner runs, without DeepSpeed. Beside
it the head alone by rows of a chunk, and attention alone by kernel. On CPU everything has toy size
and says nothing but that it runs. What it is not: a step of a run; nothing is sampled.

Arithmetic is counted as 6 times the parameters (tied ones once) and 6 x layers x heads x head size
x sequence length a token: what full training needs, whatever is computed twice or, beside an
adapter, not at all. prime-rl publishes shares of the same sum.

Legend: N tokens of the packed batch, V vocabulary, H hidden size, M predicted tokens.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, Qwen3Config

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.policy_losses.clipped import ClippedRatio
from workers.data.packing import PackedBatch, pack_sequences
from workers.engines.model import attention, sequence_attention
from workers.engines.model.chunked_head import chunked_logprobs
from workers.engines.model.head_rows import default_chunk_rows
from workers.engines.model.lora_settings import LoraSettings
from workers.engines.model.policy_model import PolicyModel
from workers.engines.zero.optimizers import build_optimizer
from workers.engines.zero.settings import OptimizerSettings
from workers.engines.zero.weighted_loss import loss_inputs, weighted_sum

GIB, MIB = 1 << 30, 1 << 20
HEADS, KV_HEADS, HEAD_SIZE = 16, 8, 128  # of the attention that is timed alone
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bf16, dense, by the data sheets
# (hidden, MLP, layers, heads, key-value heads, head size, vocabulary)
SHAPES = {
    "toy": (64, 96, 2, 4, 2, 16, 503),
    "Qwen3-0.6B": (1024, 3072, 28, 16, 8, 128, 151_936),
    "Qwen3-4B": (2560, 9728, 36, 32, 8, 128, 151_936),
}
ALGORITHM = Algorithm(
    name="grpo",
    advantage=GroupRelative(),
    policy_loss=ClippedRatio(clip_low=0.2, clip_high=0.2),
    aggregation=TokenMean(),
)
PUBLISHED = (  # prime-rl on one H100: tokens/s, share of peak, GiB
    ("Qwen3-0.6B", "full", 16_384, 11_900, 0.111, 12.5),
    ("Qwen3-0.6B", "full", 65_536, 10_100, 0.268, None),
    ("Qwen3-4B", "LoRA", 16_384, 6_200, 0.217, 23.3),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One learner at one size."""

    shape: str
    lengths: tuple[int, ...]
    rank: int | None = None  # of the adapter
    frozen: torch.dtype = torch.float32  # of what an adapter leaves alone
    attention: str = "auto"
    rows: int | None = None
    checkpointing: bool = True

    @property
    def label(self) -> str:
        """As the table has it."""
        kind = "full" if self.rank is None else f"LoRA {self.rank}"
        base = "" if self.frozen == torch.float32 else ", bf16 base"
        return f"{self.shape} {kind}{base}"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one step."""

    seconds: float
    flops: float
    peak_bytes: int
    loss: float


@contextmanager
def attention_by(name: str) -> Iterator[None]:
    """`auto` is the project's choice; `flash` is always the packed kernel.

    `blocks` and `cudnn` are padded blocks even on a GPU. `cudnn` names the kernel that has to
    compute them; for `blocks` torch chooses it.
    """
    chosen = attention.flash_computes, sequence_attention.dense_is_faster
    if name in ("blocks", "cudnn"):
        attention.flash_computes = lambda *_, **__: False
    if name == "flash":
        sequence_attention.dense_is_faster = lambda *_, **__: False
    backend = sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if name == "cudnn" else nullcontext()
    try:
        with backend:
            yield
    finally:
        attention.flash_computes, sequence_attention.dense_is_faster = chosen


def build(case: Case, device: torch.device) -> PolicyModel:
    """Random weights: float32, and what an adapter leaves alone in `frozen`."""
    hidden, inner, layers, heads, kv_heads, size, vocab = SHAPES[case.shape]
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=size,
        max_position_embeddings=1 << 17,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=case.frozen)
    adapter = None if case.rank is None else LoraSettings(rank=case.rank)
    policy = PolicyModel(model, autocast=torch.bfloat16, head_chunk=case.rows, adapter=adapter).to(
        device
    )
    for _, parameter in policy.hf_named_parameters():
        parameter.data = parameter.data.float()
    if case.checkpointing:
        policy.enable_gradient_checkpointing(reentrant=False)
    return policy.train()


def batch_of(case: Case, device: torch.device) -> PackedBatch:
    """Random tokens of the given lengths; all but each sequence's first train."""
    rng = np.random.default_rng(0)
    vocab = SHAPES[case.shape][-1]
    batch = pack_sequences(
        [rng.integers(0, vocab, size=length).tolist() for length in case.lengths]
    )
    advantages = torch.from_numpy(rng.normal(size=batch.num_tokens).astype(np.float32))
    weights = torch.full((len(case.lengths),), 1.0 / batch.num_tokens)
    return replace(batch, columns={"advantages": advantages}, weights={"policy": weights}).to(
        device
    )


def step_flops(case: Case, parameters: int) -> float:
    """What full training of the batch needs; see the module's docstring."""
    _, _, layers, heads, _, size, _ = SHAPES[case.shape]
    squares = sum(length * length for length in case.lengths)
    return 6.0 * parameters * sum(case.lengths) + 6.0 * layers * heads * size * squares


def synchronize(device: torch.device) -> None:
    """Wait for what the device was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def trainer(case: Case, device: torch.device) -> tuple[Callable[[], float], int]:
    """A function that takes one optimizer step and returns the loss, and the model's size."""
    policy, batch = build(case, device), batch_of(case, device)
    trained = [parameter for _, parameter in policy.hf_named_parameters()]
    optimizer = build_optimizer(OptimizerSettings(lr=1e-5), policy)
    count = sum(
        parameter.numel()
        for name, parameter in policy.model.named_parameters()
        if "lora_" not in name
    )

    def step() -> float:
        logprobs, entropy = policy(
            batch.tokens, batch.position_ids, batch.cu_seqlens, batch.loss_mask
        )
        inputs = loss_inputs(batch, logprobs, entropy, old_is_current=True)
        loss = weighted_sum(batch, ALGORITHM.token_loss(inputs))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step, count


def measure(case: Case, device: torch.device, steps: int) -> Measured:
    """Median of `steps` after two that warm up."""
    seconds, loss = [], 0.0
    with attention_by(case.attention):
        step, count = trainer(case, device)
        for number in range(2 + steps):
            synchronize(device)
            if number == 2 and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            loss = step()
            synchronize(device)
            seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return Measured(
        seconds=median(seconds[2:]),
        flops=step_flops(case, count),
        peak_bytes=peak,
        loss=loss,
    )


def release(device: torch.device) -> None:
    """Give back what the last case held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_flops(device: torch.device) -> float:
    """bf16 arithmetic a second by the data sheet; nan where it is not known."""
    if device.type != "cuda":
        return float("nan")
    name = torch.cuda.get_device_name(device)
    return next((value for key, value in PEAK_FLOPS.items() if key in name), float("nan"))


def reasoning_lengths(tokens: int) -> tuple[int, ...]:
    """Log-normal lengths that fill `tokens`: most short, a few long."""
    rng = np.random.default_rng(0)
    lengths: list[int] = []
    while (left := tokens - sum(lengths)) > 0:
        drawn = int(np.clip(rng.lognormal(np.log(tokens / 16), 1.0), 32, tokens // 2))
        lengths.append(min(drawn, left))
    return tuple(lengths)


def cases(device: torch.device) -> list[Case]:
    """In the order of the table; the toy's are the same in small."""
    small, large = ("Qwen3-0.6B", "Qwen3-4B") if device.type == "cuda" else ("toy", "toy")
    n = 16_384 if device.type == "cuda" else 96
    one, mixed = (n,), reasoning_lengths(n)
    bf16 = torch.bfloat16
    return [
        Case(shape=small, lengths=one),
        Case(shape=small, lengths=one, attention="flash"),
        Case(shape=small, lengths=one, rows=110),
        Case(shape=small, lengths=one, rows=512),
        Case(shape=small, lengths=mixed),
        Case(shape=small, lengths=mixed, attention="blocks"),
        Case(shape=small, lengths=(4 * n,)),
        Case(shape=small, lengths=(4 * n,), attention="flash"),
        Case(shape=small, lengths=one, rank=16),
        Case(shape=large, lengths=one, rank=16),
        Case(shape=large, lengths=one, rank=16, frozen=bf16),
        Case(shape=large, lengths=mixed, rank=16, frozen=bf16),
    ]


def learner_table(device: torch.device, steps: int) -> None:
    """Optimizer steps of whole models."""
    peak, memory = peak_flops(device), None
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    print(
        "\n| model | tokens | sequences | attention | rows | s/step | tokens/s | share of peak "
        "| GiB | loss |\n|---|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for case in cases(device):
        release(device)
        tokens = sum(case.lengths)
        head = f"| {case.label} | {tokens} | {len(case.lengths)} | {case.attention} "
        rows = case.rows or default_chunk_rows(SHAPES[case.shape][-1], memory)
        try:
            run = measure(case, device, steps)
        except torch.OutOfMemoryError as error:
            print(f"{head}| {rows} | out of memory: {str(error)[:80]} |", flush=True)
            continue
        print(
            f"{head}| {rows} | {run.seconds:.3f} | {tokens / run.seconds:.0f} "
            f"| {run.flops / run.seconds / peak:.3f} | {run.peak_bytes / GIB:.1f} "
            f"| {run.loss:.6f} |",
            flush=True,
        )
    for shape, kind, tokens, rate, share, gib in PUBLISHED:
        print(f"| prime-rl: {shape} {kind} | {tokens} | 1 | | | | {rate} | {share} | {gib} | |")


def timed(call: Callable[[], Any], device: torch.device, repeats: int) -> tuple[float, int]:
    """Median seconds, and peak bytes above what was held before."""
    call()
    synchronize(device)
    held = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() - held if device.type == "cuda" else 0
    return median(seconds), peak


def head_row(
    width: int, rows: int, entropy: bool, device: torch.device, repeats: int
) -> tuple[float, float, int]:
    """Seconds forward, seconds with backward and peak bytes of the head alone."""
    vocab, tokens = (151_936, 16_384) if device.type == "cuda" else (503, 64)
    hidden = torch.randn(tokens, width, device=device, requires_grad=True)
    weight = (0.02 * torch.randn(vocab, width, device=device)).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,), device=device)

    def forward() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            logprobs, values = chunked_logprobs(
                hidden, weight, targets, entropy=entropy, chunk_rows=rows
            )
        return logprobs.sum() if values is None else logprobs.sum() + values.sum()

    def both() -> None:
        hidden.grad = weight.grad = None
        forward().backward()

    alone, _ = timed(forward, device, repeats)
    return alone, *timed(both, device, repeats)


def head_table(device: torch.device, repeats: int) -> None:
    """The head alone, by rows of a chunk."""
    on_gpu = device.type == "cuda"
    print(
        "\n| H | rows | entropy | forward ms | with backward ms | peak MiB |"
        "\n|---|---|---|---|---|---|"
    )
    for width in (1024, 2560, 4096) if on_gpu else (32,):
        for rows in (110, 512, 1024, 2048, 4096) if on_gpu else (8, 64):
            for entropy in (False, True) if width <= 1024 else (False,):
                release(device)
                alone, whole, peak = head_row(width, rows, entropy, device, repeats)
                print(
                    f"| {width} | {rows} | {entropy} | {1e3 * alone:.1f} | {1e3 * whole:.1f} "
                    f"| {peak / MIB:.0f} |",
                    flush=True,
                )


def attention_row(
    dtype: torch.dtype,
    lengths: tuple[int, ...],
    window: int | None,
    device: torch.device,
    repeats: int,
) -> tuple[float, float, int]:
    """Seconds forward, seconds with backward and peak bytes of one layer's attention."""
    ends = torch.tensor([0, *np.cumsum(lengths)], device=device).int()
    q, k, v = (
        torch.randn(
            1, heads, sum(lengths), HEAD_SIZE, device=device, dtype=dtype, requires_grad=True
        )
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    extras = attention.attention_arguments(attention.VARLEN_SDPA, ends)

    def forward() -> Tensor:
        return attention.varlen_sdpa(nn.Module(), q, k, v, None, sliding_window=window, **extras)[0]

    def both() -> None:
        q.grad = k.grad = v.grad = None
        forward().sum().backward()

    alone, _ = timed(forward, device, repeats)
    return alone, *timed(both, device, repeats)


def attention_table(device: torch.device, repeats: int) -> None:
    """One layer's attention, 16 heads on 8 of 128, by kernel."""
    n = 16_384 if device.type == "cuda" else 96
    print(
        "\n| dtype | sequences | window | attention | forward ms | with backward ms | TFLOP/s "
        "| peak MiB |\n|---|---|---|---|---|---|---|---|"
    )
    tried = [
        (torch.bfloat16, (n,), None, ("auto", "flash", "blocks", "cudnn")),
        (torch.bfloat16, reasoning_lengths(n), None, ("auto", "flash", "blocks", "cudnn")),
        (torch.bfloat16, (n,), n // 16, ("auto", "blocks")),
        (torch.float32, (n,), None, ("auto",)),
        (torch.bfloat16, (n // 4,) * 4, None, ("auto", "flash")),
    ]
    for dtype, lengths, window, names in tried:
        # Causal: half of 4 L^2 D a head forward, and two and a half times that backward.
        flops = 3.5 * 2 * HEADS * HEAD_SIZE * sum(length * length for length in lengths)
        for name in names:
            release(device)
            label = f"| {str(dtype)[6:]} | {len(lengths)} | {window} | {name} "
            try:
                with attention_by(name):
                    alone, whole, peak = attention_row(dtype, lengths, window, device, repeats)
            except RuntimeError as error:  # a kernel that does not take this
                print(f"{label}| {str(error).splitlines()[0][:100]} |", flush=True)
                continue
            rate = f"{flops / whole / 1e12:.0f}" if window is None else ""
            print(
                f"{label}| {1e3 * alone:.1f} | {1e3 * whole:.1f} | {rate} | {peak / MIB:.0f} |",
                flush=True,
            )


def profile(device: torch.device) -> None:
    """Where the time of one step goes, by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    step, _ = trainer(cases(device)[0], device)
    step()
    kinds = [ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    with profiler(activities=kinds) as trace:
        step()
        synchronize(device)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(trace.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=70))


def main() -> None:
    """Prints one table for each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=3, help="timed ones, after two")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["learner", "head", "attention"],
        choices=["learner", "head", "attention", "profile"],
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, toy size"
    print(
        f"{name}; torch {torch.__version__}; peak {peak_flops(device) / 1e12:.0f} TFLOP/s in bf16"
    )
    if "learner" in options.parts:
        learner_table(device, options.steps)
    if "head" in options.parts:
        head_table(device, options.steps)
    if "attention" in options.parts:
        attention_table(device, options.steps)
    if "profile" in options.parts:
        release(device)
        profile(device)


if __name__ == "__main__":
    main()
