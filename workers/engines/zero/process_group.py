"""Joining and leaving the process group of a policy's ranks, as torch and DeepSpeed both see it.

Runs in every rank of learner, reference and critic. Starts no process and finds no port.
"""

import ctypes
import os
import warnings
from dataclasses import dataclass
from datetime import timedelta

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

from workers.addresses import address_towards, interface_of


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessGroupSettings:
    """Rank of this process in its group, and the address of rank 0.

    Worked example, the second of two ranks, on the second GPU of its node:
        rank 1    world_size 2    local_rank 1    address "10.0.0.4"    port 29501
        backend "nccl"    timeout_s 1800.0

    Attributes:
        rank, world_size: of this policy's ranks.
        local_rank: index of this process's device.
        address, port: on which rank 0 listens; one rank alone needs none.
        backend: "gloo" on CPU, "nccl" on GPUs.
        timeout_s: longest that a collective may take.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    backend: str = "gloo"
    timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={self.rank} is not in [0, {self.world_size})")
        if self.world_size > 1 and self.port <= 0:
            raise ValueError(f"{self.world_size} ranks need a port to meet at, got {self.port}")


def join(settings: ProcessGroupSettings) -> bool:
    """Join the group; return False where the process already was in a group, which is then used."""
    if settings.backend == "gloo":
        os.environ["DS_ACCELERATOR"] = "cpu"
        # Otherwise a shared-memory kernel is compiled with g++; gloo reduces as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        keep_freed_memory()
    # DeepSpeed calls functions that torch 2.13 renamed, and torch would warn of it in every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    joined = not dist.is_initialized()
    if joined:
        store: dist.Store = dist.HashStore()
        timeout = timedelta(seconds=settings.timeout_s)
        if settings.world_size > 1:
            use_interface_towards(settings.address)
            store = dist.TCPStore(
                settings.address,
                settings.port,
                settings.world_size,
                is_master=settings.rank == 0,
                timeout=timeout,
            )
        dist.init_process_group(
            settings.backend,
            store=store,
            rank=settings.rank,
            world_size=settings.world_size,
            timeout=timeout,
        )
    os.environ["LOCAL_RANK"] = str(settings.local_rank)
    deepspeed.init_distributed(dist_backend=settings.backend, auto_mpi_discovery=False)
    return joined


def use_interface_towards(address: str) -> None:
    """Let gloo connect ranks over the interface that leads to rank 0, unless one is named already.

    gloo would take the address of the hostname, which is 127.0.1.1 on Ubuntu: ranks of other nodes
    would connect to themselves.
    """
    interface = interface_of(address_towards(address))
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def leave() -> None:
    """Destroy the process group, in torch and in DeepSpeed: a rank that just exits may hang."""
    if dist.is_initialized():
        dist.destroy_process_group()
    # DeepSpeed keeps what it knew of the group; without this no other one could be joined.
    deepspeed.comm.comm.cdb = None
    deepspeed.utils.groups._WORLD_GROUP = None


def new_sequence_group(size: int, *, timeout_s: float) -> dist.ProcessGroup:
    """Create the groups of `size` consecutive ranks; return the one with this rank.

    Collective over all ranks.

    Raises:
        ValueError: `size` does not divide the number of ranks.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size % size:
        raise ValueError(
            f"sequence_parallel_size={size} does not divide {world_size} ranks: choose a divisor"
        )
    timeout = timedelta(seconds=timeout_s)
    groups = [
        dist.new_group(list(range(first, first + size)), timeout=timeout)
        for first in range(0, world_size, size)
    ]
    return groups[rank // size]


def keep_freed_memory() -> None:
    """Let glibc reuse what tensors free instead of returning it to the kernel.

    On a CPU every step frees and allocates the same gigabytes; returned, they come back as page
    faults, which cost 40 % of a step of a 135M model. Nothing changes under another allocator, as
    jemalloc, with which the driver starts ranks on CPUs, and whose settings keep memory too.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)


def device_of(settings: ProcessGroupSettings) -> torch.device:
    """Return the device that this rank computes on."""
    if settings.backend == "gloo":
        return torch.device("cpu")
    return torch.device("cuda", settings.local_rank)
