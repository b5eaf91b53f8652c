"""One rank of the gradient matrix, started as a process by test_zero_engine.py.

Trains the same ten sequences under every ZeRO stage and number of micro-batches asked for. Saves
the weights after one SGD step with a large rate (the gradient), and after three small ones.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from algorithms.inputs import LossInputs, TokenLoss

NUM_ROWS = 10
GROUPS = (0, 0, 0, 0, 0, 0, 6, 6, 6, 9)  # first sibling of each row
TEMPERATURE = 0.8
GRADIENT_LR = 100.0  # so large that weights minus weights is the gradient in full precision
CASES = (("gradient", GRADIENT_LR, 1), ("weights", 0.1, 3))  # name, rate, steps


@dataclass(frozen=True, kw_only=True)
class TwoTermLoss:
    """A clipped-ratio term with an entropy bonus, and a likelihood term with its own weights."""

    loss_columns: frozenset[str] = frozenset({"old_logprobs", "entropy"})

    def token_loss(self, inputs: LossInputs) -> TokenLoss:
        """-min(r A, clip(r) A) - 0.05 H, and -log p."""
        ratio = (inputs.logprobs - inputs.old_logprobs).exp()  # [N]
        clipped = ratio.clamp(0.8, 1.2)
        policy = -torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
        return TokenLoss(
            terms={"policy": policy - 0.05 * inputs.entropy, "nll": -inputs.logprobs},
            metrics={"ratio": ratio, "ratio_max": ratio, "ratio_min": ratio},
            flags=torch.zeros_like(inputs.loss_mask, dtype=torch.uint8),
        )


def rows() -> dict[str, pa.Array]:
    """Ten sequences of 4 to 19 tokens; the second half of each trains.

    Rows 0 to 5 are siblings behind 3 tokens, rows 6 to 8 behind 2; row 9 has none.
    """
    rng = np.random.default_rng(7)
    lengths = rng.integers(4, 20, size=NUM_ROWS)
    tokens = [rng.integers(3, 20, size=n).astype(np.int32) for n in lengths]
    for row in range(NUM_ROWS):
        shared = {0: 3, 6: 2, 9: 0}[GROUPS[row]]
        tokens[row][:shared] = tokens[GROUPS[row]][:shared]
    return {
        "tokens": pa.array(tokens, pa.list_(pa.int32())),
        "loss_mask": pa.array([np.arange(n) >= n // 2 for n in lengths], pa.list_(pa.bool_())),
        "old_logprobs": pa.array([rng.uniform(-4, -2, n) for n in lengths], pa.list_(pa.float32())),
        "advantages": pa.array([rng.normal(size=n) for n in lengths], pa.list_(pa.float32())),
    }


def weights() -> dict[str, np.ndarray]:
    """One multiplier per row and term, as a global aggregation would give."""
    rng = np.random.default_rng(8)
    return {name: rng.uniform(0.1, 1.0, NUM_ROWS) / 50 for name in ("policy", "nll")}


def main(job: dict) -> None:
    """Run every case of the job on this rank."""
    from workers.data.packing import pack
    from workers.engines.model.lora_settings import LoraSettings
    from workers.engines.zero.policy_engine import PolicyEngine
    from workers.engines.zero.process_group import ProcessGroupSettings, join, leave
    from workers.engines.zero.settings import OptimizerSettings, ZeroSettings

    torch.set_num_threads(1)
    rank, world = job["rank"], job["world_size"]
    group = ProcessGroupSettings(rank=rank, world_size=world, port=job["port"])
    join(group)
    results: dict[str, dict[str, Tensor]] = {}
    for stage in job["stages"]:
        for count in job["micro_batches"]:
            # the last rank's last micro-batch is a filler where count > 1
            cut = np.array_split(np.arange(NUM_ROWS), world)[rank]
            pieces = np.array_split(cut, count)
            if count > 1 and rank == world - 1:
                pieces = [*pieces[:-2], np.concatenate(pieces[-2:]), cut[:0]]
            groups = GROUPS if job.get("shared_prefix") else None
            update = [pack(rows(), piece, weights=weights(), groups=groups) for piece in pieces]
            for name, lr, steps in job.get("cases", CASES):
                optimizer = OptimizerSettings(name="sgd", lr=lr, max_grad_norm=job["max_grad_norm"])
                engine = PolicyEngine(
                    ZeroSettings(
                        model=job["model"],
                        zero_stage=stage,
                        optimizer=optimizer,
                        gradient_checkpointing=job["checkpointing"],
                        head_chunk=7,
                        adapter=LoraSettings(**job["lora"]) if "lora" in job else None,
                    ),
                    group,
                )
                if "lora" in job:  # must leave no trace in the gradient
                    engine.compute_logprobs(update, temperature=TEMPERATURE, base=True)
                done = [
                    engine.train([update], TwoTermLoss(), temperature=TEMPERATURE)
                    for _ in range(steps)
                ]
                from workers.engines.zero.weights import ZeroSource

                after = {key: value.clone() for key, value in ZeroSource(engine.hf_model)}
                first = done[0].updates[0]
                after["/norm"] = torch.tensor(first.grad_norm)
                for metric, value in first.metrics.items():
                    after[f"/{metric}"] = torch.tensor(value)
                results[f"{stage}-{count}-{name}"] = after
                engine.close()
    leave()
    if rank == 0:
        torch.save(results, job["out"])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
