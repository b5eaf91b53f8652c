"""Extension of vLLM's workers by Ballast: its transports, and the calls of attestation.

vLLM imports this module in every worker before it loads the model (`worker_extension_cls`) and
mixes the class into its worker, so that its methods can be called through `collective_rpc`. The
import also ties the worker's life to that of the engine's owner, on a CPU mends how vLLM discards
sampled tokens and reloads experts, lets Mixtral be loaded under the learner's names, and registers
a Qwen2.5-VL that needs no torchvision. Runs inside vLLM's workers. Keeps no weights: the
transport's receiver does.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.models.mixtral import MixtralForCausalLM, MixtralModel
from vllm.model_executor.models.utils import WeightsMapper
from vllm.platforms import current_platform

from conf.tables.transports import TRANSPORTS
from workers.engines.vllm.cpu_generators import patch_runner
from workers.engines.vllm.extensions.cpu_experts import patch_experts
from workers.engines.vllm.extensions.mixtral_names import accept_published_names
from workers.engines.vllm.image_only import register_image_only
from workers.engines.vllm.lifeline import follow_owner
from workers.weight_sync.adapters import apply_adapter
from workers.weight_sync.diagnosis import live_blocks, stale_weights, unlike_expected
from workers.weight_sync.receipts import ReceiptRecorder


def register_receivers() -> None:
    """Register every transport with vLLM, which knows its own and refuses a name twice."""
    for row in TRANSPORTS:
        if row.name not in WeightTransferEngineFactory._registry:
            module, _, class_name = row.receiver.rpartition(".")
            WeightTransferEngineFactory.register_engine(row.name, module, class_name)


register_receivers()
register_image_only()
accept_published_names(WeightsMapper, MixtralModel, MixtralForCausalLM)
follow_owner()
if current_platform.is_cpu():
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
        UnquantizedFusedMoEMethod,
    )
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    patch_experts(UnquantizedFusedMoEMethod)
    patch_runner(CPUModelRunner)


class WeightSyncExtension:
    """Methods of every vLLM worker. State lives in the transport's receiver."""

    weight_transfer_engine: Any
    model_runner: Any
    init_weight_transfer_engine: Any  # vLLM's

    def attempt(self, method: str, argument: Any) -> str:
        """Call a method of vLLM's worker; return the error that it raised, or an empty text.

        Were the error raised here, the results of the engine's other workers would stay unread, and
        be taken for those of the next call.
        """
        try:
            getattr(self, method)(argument)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def connect_to_trainer(self, init_info: dict[str, Any]) -> None:
        """Leave the last trainer's transport, join the one of `init_info`, attach the receipts.

        vLLM would forget the last connection and leave its sockets and its communicator open.
        """
        self._weight_update_active = False  # vLLM's: the last update may have been cut short
        self.weight_transfer_engine.shutdown()
        self.init_weight_transfer_engine(init_info)
        # What vLLM's own transports load (`nccl`, `ipc`) is fingerprinted as it comes.
        if not hasattr(self.weight_transfer_engine, "fingerprints"):
            ReceiptRecorder.attach(self.weight_transfer_engine)

    def attest_received(self) -> dict[str, list[int]]:
        """Return the fingerprint of every tensor of the last publication."""
        return {
            name: list(value) for name, value in self.weight_transfer_engine.fingerprints().items()
        }

    def attest_used(self) -> dict[str, list[int]]:
        """Return a fingerprint of the weights in use, as far as parameters show them.

        By name: row, column, plain and weighted sum of this worker's block (`fingerprint.Block`).
        """
        engine = self.weight_transfer_engine
        names = [name for name, _ in engine.received()] or engine.fingerprints()
        return {
            name: [block.row, block.column, block.plain, block.weighted]
            for name, block in live_blocks(self.model_runner.get_model(), names).items()
        }

    def apply_adapter(self, adapter_id: int) -> None:
        """Make the adapter of the last publication the one that requests use."""
        received = dict(self.weight_transfer_engine.received())
        apply_adapter(self.model_runner, received, adapter_id)

    def diagnose(self, expected: dict[str, list[int]] | None = None) -> dict[str, str]:
        """Return the reason for every parameter whose live weight is not what was published."""
        engine = self.weight_transfer_engine
        found = unlike_expected(engine.fingerprints(), expected or {})
        if self.model_runner.parallel_config.tensor_parallel_size == 1:
            found |= stale_weights(self.model_runner.get_model(), dict(engine.received()))
        return found
