"""Check the links between processes: ports, Ray's resources, NCCL.

Runs in the process of `ballast doctor`. Starts no Ray: it connects to a running one, or counts.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence

from conf.schema import TrainConfig
from orchestrator.planning.capacity import planned_transport
from orchestrator.planning.doctor.findings import Finding, fault, note, ok
from orchestrator.planning.roles import PlannedRole

CONNECT_S = 3.0


def check(config: TrainConfig, roles: Sequence[PlannedRole]) -> list[Finding]:
    """Check ports, then Ray, then NCCL."""
    return [ports(), *ray_resources(config, roles), *nccl(config)]


def ports() -> Finding:
    """Check that a port which is opened on this machine's own address can be reached."""
    from ray.util import get_node_ip_address

    address = get_node_ip_address()
    with socket.socket() as server:
        try:
            server.bind((address, 0))
            server.listen(1)
            with socket.create_connection(server.getsockname(), timeout=CONNECT_S):
                return ok("ports", f"{address} opens and reaches its own ports")
        except OSError as error:
            return fault(
                "ports",
                f"{address} does not reach a port that it opened: {error}",
                "mend the hostname's address (/etc/hosts) or the firewall between the nodes",
            )


def ray_resources(config: TrainConfig, roles: Sequence[PlannedRole]) -> Iterator[Finding]:
    """Compare the resources of all processes with those that Ray has, or will have."""
    from orchestrator.planning.placement import total_resources

    total = total_resources(roles)
    cpus, gpus = total["CPU"], total["GPU"]
    address = config.cluster.address
    if address is None:
        if cpus > config.cluster.num_cpus:
            yield fault(
                "Ray",
                f"the roles take {cpus:g} CPUs, cluster.num_cpus={config.cluster.num_cpus}",
                "raise cluster.num_cpus (logical CPUs), or lower what the roles take",
            )
        else:
            yield ok("Ray", f"its own: {cpus:g} of {config.cluster.num_cpus} logical CPUs")
        return
    mode = os.environ.get("RAY_AUTH_MODE")
    try:
        have = _cluster_resources(address)
    except Exception as error:  # Ray's own: no cluster, another version, a wrong token
        yield fault(
            "Ray",
            f"cluster.address={address} (RAY_AUTH_MODE={mode}): {str(error).splitlines()[0]}",
            "start it (ray start --head), use its version of Ray, and the same RAY_AUTH_MODE and "
            "token on every node",
        )
        return
    text = (
        f"{address}: {cpus:g} of {have.get('CPU', 0):g} CPUs, {gpus:g} of "
        f"{have.get('GPU', 0):g} GPUs"
    )
    if cpus > have.get("CPU", 0) or gpus > have.get("GPU", 0):
        yield fault("Ray", text, "add nodes, or choose a smaller cluster=")
    else:
        yield ok("Ray", text)


def _cluster_resources(address: str) -> dict[str, float]:
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():  # Ray itself would go on trying for long
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        return dict(ray.cluster_resources())
    finally:
        ray.shutdown()


def nccl(config: TrainConfig) -> Iterator[Finding]:
    """Check NCCL, where weights or gradients travel through NCCL."""
    if not (config.cluster.learner.num_gpus or planned_transport(config).uses_nccl):
        return
    import torch

    if config.cluster.address is not None and not torch.cuda.is_available():
        yield note(
            "NCCL",
            "this machine has no GPU to ask",
            "run ballast doctor on a node that has one",
        )
    elif not torch.cuda.is_available():
        yield fault(
            "NCCL",
            f"rollout.transport={planned_transport(config).name}, but torch {torch.__version__} "
            "sees no CUDA device",
            "choose a cluster= without GPUs, or mend the driver (nvidia-smi)",
        )
    else:
        version = ".".join(map(str, torch.cuda.nccl.version()))
        yield ok("NCCL", f"{version}, CUDA {torch.version.cuda}")
