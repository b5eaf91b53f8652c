"""One of two ranks that read and write checkpoints, a process of test_zero_checkpoint.py.

For every stage: load what one rank saved, take the next step, save; report the step's loss.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import zero_matrix

from workers.data.packing import pack
from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.process_group import ProcessGroupSettings, join, leave
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings

OPTIMIZER = OptimizerSettings(lr=1e-2, weight_decay=0.1, warmup_steps=2)


def engine_of(model: str, stage: int, group: ProcessGroupSettings | None = None) -> PolicyEngine:
    """A learner whose state has something in every tensor after a step."""
    return PolicyEngine(ZeroSettings(model=model, zero_stage=stage, optimizer=OPTIMIZER), group)


def take_step(engine: PolicyEngine, rank: int = 0, world: int = 1) -> float:
    """One optimizer step on the same ten sequences, divided over the ranks; its loss."""
    rows = np.array_split(np.arange(zero_matrix.NUM_ROWS), world)[rank]
    batch = pack(zero_matrix.rows(), rows, weights=zero_matrix.weights())
    result = engine.train([[batch]], zero_matrix.TwoTermLoss(), temperature=1.0)
    return result.updates[0].metrics["loss"]


def main(job: dict) -> None:
    """Every stage of the job on this rank."""
    torch.set_num_threads(1)
    rank, world = job["rank"], job["world_size"]
    group = ProcessGroupSettings(rank=rank, world_size=world, port=job["port"])
    join(group)
    losses = {}
    for stage in job["stages"]:
        engine = engine_of(job["model"], stage, group)
        engine.load(Path(job["folder"]) / str(job["load_stage"][str(stage)]))
        losses[stage] = take_step(engine, rank, world)
        engine.save(Path(job["folder"]) / f"two-{stage}")
        engine.close()
    leave()
    if rank == 0:
        Path(job["out"]).write_text(json.dumps(losses))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
