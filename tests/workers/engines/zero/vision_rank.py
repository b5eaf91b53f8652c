"""One rank of the gradient matrix with images, started as a process by test_vision_engine.py.

Two ranks train six rows, of which the second rank's show no image and its last micro-batch is a
filler. Saves the weights after one SGD step with a large rate, which is the gradient.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from algorithms.inputs import LossInputs, TokenLoss
from tests.workers.engines.model.vision.pictures import Rows, png, settings_of
from workers.data.packing import PackedBatch, pack

LR = 100.0  # so large that weights minus weights is the gradient in full precision
WEIGHTS = [0.05, 0.02, 0.04, 0.03, 0.01, 0.06]
#: Rows of each rank's micro-batches; an empty one is a filler.
PLAN = [[[0, 1], [2, 3]], [[4, 5], []]]


class LikelihoodLoss:
    """-log p squared, so that the gradient depends on the value."""

    loss_columns: frozenset[str] = frozenset()

    def token_loss(self, inputs: LossInputs) -> TokenLoss:
        """One term."""
        flags = torch.zeros_like(inputs.loss_mask, dtype=torch.uint8)
        return TokenLoss(terms={"policy": inputs.logprobs.square()}, metrics={}, flags=flags)


def rows_of(folder: Path) -> Rows:
    """Four rows with pictures, of which three are siblings, and two without."""
    rows = Rows(settings_of(folder))
    rows.add([5, 6], png(56, 56, 1), [7, 8, 9])
    rows.add([5, 6], png(56, 56, 1), [20, rows.settings.image_token_id, 22])
    rows.add([11], png(140, 56, 2), [6, 7], png(56, 56, 1), [8, 9])
    rows.add([5, 6], png(56, 56, 1), [13])
    rows.add([5, 6, 7, 8, 9, 10])
    rows.add([17, 18, 19])
    return rows


def batch_of(rows: Rows, chosen: list[int], *, shared: bool = True) -> PackedBatch:
    """A micro-batch of which every token but a row's first trains."""
    import pyarrow as pa

    mask = [[place > 0 for place in range(len(tokens))] for tokens in rows.tokens]
    zeros = [[0.0] * len(tokens) for tokens in rows.tokens]
    return pack(
        {
            "tokens": pa.array(rows.tokens, pa.list_(pa.int32())),
            "loss_mask": pa.array(mask, pa.list_(pa.bool_())),
            "advantages": pa.array(zeros, pa.list_(pa.float32())),
        },
        chosen,
        weights={"policy": np.array(WEIGHTS)},
        groups=[0, 0, 1, 0, 2, 3] if shared else None,
        images=rows.images,
    )


def main(job: dict) -> None:
    """Train once under every stage of the job, with the tower frozen and not."""
    from workers.engines.zero.policy_engine import PolicyEngine
    from workers.engines.zero.process_group import ProcessGroupSettings, join, leave
    from workers.engines.zero.settings import OptimizerSettings, ZeroSettings
    from workers.engines.zero.weights import ZeroSource

    torch.set_num_threads(1)
    rank, world = job["rank"], job["world_size"]
    group = ProcessGroupSettings(rank=rank, world_size=world, port=job["port"], timeout_s=60.0)
    join(group)
    rows = rows_of(Path(job["model"]))
    results = {}
    for stage in job["stages"]:
        for freeze in (None, ()):
            engine = PolicyEngine(
                ZeroSettings(
                    model=job["model"],
                    zero_stage=stage,
                    optimizer=OptimizerSettings(name="sgd", lr=LR, max_grad_norm=float("inf")),
                    freeze=freeze,
                    gradient_checkpointing=job["checkpointing"],
                ),
                group,
            )
            update = [batch_of(rows, chosen) for chosen in PLAN[rank]]
            engine.compute_logprobs(update, temperature=1.0)
            engine.train([update], LikelihoodLoss(), temperature=1.0)
            name = f"{stage}-{'frozen' if freeze is None else 'trained'}"
            results[name] = {key: value.clone() for key, value in ZeroSource(engine.hf_model)}
            engine.close()
    leave()
    if rank == 0:
        torch.save(results, job["out"])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
