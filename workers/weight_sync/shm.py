"""Publication through shared memory, for engines on the trainer's own node.

Every rank writes the slices it holds straight into a shared buffer: no collective moves weights and
no rank ever holds a full parameter. There are two buffers, so that a rank may write the next
publication while an engine still reads this one; rank 0 reaches the sum of fingerprints of
publication v+1 only after all engines finished v, which is what keeps v+2 from overwriting v.

The buffers are anonymous (`memfd`): they have no name that could be left behind or collide, live as
long as some process maps them, and are not limited by the size of /dev/shm. Other processes of the
same user open them through rank 0's entry under /proc.

Runs in the learner's ranks; `SharedBuffer` inside vLLM's workers too. The engines' end is
`receivers.py`.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workers.engines.zero.weights import ZeroSource
from workers.weight_sync.endpoint import (
    PublishReport,
    Route,
    Stopwatch,
    TrainerEndpoint,
    WeightSyncClient,
    copy_bandwidth,
)
from workers.weight_sync.fingerprint import Fingerprint, combine, fingerprint
from workers.weight_sync.layout import Layout

NUM_SLOTS = 2


class SharedBuffer:
    """Memory-mapped byte buffer.

    Args:
        descriptor: an open file of at least `num_bytes`; owned by this object.
        num_bytes: length.
        writable: False maps a private copy-on-write view, which cannot change what others see.
    """

    def __init__(self, descriptor: int, num_bytes: int, *, writable: bool) -> None:
        self._descriptor = descriptor
        flags = mmap.MAP_SHARED if writable else mmap.MAP_PRIVATE
        mapping = mmap.mmap(
            descriptor, num_bytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
        # The tensor keeps the mapping alive, and the mapping ends with its last view.
        self.data: Tensor = torch.frombuffer(mapping, dtype=torch.uint8)  # [num_bytes]

    @classmethod
    def create(cls, label: str, num_bytes: int) -> SharedBuffer:
        """Create a zeroed buffer; `label` shows in /proc only."""
        descriptor = os.memfd_create(label)
        os.ftruncate(descriptor, num_bytes)
        return cls(descriptor, num_bytes, writable=True)

    @classmethod
    def open(cls, path: str, num_bytes: int, *, writable: bool) -> SharedBuffer:
        """Open another process's buffer.

        Raises:
            ValueError: it cannot be reached from here.
        """
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError as error:
            raise ValueError(
                f"cannot open shared memory {path}: {error}. Processes of one node share weights, "
                f"so they need one container and one user; put engines on other nodes otherwise, "
                f"for the gloo or nccl transport"
            ) from error
        return cls(descriptor, num_bytes, writable=writable)

    @property
    def path(self) -> str:
        """Path under which other processes of this user open the buffer."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """Close the file; views stay valid. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class ShmEndpoint(TrainerEndpoint):
    """Trainer's end of the shared-memory transport.

    Reads the route's `run_id` and `process_group`.
    """

    name = "shm"

    def __init__(
        self,
        *,
        source: ZeroSource,
        client: WeightSyncClient | None,
        route: Route,
    ) -> None:
        super().__init__(source=source, client=client, route=route)
        self._group, self._owns_group = route.process_group, False
        self._layout = Layout.of(source.metadata())
        self._slots: list[SharedBuffer] = []
        self._round = 0
        self._copy_bytes_per_s: float | None = None

    def connect(self) -> None:
        """Open the buffers on all ranks and in all engines; again for an engine that restarted."""
        if not self._slots:
            self._open_slots()
        if self.rank == 0:
            self._require_client().init_weight_transfer_engine(self.init_info())

    def init_info(self) -> dict[str, Any]:
        """Return what an engine needs to open the buffers; equal for all engines."""
        return {"paths": [slot.path for slot in self._slots], "layout": self._layout.to_dict()}

    def publish(self, version: int) -> PublishReport:
        """See `TrainerEndpoint.publish`; fingerprints are complete on all ranks."""
        if not self._slots:
            raise RuntimeError("publish before connect: call connect() on every rank first")
        watch = Stopwatch()
        slot = self._round % NUM_SLOTS
        self._round += 1
        with watch.phase("stage"):
            parts = self._stage(slot)
        with watch.phase("barrier"):
            fingerprints = self._sum_over_ranks(parts)
        if self.rank == 0:
            client = self._require_client()
            with watch.phase("start"):
                client.start_weight_update()
            with watch.phase("update"):
                client.update_weights({"slot": slot, "names": list(fingerprints)})
            with watch.phase("finish"):
                client.finish_weight_update(str(version))
        return PublishReport(
            version=version,
            transport=self.name,
            names=tuple(fingerprints),
            num_bytes=self._layout.num_bytes,
            seconds=watch.total(),
            fingerprints=fingerprints,
            copy_bytes_per_s=self._copy_bytes_per_s,
        )

    def shutdown(self) -> None:
        """Close the buffers, and end the process group that this endpoint made."""
        for slot in self._slots:
            slot.close()
        self._slots = []
        if self._owns_group:
            dist.destroy_process_group(self._group)
            self._group, self._owns_group = None, False

    def _open_slots(self) -> None:
        size = self._layout.num_bytes
        labels = [f"ballast-{self.route.run_id}-{i}" for i in range(NUM_SLOTS)]
        paths: list[Any] = [None]
        if self.rank == 0:
            self._slots = [SharedBuffer.create(label, size) for label in labels]
            self._copy_bytes_per_s = copy_bandwidth(self._slots[0].data)
            paths = [[slot.path for slot in self._slots]]
        if self.source.world_size > 1:
            if self._group is None and dist.get_backend() != "gloo":
                self._group = dist.new_group(backend="gloo")  # fingerprints are on the CPU
                self._owns_group = True
            source_rank = dist.get_global_rank(self._group, 0) if self._group else 0
            dist.broadcast_object_list(paths, src=source_rank, group=self._group)
        if self.rank != 0:
            self._slots = [SharedBuffer.open(path, size, writable=True) for path in paths[0]]

    def _stage(self, slot: int) -> dict[str, Fingerprint]:
        """Write this rank's slices; return their fingerprints by name."""
        flat = self._layout.flat_views(self._slots[slot].data)
        parts: dict[str, Fingerprint] = {}
        for shard in self.source.shards():
            target = flat[shard.name][shard.offset : shard.offset + shard.flat.numel()]
            target.copy_(shard.flat)  # casts to the engine's dtype
            part = fingerprint(target, shard.offset)
            parts[shard.name] = combine([parts.get(shard.name, (0, 0)), part])
        return parts

    def _sum_over_ranks(self, parts: dict[str, Fingerprint]) -> dict[str, Fingerprint]:
        """Add fingerprints up; also the barrier after which every slice has been written.

        A tensor that no rank staged is left out.
        """
        names = [meta.name for meta in self._layout.metas]
        if self.source.world_size == 1:
            return {name: parts[name] for name in names if name in parts}
        # Columns: plain, weighted, number of ranks that staged a slice.
        table = torch.tensor(
            [[*parts.get(name, (0, 0)), int(name in parts)] for name in names]
        )  # [P, 3] int64, added modulo 2^64
        dist.all_reduce(table, group=self._group)
        return {
            name: (plain, weighted)
            for name, (plain, weighted, count) in zip(names, table.tolist(), strict=True)
            if count
        }
