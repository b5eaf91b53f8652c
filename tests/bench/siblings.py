"""The learner's time and memory by prompt length and number of siblings, prompts shared or not.

    python tests/bench/siblings.py [--prompts 128 512 2048] [--siblings 1 4 8 16] [--response 64]

What it is: forward and backward pass of the policy loss over one packed batch, a group of siblings
behind one prompt, in the layer shape of SmolLM2-135M with random weights and few layers, by the
code that the learner runs; once with the prompt computed for every sibling and once with it
computed once. Medians of `--repeats`, after a pass that is not counted, in seconds of a core, which
other work on the machine hardly changes (on CUDA: of the clock); memory is the peak above model and
gradients, of the first counted pass. Each cell of the table has a process of its own.
What it is not: a step of a run; nothing is sampled, and no optimizer steps.

It exits non-zero where a gradient norm of the two differs by more than a ten-thousandth.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from learner import ALGORITHM, MIB, Peak, build_model, columns_of
from torch.nn.utils import get_total_norm

from workers.data.packing import PackedBatch, pack
from workers.engines.model.policy_model import PolicyModel
from workers.engines.zero.weighted_loss import loss_inputs, weighted_sum

ALLOWED = 1e-4  # of a gradient norm


def packed(prompt: int, siblings: int, options: argparse.Namespace) -> PackedBatch:
    """One group behind one prompt."""
    random = np.random.default_rng(0)
    prompts = np.full(siblings, prompt)
    lengths = prompts + options.response  # [S]
    columns = columns_of(prompts, lengths, siblings, options.vocab, random)
    weights = {"policy": np.full(siblings, 1.0 / (siblings * options.response))}
    groups = np.zeros(siblings, dtype=np.int64) if options.share else None
    return pack(columns, weights=weights, groups=groups).to(options.device)


def measure(prompt: int, siblings: int, options: argparse.Namespace) -> dict[str, float]:
    """Seconds, bytes and gradient norm of one cell."""
    on_cuda = options.device.startswith("cuda")
    if options.threads and not on_cuda:
        torch.set_num_threads(options.threads)
    clock = time.perf_counter if on_cuda else time.process_time
    batch, model = packed(prompt, siblings, options), build_model(options)
    policy, seconds, peaks = PolicyModel(model), [], []  # type: ignore[arg-type]
    for _ in range(1 + options.repeats):
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        peak = Peak(options.device)
        peak.begin()
        began = clock()
        with torch.autocast(options.device.split(":")[0], torch.bfloat16, options.bf16):
            logprobs, _ = policy(
                batch.tokens,
                batch.position_ids,
                batch.cu_seqlens,
                batch.loss_mask,
                prefixes=batch.prefixes,
            )
        inputs = loss_inputs(batch, logprobs, None, old_is_current=True)
        weighted_sum(batch, ALGORITHM.token_loss(inputs)).backward()
        peaks.append(peak.end())  # on CUDA it waits for the device
        seconds.append(clock() - began)
    norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return {
        "tokens": len(batch.tokens if batch.prefixes is None else batch.prefixes.computed),
        "seconds": statistics.median(seconds[1:]),
        "peak_bytes": peaks[1],
        "grad_norm": float(norm),
    }


def line(prompt: int, siblings: int, plain: dict[str, float], shared: dict[str, float]) -> str:
    """A row of the table."""
    return (
        f"| {prompt:,} | {siblings} | {plain['tokens']:,.0f} | {shared['tokens']:,.0f} "
        f"| {plain['seconds']:.2f} | {shared['seconds']:.2f} "
        f"| {plain['seconds'] / shared['seconds']:.1f} | {plain['peak_bytes'] / MIB:,.0f} "
        f"| {shared['peak_bytes'] / MIB:,.0f} | {plain['peak_bytes'] / shared['peak_bytes']:.1f} |"
    )


HEADER = (
    "| prompt | siblings | tokens | computed once | core s | shared | ratio | MiB | shared "
    "| ratio |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--siblings", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--response", type=int, default=64, help="tokens of each response")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--threads", type=int, default=1, help="of torch; 0: torch's own choice")
    parser.add_argument("--cell", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--share", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    """Measures every cell in a process of its own and prints the table."""
    arguments = sys.argv[1:]
    options = parse(arguments)
    if options.cell:
        print(json.dumps(measure(*options.cell, options)))
        return 0
    unequal = []
    print(HEADER, flush=True)
    for prompt, siblings in itertools.product(options.prompts, options.siblings):
        cell = [sys.executable, __file__, *arguments, "--cell", str(prompt), str(siblings)]
        found = []
        for more in ([], ["--share"]):
            done = subprocess.run([*cell, *more], stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        plain, shared = found
        print(line(prompt, siblings, plain, shared), flush=True)
        if abs(plain["grad_norm"] / shared["grad_norm"] - 1) > ALLOWED:
            unequal.append((prompt, siblings, plain["grad_norm"], shared["grad_norm"]))
    print(
        f"\n{options.layers} layers, vocabulary {options.vocab:,}, responses of {options.response} "
        f"tokens, gradient checkpointing {'on' if options.checkpointing else 'off'}, "
        f"{options.device}; gradient norms that differ: {unequal or 'none'}"
    )
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
