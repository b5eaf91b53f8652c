"""Run one DeepSpeed rank in a Ray actor: join the other ranks, save, load, leave.

The base of the learner's, the reference's and the critic's ranks. Every rank of a group is called
with the same method at the same time, because ZeRO's collectives are in lock-step. The computation
of a role is in its subclass, not here.
"""

from __future__ import annotations

import gc
import socket
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import ray
import ray.util

from workers.addresses import join_port, split_port
from workers.data.durable_files import FileRecord
from workers.data.plans import RankPlan, StepRows, join_computed, step_table
from workers.engines.zero.settings import ZeroSettings
from workers.importing import import_ahead
from workers.spans import Recorded, SpanLog, recorded

if TYPE_CHECKING:
    from workers.engines.zero.process_group import ProcessGroupSettings
    from workers.engines.zero.profiler import RankProfiler
    from workers.engines.zero.rank import ZeroRank

# DeepSpeed takes seconds to import, and the driver imports this module to launch its actors; so the
# engine is imported by the actor.


class RankWorker(ABC):
    """One rank of a model under ZeRO.

    Args:
        rank, world_size: of this model's ranks.
        settings: model, stage, optimizer.
        timeout_s: longest that a collective may take.
    """

    def __init__(
        self, *, rank: int, world_size: int, settings: ZeroSettings, timeout_s: float
    ) -> None:
        import_ahead("workers.engines.zero.rank")
        self._rank, self._world_size = rank, world_size
        self._settings, self._timeout_s = settings, timeout_s
        self._zero: ZeroRank
        self._profiler: RankProfiler | None = None
        self._written: Future[list[FileRecord]]
        self.spans = SpanLog()

    def open_port(self) -> str:
        """Return `host:port` of a free port on this node, at which the ranks may meet.

        An IPv6 address stands in brackets.
        """
        host = ray.util.get_node_ip_address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as listener:
            listener.bind(("", 0))
            return join_port(host, listener.getsockname()[1])

    @staticmethod
    def _table(
        rows: StepRows,
        computed: Sequence[pa.RecordBatch] = (),
        *,
        names: Collection[str] = (),
        of: RankPlan | None = None,
    ) -> pa.Table:
        """Return a step's trajectories with computed columns beside them.

        Args:
            rows: of the step; their own columns are not copied.
            computed: columns of the step, of all ranks.
            names: of the computed columns to copy.
            of: plan whose rows are copied, the others being null; None copies all rows.
        """
        table = step_table(rows.slices, ray.get(list(rows.batches)))
        mine = None if of is None else of.rows
        return join_computed(table, computed, names=names, rows=mine)

    def start(self, address: str) -> None:
        """Join the other ranks at `host:port` and load the model."""
        from workers.engines.zero.process_group import ProcessGroupSettings

        host, port = split_port(address)
        group = ProcessGroupSettings(
            rank=self._rank,
            world_size=self._world_size,
            address=host,
            port=port,
            backend="nccl" if ray.get_gpu_ids() else "gloo",
            timeout_s=self._timeout_s,
        )
        self._zero = self.build_engine(group)
        gc.collect()
        gc.freeze()  # full collections over all that is imported would stall the steps

    @abstractmethod
    def build_engine(self, group: ProcessGroupSettings) -> ZeroRank:
        """Build the engine of this role; `group` holds the address at which its ranks meet."""

    def shape(self) -> dict[str, int]:
        """Return the sizes that decide the cost of a sequence.

        They are the parameters that a token passes, the layers, and heads x head size.
        """
        from workers.engines.model.families.experts import active_parameters
        from workers.engines.zero.weights import ZeroSource

        model = self._zero.module.model
        config = model.config.get_text_config()
        parameters = ZeroSource(model).metadata()
        return {
            "num_parameters": active_parameters(
                ((parameter.name, parameter.num_elements) for parameter in parameters), config
            ),
            "num_layers": int(config.num_hidden_layers),
            "attention_size": int(
                config.num_attention_heads * config.head_dim
                if getattr(config, "head_dim", None)
                else config.hidden_size
            ),
        }

    @recorded("checkpoint")
    def begin_save(self, folder: str) -> None:
        """Copy this rank's state to host memory, and begin to write it to an existing folder."""
        snapshot = self._zero.snapshot()
        writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written = writer.submit(snapshot.write, Path(folder))
        writer.shutdown(wait=False)

    def saved(self, wait: bool) -> list[FileRecord] | None:
        """Return the files of the last `begin_save`; None if it still writes and `wait` is False.

        Raises:
            OSError: the disk is full, or refused a write.
        """
        if not wait and not self._written.done():
            return None
        return self._written.result()

    def load(self, folder: str) -> None:
        """Continue from a checkpoint."""
        self._zero.load(Path(folder))

    @recorded("switch")
    def offload_states(self) -> None:
        """Move optimizer state to host memory; parameters stay."""
        self._zero.offload_states()

    @recorded("switch")
    def reload_states(self) -> None:
        """Move the offloaded optimizer state back to the device."""
        self._zero.reload_states()

    @recorded("switch")
    def empty_cache(self) -> None:
        """Give back the device memory that PyTorch keeps for later."""
        self._zero.empty_cache()

    def take_spans(self) -> Recorded:
        """Return the spans of this rank since the last call."""
        return self.spans.take()

    def device_bytes(self) -> int:
        """Return the memory that all processes use on this rank's GPU, in bytes; 0 on CPU."""
        return self._zero.device_bytes()

    def start_profile(self, target: str | None, memory: bool) -> None:
        """Start a profile to files that begin with `target`; do nothing if `target` is None."""
        if target is not None:
            from workers.engines.zero.profiler import RankProfiler

            zero = self._zero
            self._profiler = RankProfiler(zero.module, zero.device, Path(target), memory=memory)

    def stop_profile(self) -> None:
        """Stop the profile and write its files, if one was started."""
        if self._profiler is not None:
            self._profiler.finish()
        self._profiler = None

    def close(self) -> None:
        """Leave the other ranks in order."""
        self._zero.close()
