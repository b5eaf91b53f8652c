"""Peak memory of a learner's rank on a CPU, beside the plan's estimate of it.

    python tests/bench/rank_memory.py

Every case is a process of its own, whose memory is read before the model is loaded and then a few
hundred times a second: a Llama of random weights takes two optimizer updates. Pages of the model's
file, which the kernel takes back when it needs them, are not counted. Prints a table in Markdown.
What the plan holds back for a GPU's own needs (the reserve) is left out of the estimate.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import threading
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
    arguments = parser.parse_args()
    if arguments.case:
        size, mode, folder = arguments.case
        print(json.dumps(measure(size, mode, Path(folder))))
        return
    print("| parameters | mode | peak MiB | plan MiB | plan / peak |\n|---|---|--:|--:|--:|")
    for size in arguments.sizes:
        for mode in MODES:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--case", size, mode, folder]
                done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            case = json.loads(done.stdout.splitlines()[-1])
            peak, plan = case["peak"] / MIB, case["plan"] / MIB
            print(f"| {size} | {mode} | {peak:.0f} | {plan:.0f} | {plan / peak:.2f} |", flush=True)


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
            engine.train([[batch]], Likelihood(), temperature=1.0)
        engine.close()

    build(folder / "small", 64, 1, kept)
    train(folder / "small")  # torch's kernels and threads, and DeepSpeed's modules, stay from here
    gc.collect()
    before = own_bytes()
    with Peak() as peak:
        train(folder)
    reserve = share.parts["reserve"]
    return {"peak": peak.value - before, "plan": share.total - reserve, **share.parts}


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


class Peak:
    """Peak of this process's own memory while the block runs, read in a thread."""

    value = 0

    def __enter__(self) -> Peak:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self.value = max(self.value, own_bytes())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def own_bytes() -> int:
    """Return the resident bytes of this process that are no pages of a file."""
    status = Path("/proc/self/status").read_text()
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:")
    )


if __name__ == "__main__":
    main()
