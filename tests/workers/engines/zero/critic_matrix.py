"""One rank of the critic's gradient matrix, started as a process by test_critic.py.

Trains the rows of `zero_matrix` under every ZeRO stage and number of micro-batches asked for. Saves
the weights after one SGD step with a large rate (the gradient), and after three small ones.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import zero_matrix

from algorithms.advantages.returns import GeneralizedAdvantage
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.policy_losses.clipped import ClippedRatio
from algorithms.value_losses import ClippedValue
from workers.data.packing import PackedBatch, pack
from workers.engines.model.critic_model import CriticModel
from workers.engines.zero.critic_engine import CriticEngine
from workers.engines.zero.process_group import ProcessGroupSettings, join, leave
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings
from workers.engines.zero.weights import ZeroSource

CLIP = 0.3
ALGORITHM = Algorithm(
    name="test",
    advantage=GeneralizedAdvantage(),
    policy_loss=ClippedRatio(clip_low=0.2, clip_high=0.2),
    aggregation=TokenMean(),
    value_loss=ClippedValue(clip=CLIP),
)


class TiltedCritic(CriticEngine):
    """A critic whose head starts with weights, so that the first gradient reaches every tensor."""

    def build_module(self) -> CriticModel:
        module = super().build_module()
        generator = torch.Generator().manual_seed(5)
        nn.init.normal_(module.value_head.weight, std=0.2, generator=generator)
        nn.init.constant_(module.value_head.bias, 0.1)
        return module


def rows() -> dict[str, pa.Array]:
    """The rows of `zero_matrix` with values of credit time near the first ones, and returns."""
    found = zero_matrix.rows()
    rng = np.random.default_rng(9)
    for name, spread in (("old_values", 0.5), ("returns", 2.0)):
        values = [rng.normal(scale=spread, size=len(row)) for row in found["tokens"]]
        found[name] = pa.array(values, pa.list_(pa.float32()))
    return found


def weights() -> dict[str, np.ndarray]:
    """One multiplier per row, as a global aggregation would give."""
    return {"value": zero_matrix.weights()["policy"]}


def packed(chosen: np.ndarray | list[int], *, shared_prefix: bool = False) -> PackedBatch:
    """Some of the rows as one micro-batch."""
    groups = zero_matrix.GROUPS if shared_prefix else None
    return pack(rows(), chosen, weights=weights(), groups=groups)


def main(job: dict) -> None:
    """Run every case of the job on this rank."""
    torch.set_num_threads(1)
    rank, world = job["rank"], job["world_size"]
    group = ProcessGroupSettings(rank=rank, world_size=world, port=job["port"])
    join(group)
    results: dict[str, dict[str, Tensor]] = {}
    for stage in job["stages"]:
        for count in job["micro_batches"]:
            # the last rank's last micro-batch is a filler where count > 1
            cut = np.array_split(np.arange(zero_matrix.NUM_ROWS), world)[rank]
            pieces = np.array_split(cut, count)
            if count > 1 and rank == world - 1:
                pieces = [*pieces[:-2], np.concatenate(pieces[-2:]), cut[:0]]
            update = [packed(piece, shared_prefix=job["shared_prefix"]) for piece in pieces]
            for name, lr, steps in (("gradient", zero_matrix.GRADIENT_LR, 1), ("weights", 0.1, 3)):
                optimizer = OptimizerSettings(name="sgd", lr=lr, max_grad_norm=job["max_grad_norm"])
                settings = ZeroSettings(
                    model=job["model"],
                    zero_stage=stage,
                    optimizer=optimizer,
                    gradient_checkpointing=job["checkpointing"],
                )
                engine = TiltedCritic(settings, group)
                done = [engine.train([update], ALGORITHM)[0] for _ in range(steps)]
                after = {key: value.clone() for key, value in ZeroSource(engine.module)}
                after["/norm"] = torch.tensor(done[0].grad_norm)
                for metric, value in done[0].metrics.items():
                    after[f"/{metric}"] = torch.tensor(value)
                results[f"{stage}-{count}-{name}"] = after
                engine.close()
    leave()
    if rank == 0:
        torch.save(results, job["out"])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
