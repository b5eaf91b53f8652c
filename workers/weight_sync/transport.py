"""Choice of the trainer's end of a transport, by the name that stands in the configuration.

Runs in the learner's ranks. Must agree with `VLLMSettings.weight_transfer_backend`, which chooses
the engines' end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist

from workers.engines.zero.weights import ZeroSource
from workers.weight_sync.builtin import BuiltinEndpoint
from workers.weight_sync.endpoint import TrainerEndpoint, WeightSyncClient
from workers.weight_sync.gloo import GlooEndpoint
from workers.weight_sync.shm import ShmEndpoint

TRANSPORTS = ("shm", "gloo", "nccl", "ipc")


def trainer_endpoint(
    name: str,
    *,
    source: ZeroSource,
    client: WeightSyncClient | None,
    run_id: str,
    engine_nodes: Sequence[str],
    node: str = "",
    workers_per_engine: int = 1,
    process_group: dist.ProcessGroup | None = None,
    host: str | None = None,
    timeout_s: float = 300.0,
) -> TrainerEndpoint:
    """Build the endpoint of this trainer rank; `connect()` it on all ranks before publishing.

    Args:
        name: "shm" (one node), "gloo" (several nodes, CPU), "nccl" or "ipc" (CUDA).
        source: this rank's weights; carries rank and world size.
        client: the way to the engines, on rank 0; None on the others.
        run_id: labels what the transport creates.
        engine_nodes: node of every engine, by place.
        node: of this trainer; an engine of the same node shares memory with the trainer.
        workers_per_engine: tensor-parallel size of each.
        process_group: the trainer's ranks on CPU tensors (gloo); None is all ranks.
        host: rank 0's address as the engines see it; None reads the system's.
        timeout_s: longest wait inside a transport.

    Raises:
        ValueError: an unknown name.
    """
    if name == "shm":
        return ShmEndpoint(source=source, client=client, run_id=run_id, process_group=process_group)
    if name == "gloo":
        return GlooEndpoint(
            source=source,
            client=client,
            run_id=run_id,
            node=node,
            engine_nodes=engine_nodes,
            host=host,
            timeout_s=timeout_s,
        )
    if name in ("nccl", "ipc"):
        return BuiltinEndpoint(
            name,
            source=source,
            client=client,
            num_engines=len(engine_nodes),
            workers_per_engine=workers_per_engine,
            host=host,
        )
    raise ValueError(f"unknown weight transport {name!r}: choose one of {', '.join(TRANSPORTS)}")
