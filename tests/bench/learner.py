"""What packing and the chunked head save: tokens/s and peak memory of forward and backward.

    python tests/bench/learner.py [--layers 4] [--rows 8] [--length-limit 512] [--sequences 24]
    python tests/bench/learner.py --task short --rows 85      # the quickstart's shape

What it is: one optimizer update's worth of the policy loss on groups of `--siblings` sequences,
whose lengths are those of a reasoning run (log-normal, a twentieth of it cut at the length limit,
all scaled down by 32) or of the quickstart (prompts of 16 tokens, answers of 1 to 4), cut into
micro-batches of at most `rows x length limit` tokens, padding counted. The same model, sequences,
loss and budget in five ways:

    padded, plain logits      right-padded rows in the order of arrival, as many as the budget holds
    sorted, plain logits      the same after sorting by length, which ties a batch to its lengths
    packed, plain logits      no padding, logits [N, V]
    packed, chunked head      what the learner runs where siblings cannot share their prompt
    shared, chunked head      what it runs elsewhere: the prompt of siblings once in a micro-batch

Each way has a process of its own; the loss and the gradient norm are printed to show that all
compute the same. Memory is the peak above the loaded model and its gradients: resident on CPU,
allocated on CUDA. What it is not: a step of a run; nothing is sampled, and no optimizer steps.

The layers have the shape of SmolLM2-135M and there are few of them, so the head has a larger share
here (two thirds of the products at 4 layers) than in the whole model (a fifth).

Legend: B rows of a padded batch, L its longest, N tokens of a packed batch, V vocabulary.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import AutoModelForCausalLM, LlamaConfig

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.policy_losses.clipped import ClippedRatio
from orchestrator.step.partition import micro_batches, partition
from orchestrator.step.siblings import Siblings
from workers.data.packing import PackedBatch, pack
from workers.engines.model.attention import VARLEN_SDPA, attention_arguments
from workers.engines.model.policy_model import PolicyModel
from workers.engines.zero.weighted_loss import loss_inputs, weighted_sum

BASELINE, PACKED, OURS = "padded, plain logits", "packed, chunked head", "shared, chunked head"
VARIANTS = (BASELINE, "sorted, plain logits", "packed, plain logits", PACKED, OURS)
SHORT_PROMPT, SHORT_RESPONSES = 16, (1, 4)  # tokens
MIB = 1 << 20
PROMPT_FRACS = (1 / 32, 1 / 16)  # of the length limit
RESPONSE_MEDIAN, RESPONSE_SIGMA = 3 / 16, 1.0  # log-normal; the median as part of the length limit
ALGORITHM = Algorithm(
    name="grpo",
    advantage=GroupRelative(),
    policy_loss=ClippedRatio(clip_low=0.2, clip_high=0.2),
    aggregation=TokenMean(),
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One way's numbers; bytes above model and gradients."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    tokens: int  # real ones
    computed_tokens: int  # padding counted, a shared prompt once
    micro_batches: int
    loss: float
    grad_norm: float

    @property
    def tokens_per_s(self) -> float:
        """Real tokens trained per second."""
        return self.tokens / self.seconds

    @property
    def tokens_per_cpu_s(self) -> float:
        """The same per second of a core, which other work on the machine does not change."""
        return self.tokens / self.cpu_seconds


def build_model(options: argparse.Namespace) -> torch.nn.Module:
    """Random weights in the layer shape of SmolLM2-135M, with attention by packed blocks."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=options.layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=1 << 15,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config).to(options.device)
    if options.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def sequences(options: argparse.Namespace) -> dict[str, pa.ListArray]:
    """Columns of `--sequences` trajectories: the quantiles of the length distribution, shuffled."""
    random = np.random.default_rng(0)
    count, limit = options.sequences, options.length_limit
    group = np.arange(count) // options.siblings  # [S]
    if options.task == "short":
        responses = random.permutation(np.linspace(*SHORT_RESPONSES, count).round())
        prompts = np.full(count, SHORT_PROMPT)
    else:
        quantiles = [NormalDist().inv_cdf((row + 0.5) / count) for row in range(count)]
        responses = RESPONSE_MEDIAN * limit * np.exp(RESPONSE_SIGMA * random.permutation(quantiles))
        prompts = (random.uniform(*PROMPT_FRACS, count) * limit).astype(np.int64)[group]  # [S]
    lengths = np.minimum(prompts + np.maximum(responses.astype(np.int64), 1), limit)  # [S]
    return columns_of(prompts, lengths, options.siblings, options.vocab, random)


def columns_of(
    prompts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    siblings: int,
    vocab: int,
    random: np.random.Generator,
) -> dict[str, pa.ListArray]:
    """Columns of trajectories of random tokens; neighbours, `siblings` of them, share a prompt.

    `prompts` [S] counts the tokens of each one's prompt, `lengths` [S] all of its tokens.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)])  # [S+1]
    total = int(offsets[-1])
    place = np.arange(total) - np.repeat(offsets[:-1], lengths)  # [N]
    mask = place >= np.repeat(prompts, lengths)
    tokens = random.integers(0, vocab, total)
    for row in range(len(lengths)):  # of a group all have the first one's prompt
        first = offsets[row - row % siblings]
        start, size = offsets[row], prompts[row]
        tokens[start : start + size] = tokens[first : first + size]
    columns = {
        "tokens": tokens,
        "loss_mask": mask,
        "advantages": np.repeat(random.standard_normal(len(lengths)), lengths),
    }
    starts = pa.array(offsets, pa.int32())
    return {name: pa.ListArray.from_arrays(starts, pa.array(v)) for name, v in columns.items()}


def fitted_rows(lengths: npt.NDArray[np.int64], budget: int) -> list[npt.NDArray[np.int64]]:
    """Rows in their order, as many to a batch as rows x longest <= budget allows."""
    batches: list[list[int]] = [[]]
    for row in range(len(lengths)):
        rows = [*batches[-1], row]
        if len(rows) * int(lengths[rows].max()) > budget:
            batches.append([row])
        else:
            batches[-1] = rows
    return [np.asarray(rows, dtype=np.int64) for rows in batches]


def plan_rows(
    name: str, lengths: npt.NDArray[np.int64], options: argparse.Namespace
) -> tuple[list[npt.NDArray[np.int64]], int]:
    """Rows of every micro-batch of one way, and the tokens it computes, padding counted."""
    budget = options.rows * options.length_limit
    if name == OURS:
        columns = sequences(options)
        mask = np.split(columns["loss_mask"].flatten().to_numpy(False), np.cumsum(lengths)[:-1])
        siblings = Siblings(
            groups=np.arange(len(lengths)) // options.siblings,
            prefixes=np.asarray([int(np.argmax(own)) for own in mask]),
        )
        found = partition(lengths, num_ranks=1, token_budget=budget, siblings=siblings)
        return list(found.rows[0]), found.num_tokens
    if name.startswith("packed"):
        return micro_batches(lengths, budget), int(lengths.sum())
    order = np.argsort(lengths) if name.startswith("sorted") else np.arange(len(lengths))
    plan = [order[rows] for rows in fitted_rows(lengths[order], budget)]
    return plan, sum(len(rows) * int(lengths[rows].max()) for rows in plan)


def plain_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probs [M] of `targets` [M] from `logits` [M, V], in float32."""
    return logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def padded_forward(model: torch.nn.Module, batch: PackedBatch) -> Tensor:
    """Log-probs [N] by way of logits [B, L, V]; padding on the right needs no attention mask."""
    lengths = batch.cu_seqlens.diff().long()  # [B]
    longest = int(lengths.max())
    grid = torch.zeros(len(lengths), longest, dtype=torch.int64, device=batch.tokens.device)
    grid[batch.sequence_ids, batch.position_ids] = batch.tokens
    logits = model(input_ids=grid, use_cache=False).logits  # [B, L, V]
    predicted = plain_logprobs(logits[:, :-1].flatten(0, 1), grid[:, 1:].flatten())
    first = predicted.new_zeros(len(lengths), 1)
    whole = torch.cat([first, predicted.view(len(lengths), longest - 1)], dim=1)  # [B, L]
    return whole[batch.sequence_ids, batch.position_ids]


def packed_forward(model: torch.nn.Module, batch: PackedBatch) -> Tensor:
    """Log-probs [N] by way of logits [N, V]."""
    hidden = model.get_decoder()(
        input_ids=batch.tokens[None],
        position_ids=batch.position_ids[None],
        use_cache=False,
        **attention_arguments(VARLEN_SDPA, batch.cu_seqlens),
    ).last_hidden_state[0]
    predicted = plain_logprobs(model.get_output_embeddings()(hidden)[:-1], batch.tokens[1:])
    logprobs = torch.cat([predicted.new_zeros(1), predicted])
    return torch.where(batch.position_ids == 0, 0.0, logprobs)


class Peak:
    """Memory between `begin` and `end`, in bytes: of the process, or of the CUDA allocator."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._before = 0

    def begin(self) -> None:
        """What is held at this moment does not count."""
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        self._before = self._status("VmRSS")

    def end(self) -> int:
        """The highest since `begin`."""
        if self._cuda:
            torch.cuda.synchronize()
            return int(torch.cuda.max_memory_allocated() - self._before)
        return self._status("VmHWM") - self._before

    @staticmethod
    def _status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(name: str, options: argparse.Namespace) -> Measured:
    """Forward and backward of every micro-batch of one way."""
    if options.threads and not options.device.startswith("cuda"):
        torch.set_num_threads(options.threads)
    columns = sequences(options)
    lengths = np.diff(columns["tokens"].offsets.to_numpy()).astype(np.int64)  # [S]
    plan, computed = plan_rows(name, lengths, options)
    num_trained = int(np.count_nonzero(columns["loss_mask"].flatten()))
    weights = {"policy": np.full(len(lengths), 1.0 / num_trained)}
    groups = np.arange(len(lengths)) // options.siblings if name == OURS else None
    batches = [
        pack(columns, rows, weights=weights, groups=groups).to(options.device) for rows in plan
    ]
    model = build_model(options)
    if name in (PACKED, OURS):
        policy = PolicyModel(model)  # type: ignore[arg-type]

        def forward(batch: PackedBatch) -> Tensor:
            arguments = (batch.tokens, batch.position_ids, batch.cu_seqlens, batch.loss_mask)
            return policy(*arguments, prefixes=batch.prefixes)[0]

    elif name.startswith("packed"):
        model.set_attn_implementation(VARLEN_SDPA)

        def forward(batch: PackedBatch) -> Tensor:
            return packed_forward(model, batch)

    else:

        def forward(batch: PackedBatch) -> Tensor:
            return padded_forward(model, batch)

    def update(chosen: list[PackedBatch]) -> float:
        total = 0.0
        for batch in chosen:
            with torch.autocast(options.device.split(":")[0], torch.bfloat16, options.bf16):
                logprobs = forward(batch)
            inputs = loss_inputs(batch, logprobs, None, old_is_current=True)
            loss = weighted_sum(batch, ALGORITHM.token_loss(inputs))
            loss.backward()
            total += loss.item()
        return total

    shortest = int(lengths.argmin())
    update([pack(columns, [shortest], weights=weights).to(options.device)])  # gradients now exist
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.zero_()
    peak = Peak(options.device)
    peak.begin()
    began, cpu_began = time.perf_counter(), time.process_time()
    loss = update(batches)
    peak_bytes = peak.end()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return Measured(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_bytes=peak_bytes,
        tokens=int(lengths.sum()),
        computed_tokens=computed,
        micro_batches=len(plan),
        loss=loss,
        grad_norm=float(norm),
    )


def table(results: dict[str, Measured]) -> str:
    """One line per way; ratios are to the padded one."""
    base = results[BASELINE]
    lines = [
        "| way | micro-batches | fill | tokens/s | x padded | tokens/core s | x padded | peak MiB "
        "| x padded | loss | gradient norm |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {run.micro_batches} | {run.tokens / run.computed_tokens:.2f} "
        f"| {run.tokens_per_s:.0f} | {run.tokens_per_s / base.tokens_per_s:.2f} "
        f"| {run.tokens_per_cpu_s:.0f} | {run.tokens_per_cpu_s / base.tokens_per_cpu_s:.2f} "
        f"| {run.peak_bytes / MIB:.0f} | {run.peak_bytes / base.peak_bytes:.2f} "
        f"| {run.loss:.6f} | {run.grad_norm:.5f} |"
        for name, run in results.items()
    ]
    return "\n".join(lines)


def options_of(arguments: list[str]) -> argparse.Namespace:
    """The command line; on CUDA the defaults are the whole model at a useful size, in bf16."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--layers", type=int, help="4; on cuda 30")
    parser.add_argument("--sequences", type=int, help="24; on cuda 256")
    parser.add_argument("--task", choices=("reasoning", "short"), default="reasoning")
    parser.add_argument("--siblings", type=int, default=8, help="sequences of one prompt")
    parser.add_argument("--rows", type=int, default=8, help="budget / length limit")
    parser.add_argument("--length-limit", type=int, help="512; on cuda 8192; of --task short 24")
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="autocast")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=1, help="of torch; 0: torch's own choice")
    parser.add_argument("--only", choices=VARIANTS, help="measure one way and print JSON")
    options = parser.parse_args(arguments)
    on_cuda = options.device.startswith("cuda")
    options.layers = options.layers or (30 if on_cuda else 4)
    short = options.task == "short"
    options.sequences = options.sequences or (128 if short else 256 if on_cuda else 24)
    options.length_limit = options.length_limit or (24 if short else 8192 if on_cuda else 512)
    options.bf16 = on_cuda if options.bf16 is None else options.bf16
    return options


def main() -> None:
    """Measures every way in a process of its own and prints the table."""
    arguments = sys.argv[1:]
    options = options_of(arguments)
    if options.only:
        print(json.dumps(vars(measure(options.only, options))))
        return
    results = {}
    for name in VARIANTS:
        command = [sys.executable, __file__, *arguments, "--only", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[name] = Measured(**json.loads(done.stdout.splitlines()[-1]))
        print(f"{name}: {results[name].seconds:.1f} s", flush=True)
    print(
        f"\n{options.layers} layers, vocabulary {options.vocab}, {options.sequences} sequences, "
        f"{results[OURS].tokens} tokens, budget {options.rows * options.length_limit}, "
        f"gradient checkpointing {'on' if options.checkpointing else 'off'}, {options.device}\n\n"
        f"{table(results)}"
    )


if __name__ == "__main__":
    main()
