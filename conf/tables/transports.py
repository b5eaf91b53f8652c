"""Table of the weight transports: the places each can reach, its needs, and its two ends.

Read by every process: the schema refuses values by these rows, the planning chooses a row, the
driver publishes by it, and the learner's ranks and the engines find their ends in it. Nothing is
sent here, and nothing heavy is imported: the ends are dotted paths, like every `_target_` of this
package. The table stands in `conf` because the schema reads it and may not import a worker.

No other file compares a transport with a name. A new transport is a row here, a `TrainerEndpoint`,
a receiver (vLLM's `WeightTransferEngine`), and a test beside `tests/workers/weight_sync`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

AUTO = "auto"  # in the place of a name: the first row that the places of the processes allow


class Reach(Enum):
    """Places of engines that a transport can bring weights to."""

    DEVICE = "the learner's GPU"
    NODE = "the learner's node"
    ANY = "any node"


@dataclass(frozen=True, kw_only=True, slots=True)
class Transport:
    """One way of weights from the learner to the engines.

    Example:
        >>> transport_named("shm").reach, transport_named("shm").may_grow
        (<Reach.NODE: "the learner's node">, True)

    Attributes:
        name: value of `rollout.transport`, and vLLM's name of the receiver.
        reach: engines that a publication can reach.
        endpoint: dotted path of the trainer's end, a `TrainerEndpoint`.
        receiver: dotted path of the engine's end, a `WeightTransferEngine` of vLLM.
        collective: every engine waits for the others, so one that is gone stalls all.
        repeatable: a publication that an engine's end or hang broke can be made again without
            that engine.
        needs_cuda: learner and engines have GPUs.
        uses_nccl: tensors travel through NCCL, which refuses two processes on one GPU and takes
            room in /dev/shm.
        carries_adapter: an adapter can be published by itself.
        engine_env: environment variables that an engine's process needs.
    """

    name: str
    reach: Reach
    endpoint: str
    receiver: str
    collective: bool = False
    repeatable: bool = False
    needs_cuda: bool = False
    uses_nccl: bool = False
    carries_adapter: bool = False
    engine_env: Mapping[str, str] = field(default_factory=dict)

    @property
    def may_grow(self) -> bool:
        """True where engines may join later: the learner's GPU has room for no more."""
        return self.reach is not Reach.DEVICE

    @property
    def limit(self) -> str:
        """Words of a refusal: `reaches engines on the learner's node only`."""
        return f"reaches engines on {self.reach.value} only"


# In the order in which `auto` tries them.
TRANSPORTS = (
    Transport(
        name="ipc",
        reach=Reach.DEVICE,
        repeatable=True,
        endpoint="workers.weight_sync.builtin.IpcEndpoint",
        receiver="vllm.distributed.weight_transfer.ipc_engine.IPCWeightTransferEngine",
        needs_cuda=True,
        engine_env={"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"},  # IPC handles travel pickled
    ),
    Transport(
        name="nccl",
        reach=Reach.ANY,
        endpoint="workers.weight_sync.builtin.NcclEndpoint",
        receiver="vllm.distributed.weight_transfer.nccl_engine.NCCLWeightTransferEngine",
        collective=True,  # and not repeatable: NCCL hangs with every rank that waits
        needs_cuda=True,
        uses_nccl=True,
    ),
    Transport(
        name="shm",
        reach=Reach.NODE,
        repeatable=True,
        endpoint="workers.weight_sync.shm.ShmEndpoint",
        receiver="workers.weight_sync.receivers.ShmReceiver",
        carries_adapter=True,
    ),
    Transport(
        name="gloo",
        reach=Reach.ANY,
        endpoint="workers.weight_sync.gloo.GlooEndpoint",
        receiver="workers.weight_sync.receivers.GlooReceiver",
        collective=True,
        repeatable=True,
        carries_adapter=True,
    ),
)


def transport_named(name: str) -> Transport:
    """Return the row of a name.

    Raises:
        ValueError: no row has the name.
    """
    for row in TRANSPORTS:
        if row.name == name:
            return row
    names = ", ".join(row.name for row in TRANSPORTS)
    raise ValueError(f"unknown weight transport {name!r}: choose one of {names}")


def any_of(rows: Iterable[Transport]) -> str:
    """Join names for a message: `nccl, shm or gloo`."""
    *others, last = [row.name for row in rows]
    return f"{', '.join(others)} or {last}" if others else last
