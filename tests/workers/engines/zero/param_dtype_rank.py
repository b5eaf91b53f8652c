"""One of two ranks with weights of 16 bits, started as a process by test_param_dtype.py.

For every stage: the gradient of one step, a run of three steps beside one that is resumed after the
first, and what both ranks would publish. Rank 0 saves it all, flattened, by name.
"""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
import zero_matrix
from torch import Tensor

RATE = 1024.0  # so large that weights minus weights is the gradient in full precision
ROWS = ([0, 1, 2, 3], [4, 5, 6])  # of each rank


def joined(pieces: Iterable[tuple[str, int, Tensor]]) -> dict[str, Tensor]:
    """Whole flattened tensors of all ranks' (name, offset, piece [n]); on rank 0 only."""
    own = [(name, offset, piece.clone()) for name, offset, piece in pieces]
    every: list = [None] * dist.get_world_size()
    dist.gather_object(own, every if dist.get_rank() == 0 else None)
    if dist.get_rank():
        return {}
    found: dict[str, list[Tensor]] = {}
    ordered = sorted((piece for held in every for piece in held), key=lambda piece: piece[:2])
    for name, offset, piece in ordered:
        parts = found.setdefault(name, [])
        assert offset == sum(len(part) for part in parts), f"{name} has a gap or an overlap"
        parts.append(piece)
    return {name: torch.cat(parts) for name, parts in found.items()}


def main(job: dict) -> None:
    """Run every stage of the job on this rank."""
    from workers.data.packing import pack
    from workers.engines.zero.lora_weights import publication_source
    from workers.engines.zero.policy_engine import PolicyEngine
    from workers.engines.zero.process_group import ProcessGroupSettings, join, leave
    from workers.engines.zero.settings import OptimizerSettings, ZeroSettings
    from workers.engines.zero.slices import held_slices

    torch.set_num_threads(1)
    rank, world = job["rank"], job["world_size"]
    group = ProcessGroupSettings(rank=rank, world_size=world, port=job["port"])
    join(group)
    batch = pack(zero_matrix.rows(), ROWS[rank], weights=zero_matrix.weights())

    def engine_of(stage: int, optimizer: OptimizerSettings) -> PolicyEngine:
        settings = ZeroSettings(
            model=job["model"],
            zero_stage=stage,
            dtype="bfloat16",
            param_dtype="bfloat16",
            optimizer=optimizer,
        )
        return PolicyEngine(settings, group)

    def take_steps(engine: PolicyEngine, steps: int) -> None:
        for _ in range(steps):
            engine.train([[batch]], zero_matrix.TwoTermLoss(), temperature=1.0)

    def masters(engine: PolicyEngine) -> dict[str, Tensor]:
        slices = held_slices(engine._engine, list(engine.module.hf_named_parameters()))
        return joined((part.name, part.offset, part.of(part.owner)) for part in slices)

    def published(engine: PolicyEngine) -> dict[str, Tensor]:
        source = publication_source(
            engine.hf_model, None, rank=rank, world_size=world, dtype=torch.bfloat16
        )
        return joined((shard.name, shard.offset, shard.flat) for shard in source.shards())

    results = {}
    descent = OptimizerSettings(name="sgd", lr=RATE, max_grad_norm=math.inf)
    adam = OptimizerSettings(lr=1e-3, weight_decay=0.1, warmup_steps=2)
    for stage in job["stages"]:
        engine = engine_of(stage, descent)
        found = {"before": masters(engine)}
        take_steps(engine, 1)
        found["after"] = masters(engine)
        engine.close()
        whole = engine_of(stage, adam)
        take_steps(whole, 3)
        found |= {"whole": masters(whole), "published whole": published(whole)}
        whole.close()
        first = engine_of(stage, adam)
        take_steps(first, 1)
        first.save(Path(job["folder"]) / str(stage))
        first.close()
        resumed = engine_of(stage, adam)
        resumed.load(Path(job["folder"]) / str(stage))
        take_steps(resumed, 2)
        found |= {"resumed": masters(resumed), "published resumed": published(resumed)}
        resumed.export_hf(Path(job["folder"]) / f"export-{stage}")
        resumed.close()
        results[stage] = found
    leave()
    if rank == 0:
        torch.save(results, job["out"])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
