"""One rank of the copy matrix, started as a process by test_follow.py.

Learners of several ZeRO stages take a step; references of several stages, which have scored before,
follow them layer by layer. Rank 0 saves what every side then holds and scores.
"""

import json
import sys
from pathlib import Path

import torch
import zero_matrix


def main(job: dict) -> None:
    """Run every pair of stages of the job on this rank."""
    from workers.data.packing import pack
    from workers.engines.zero.policy_engine import PolicyEngine
    from workers.engines.zero.process_group import ProcessGroupSettings, join, leave
    from workers.engines.zero.settings import OptimizerSettings, ZeroSettings
    from workers.engines.zero.weights import ZeroSource

    torch.set_num_threads(1)
    rank, world = job["rank"], job["world_size"]
    group = ProcessGroupSettings(rank=rank, world_size=world, port=job["port"])
    join(group)
    batch = pack(zero_matrix.rows(), weights=zero_matrix.weights())
    results = {}

    def held(engine: PolicyEngine) -> dict[str, torch.Tensor]:
        source = ZeroSource(engine.hf_model, rank=rank, world_size=world)
        return {name: tensor.clone() for name, tensor in source}

    def scored(engine: PolicyEngine) -> torch.Tensor:
        rows = engine.compute_logprobs([batch], temperature=1.0).logprobs
        return torch.cat([torch.tensor(row) for row in rows])

    for learner_stage, reference_stage, offload in job["pairs"]:
        learner = PolicyEngine(
            ZeroSettings(
                model=job["model"],
                zero_stage=learner_stage,
                optimizer=OptimizerSettings(name="sgd", lr=0.5),
            ),
            group,
        )
        reference = PolicyEngine(
            ZeroSettings(
                model=job["model"],
                zero_stage=reference_stage,
                offload_params=offload,
                optimizer=None,
            ),
            group,
        )
        saved = {"before": held(reference), "scored before": scored(reference)}
        learner.train([[batch]], zero_matrix.TwoTermLoss(), temperature=1.0)
        source = ZeroSource(learner.hf_model, rank=rank, world_size=world)
        target = ZeroSource(reference.hf_model, rank=rank, world_size=world)
        for name, share in (("half", 0.5), ("copy", 1.0)):
            for number in range(source.num_layers):
                for key, tensor in source.layer(number):
                    target.move(key, tensor, share)
            saved |= {name: held(reference), f"scored {name}": scored(reference)}
        saved |= {"learner": held(learner), "scored learner": scored(learner)}
        results[f"{learner_stage} to {reference_stage}{' offloaded' * offload}"] = saved
        learner.close()
        reference.close()
    leave()
    if rank == 0:
        torch.save(results, job["out"])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
