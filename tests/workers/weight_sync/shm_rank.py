"""One of two ranks whose process group is not gloo's: publishes over 20 connections.

Started by `test_source.py`, with nothing but torch; the engines are a client that keeps nothing.
"""

import gc

import psutil
import torch
import torch.distributed as dist
from torch import nn

from workers.engines.zero.weights import ZeroSource
from workers.weight_sync.endpoint import Route
from workers.weight_sync.shm import ShmEndpoint


class Deaf:
    """A client that does nothing."""

    def init_weight_transfer_engine(self, init_info) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info) -> None: ...

    def finish_weight_update(self, weight_version=None) -> None: ...


def counts() -> tuple[int, int]:
    """Process groups and open files of this rank."""
    gc.collect()
    return len(dist.distributed_c10d._world.pg_map), psutil.Process().num_fds()


def connect_and_publish(model: nn.Module, version: int) -> None:
    rank = dist.get_rank()
    source = ZeroSource(model, rank=rank, world_size=2)
    client = Deaf() if rank == 0 else None
    endpoint = ShmEndpoint(source=source, client=client, route=Route(run_id="ranks"))
    endpoint.connect()
    assert endpoint.publish(version).fingerprints
    endpoint.shutdown()
    endpoint.shutdown()  # safe to call twice


def main() -> None:
    # As with NCCL the group's own backend is not gloo, so that the endpoint makes a group itself.
    dist.init_process_group("cpu:gloo")
    assert dist.get_backend() != "gloo"
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    connect_and_publish(model, 0)
    before = counts()
    for version in range(1, 21):
        connect_and_publish(model, version)
    assert counts() == before, (counts(), before)
    assert before[0] == 1
    dist.barrier()
    dist.destroy_process_group()
    print("as before")


if __name__ == "__main__":
    main()
