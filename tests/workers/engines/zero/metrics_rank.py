"""One rank of a reduction of metrics, started as a process by test_weighted_loss.py."""

import json
import sys
from pathlib import Path

import torch


def main(job: dict) -> None:
    """Reduce two updates, in each of which the ranks measured different things; rank 0 saves."""
    from workers.data.packing import pack_sequences
    from workers.engines.zero.process_group import ProcessGroupSettings, join, leave
    from workers.engines.zero.weighted_loss import MetricSums, reduced_metrics

    rank = job["rank"]
    join(ProcessGroupSettings(rank=rank, world_size=job["world_size"], port=job["port"]))
    own = {
        "policy/both": 1.0 + rank,
        "policy/both_max": 1.0 + rank,
        ("policy/zero", "policy/one")[rank]: 5.0,
        ("policy/zero_min", "policy/one_min")[rank]: 7.0,
    }
    updates = []
    for _ in range(2):
        batch = pack_sequences([[5, 6, 7]])  # two tokens train
        num = batch.num_tokens
        sums = MetricSums()
        sums.add(
            batch,
            {name: torch.full((num,), value) for name, value in own.items()},
            torch.tensor(0.25),
        )
        updates.append(sums)
    reduced = reduced_metrics(updates, torch.device("cpu"))
    if rank == 0:
        Path(job["out"]).write_text(json.dumps(reduced))
    leave()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
