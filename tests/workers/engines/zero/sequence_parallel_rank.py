"""One rank of the sequence-parallel matrix, started as a process by test_sequence_parallel.py.

The same functions run in the test's own process with one rank: what they return must be equal.
"""

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import zero_matrix

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.policy_losses.clipped import ClippedRatio
from algorithms.policy_losses.sequence import SequenceRatio
from workers.data.packing import PackedBatch, pack
from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.process_group import ProcessGroupSettings, join, leave
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings
from workers.engines.zero.weights import ZeroSource

#: Rows of each micro-batch: 47, 47 and 36 tokens; the last one is a filler of two.
MICRO_BATCHES = ([0, 1, 2], [3, 4, 5], [6, 7, 8, 9], [])


def _algorithm(name: str, policy_loss: Callable) -> Algorithm:
    return Algorithm(
        name=name,
        advantage=GroupRelative(),
        policy_loss=policy_loss,
        aggregation=TokenMean(),
    )


#: A ratio of its own for every token, one for a whole sequence, and a loss that reads entropies.
LOSSES = {
    "grpo": _algorithm("grpo", ClippedRatio(clip_low=0.9, clip_high=4.0)),
    "gspo": _algorithm("gspo", SequenceRatio(clip_low=0.9, clip_high=4.0)),
    "entropy": zero_matrix.TwoTermLoss(),
}


def micro_batches(data_rank: int, num_data_parallel: int) -> list[PackedBatch]:
    """This data-parallel rank's micro-batches; empty ones are fillers."""
    rows, weights = zero_matrix.rows(), zero_matrix.weights()
    return [
        pack(rows, np.asarray(chosen[data_rank::num_data_parallel], dtype=int), weights=weights)
        for chosen in MICRO_BATCHES
    ]


class TokenCounter:
    """The most tokens that any linear layer of the model has been given at once."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.largest = 0
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.largest = max(self.largest, arguments[0].shape[1])


def results(job: dict, group: ProcessGroupSettings) -> dict[str, dict[str, Tensor]]:
    """Scores, gradient, metrics and weights of every case of the job."""
    size = job["sequence_parallel_size"]
    num_data_parallel = group.world_size // size
    batches = micro_batches(group.rank // size, num_data_parallel)
    found: dict[str, dict[str, Tensor]] = {}

    def engine(stage: int, checkpointing: bool, lr: float) -> PolicyEngine:
        return PolicyEngine(
            ZeroSettings(
                model=job["model"],
                zero_stage=stage,
                optimizer=OptimizerSettings(name="sgd", lr=lr, max_grad_norm=float("inf")),
                gradient_checkpointing=checkpointing,
                head_chunk=7,
                sequence_parallel_size=size,
            ),
            group,
        )

    def weights(trained: PolicyEngine) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in ZeroSource(trained.hf_model)}

    for stage in job["stages"]:
        for name, loss in LOSSES.items():
            one = engine(stage, name == "gspo", zero_matrix.GRADIENT_LR)
            counter = TokenCounter(one.hf_model)
            scored = one.compute_logprobs(
                batches, temperature=zero_matrix.TEMPERATURE, entropy=True
            )
            before = weights(one)
            update = one.train([batches], loss, temperature=zero_matrix.TEMPERATURE).updates[0]
            after = weights(one)
            case = {f"gradient/{key}": after[key] - before[key] for key in after}
            case |= {f"metric/{key}": torch.tensor(v) for key, v in update.metrics.items()}
            case["metric/norm"] = torch.tensor(update.grad_norm)
            case["logprobs"] = torch.from_numpy(np.concatenate(scored.logprobs))
            case["entropies"] = torch.from_numpy(np.concatenate(scored.entropies or ()))
            case["largest"] = torch.tensor(counter.largest)
            one.close()
            if name == "gspo":
                other = engine(stage, False, 0.1)
                for _ in range(2):
                    other.train([batches], loss, temperature=zero_matrix.TEMPERATURE)
                case |= {f"weight/{key}": value for key, value in weights(other).items()}
                other.close()
            found[f"{stage}-{name}"] = case
    return found


def main(job: dict) -> None:
    """Run every job of the list on this rank."""
    torch.set_num_threads(1)
    gc.freeze()  # DeepSpeed collects garbage whenever ZeRO-3 starts
    group = ProcessGroupSettings(
        rank=job["rank"], world_size=job["world_size"], port=job["port"], timeout_s=120
    )
    join(group)
    found = [results(each, group) for each in job["jobs"]]
    leave()
    torch.save(found, f"{job['out']}.{job['rank']}")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
