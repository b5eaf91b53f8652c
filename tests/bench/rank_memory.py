"""Peak memory of a learner's rank on a CPU, beside the plan's estimate of it.

    python tests/bench/rank_memory.py

Every case is a process of its own, started as a run starts a rank, in which a Llama of random
weights takes two optimizer updates of two micro-batches. The peak is the kernel's own mark of
resident memory, so that no other load changes it; pages of the model's file, out of which a frozen
model is computed, count. Prints a table in Markdown. What the plan holds back for a GPU's own needs
(the reserve) is left out of the estimate.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

SIZES = {"15 M": (384, 6), "42 M": (640, 7), "106 M": (1024, 8)}  # width, layers
MODES = {
    "float32": [],
    "bfloat16 weights": ["model.dtype=bfloat16", "model.param_dtype=bfloat16"],
    "adapter, float32": ["model/adapter=lora"],
    "adapter, bfloat16": [
        "model/adapter=lora",
        "model.dtype=bfloat16",
        "model.param_dtype=bfloat16",
    ],
}
TOKENS, LENGTH, STAGE = 512, 128, 2
MIB = 2**20


def main() -> None:
    """Measure every case in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs=3, help="size, mode, folder: measure this one here")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=list(MODES))
    arguments = parser.parse_args()
    if arguments.case:
        size, mode, folder = arguments.case
        print(json.dumps(measure(size, mode, Path(folder))))
        return
    print("| parameters | mode | peak MiB | plan MiB | plan / peak |\n|---|---|--:|--:|--:|")
    for size in arguments.sizes:
        for mode in arguments.modes:
            case = measured(size, mode)
            peak, plan = case["peak"] / MIB, case["plan"] / MIB
            print(f"| {size} | {mode} | {peak:.0f} | {plan:.0f} | {plan / peak:.2f} |", flush=True)


def measured(size: str, mode: str) -> dict[str, float]:
    """Return what `measure` finds in a new process with the environment of a rank on CPUs."""
    from workers.learner.allocator import allocator_environment

    environment = os.environ | allocator_environment(os.environ) | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--case", size, mode, folder]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(size: str, mode: str, folder: Path) -> dict[str, float]:
    """Train in this process; return the bytes of its peak above the start, and those planned."""
    import numpy as np
    import peft  # noqa: F401  # the memory of modules is no part of a rank's estimate
    import pyarrow as pa
    import torch

    from algorithms.inputs import LossInputs, TokenLoss
    from conf.compose import compose
    from conf.schema import ArchitectureConfig
    from orchestrator.planning import memory
    from orchestrator.planning.settings import policy_settings
    from workers.data.packing import pack
    from workers.engines.zero.policy_engine import PolicyEngine
    from workers.engines.zero.process_group import ProcessGroupSettings, join

    class Likelihood:
        """Negative log-likelihood; only its memory matters here."""

        loss_columns = frozenset[str]()

        def token_loss(self, inputs: LossInputs) -> TokenLoss:
            flags = torch.zeros_like(inputs.loss_mask, dtype=torch.uint8)
            return TokenLoss(terms={"policy": -inputs.logprobs}, metrics={}, flags=flags)

    width, layers = SIZES[size]
    sizes = {"num_layers": layers, "hidden_size": width, "intermediate_size": 3 * width}
    heads = width // 64
    architecture = ArchitectureConfig(
        **sizes, num_heads=heads, num_kv_heads=heads, head_dim=64, vocab_size=4096, context=512
    )
    kept = torch.bfloat16 if "bfloat16" in mode else torch.float32
    build(folder, width, layers, kept)
    overrides = ["experiment=tiny", f"learner.zero_stage={STAGE}", f"learner.token_budget={TOKENS}"]
    _, config = compose([*overrides, "model.dtype=float32", *MODES[mode]])
    share = memory.policy_share(config, architecture, num_ranks=1, trains=True)
    group = ProcessGroupSettings()
    join(group)
    rng = np.random.default_rng(0)
    rows = TOKENS // LENGTH
    data = {
        "tokens": pa.array([rng.integers(3, 4096, LENGTH).astype(np.int32) for _ in range(rows)]),
        "loss_mask": pa.array([np.arange(LENGTH) > 0 for _ in range(rows)]),
        "advantages": pa.array([np.ones(LENGTH, np.float32) for _ in range(rows)]),
    }
    batch = pack(data, range(rows), weights={"policy": np.full(rows, 1 / TOKENS)})
    settings = policy_settings(config, str(folder), trains=True)

    def train(model: Path) -> None:
        engine = PolicyEngine(replace(settings, model=str(model)), group)
        for _ in range(2):
            engine.train([[batch, batch]], Likelihood(), temperature=1.0)
        engine.close()

    build(folder / "small", 64, 1, kept)
    train(folder / "small")  # torch's kernels and threads, and DeepSpeed's modules, stay from here
    give_back_freed()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    before = resident_bytes("VmRSS")
    train(folder)
    peak = resident_bytes("VmHWM") - before
    return {"peak": peak, "plan": share.total - share.parts["reserve"], **share.parts}


def give_back_freed() -> None:
    """Return freed pages to the kernel: those of the models built here are no part of a rank."""
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "mallctl"):  # jemalloc; 4096 means all of its arenas
        library.mallctl(b"arena.4096.purge", None, None, None, ctypes.c_size_t(0))
    library.malloc_trim(0)


def build(folder: Path, width: int, layers: int, dtype: Any) -> None:
    """Write a Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=3 * width,
        num_attention_heads=width // 64,
        vocab_size=4096,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)


def resident_bytes(mark: str) -> int:
    """Return the resident bytes of this process: VmRSS those of now, VmHWM those of the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{mark}:"))


if __name__ == "__main__":
    main()
