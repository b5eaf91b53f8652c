"""Weights of a running vLLM: their arrival, and the evidence of what arrived.

The first four methods are those of vLLM's weight-sync client, which the trainer's side calls
through the rollout worker; around them stand pausing, resuming and the evidence that attestation
reads. Runs in the rollout worker's process. The tensors arrive inside EngineCore through vLLM's
weight-transfer API and never pass through here; the transports are `workers.weight_sync`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workers.engines.vllm.process import VLLMProcess
from workers.engines.vllm.settings import VLLMSettings

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

ADAPTER_ID = 1  # vLLM's number of the only adapter


class VLLMWeights(VLLMProcess):
    """Running vLLM whose weights are replaced."""

    def __init__(self, settings: VLLMSettings) -> None:
        super().__init__(settings)
        self._adapter: LoRARequest | None = None

    async def init_weight_transfer_engine(
        self, init_info: dict[str, Any], place: int | None = None
    ) -> None:
        """Connect to the trainer; block until the transport's rendezvous is complete.

        Args:
            init_info: of the transport, equal for all engines. A `rank_offset` or `place` in it is
                that of the engine in place 0.
            place: of this engine among those that connect; its number if not given, which is its
                place as long as no engine left.
        """
        place = self.settings.engine_id if place is None else place
        own = {"rank_offset": place * self.settings.tensor_parallel_size, "place": place}
        init_info = init_info | {
            name: init_info[name] + shift for name, shift in own.items() if name in init_info
        }
        async with self._bounded("init_weight_transfer_engine"):
            await self._attempt("connect_to_trainer", init_info)

    async def start_weight_update(self) -> None:
        """Freeze running requests, so that no token is sampled between weights and label."""
        async with self._bounded("start_weight_update"):
            await self.pause()
            await self._live().start_weight_update()

    async def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Receive weights: one round for `shm` and `gloo`, chunks for the others."""
        async with self._bounded("update_weights"):
            await self._attempt("update_weights", update_info)

    async def _attempt(self, method: str, argument: Any) -> None:
        """Run on every worker what `AsyncLLM` does under the same name, and read all results.

        Raises:
            RuntimeError: a worker failed; names every worker that did, and its fault.
        """
        errors = await self._live().collective_rpc("attempt", args=(method, argument))
        if faults := [f"worker {rank}: {error}" for rank, error in enumerate(errors) if error]:
            raise RuntimeError("; ".join(faults))

    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Label the new weights, drop keys and values of the old ones, and resume."""
        async with self._bounded("finish_weight_update"):
            await self._live().finish_weight_update(weight_version)
            if self.settings.adapter_rank is not None:
                await self._apply_adapter()
            if self.settings.recompute_kv:
                await self.reset_prefix_cache()
            await self.resume()

    async def _apply_adapter(self) -> None:
        """Put the adapter that arrived in the place of the last one.

        After vLLM's own end of an update, which drops every adapter.
        """
        from vllm.lora.request import LoRARequest

        await self._live().collective_rpc("apply_adapter", args=(ADAPTER_ID,))
        # The path is never read: vLLM looks there only for an id that it does not hold.
        self._adapter = LoRARequest("policy", ADAPTER_ID, "published")

    async def pause(self) -> None:
        """Freeze running requests in place; with `recompute_kv` drop their cache too."""
        async with self._bounded("pause"):
            await self._freeze(clear_cache=self.settings.recompute_kv)

    async def resume(self) -> None:
        """Continue frozen requests."""
        async with self._bounded("resume"):
            await self._live().resume_generation()
        self._paused = False

    async def reset_prefix_cache(self) -> None:
        """Drop shared prefixes, which hold keys and values of older weights.

        Raises:
            RuntimeError: the engine refused, because requests are running and not paused.
        """
        async with self._bounded("reset_prefix_cache"):
            if not await self._live().reset_prefix_cache():
                raise RuntimeError(
                    "vLLM refused to reset its prefix cache while requests are running: "
                    "pause() first, with recompute_kv=True"
                )

    async def version(self) -> int:
        """Return the label of the weights in use."""
        async with self._bounded("version"):
            return int(await self._live().get_weight_version())

    async def attest_received(self) -> dict[str, list[int]]:
        """Return the fingerprint of every tensor that arrived in the last update.

        Raises:
            RuntimeError: the tensor-parallel workers received different bytes.
        """
        async with self._bounded("attest_received"):
            per_worker = await self._live().collective_rpc("attest_received")
        for worker, received in enumerate(per_worker):
            if received != per_worker[0]:
                raise RuntimeError(
                    f"worker {worker} of engine {self.settings.engine_id} received other weights "
                    f"than worker 0"
                )
        return {name: list(value) for name, value in per_worker[0].items()}

    async def attest_used(self) -> dict[str, list[list[int]]]:
        """Return the blocks of the weights in use that the workers hold, by tensor.

        Each is [row, column, plain, weighted] of a `fingerprint.Block`; a tensor that a kernel has
        packed is left out.
        """
        async with self._bounded("attest_used"):
            per_worker = await self._live().collective_rpc("attest_used")
        blocks: dict[str, list[list[int]]] = {}
        for used in per_worker:
            for name, block in used.items():
                blocks.setdefault(name, []).append(list(block))
        return blocks

    async def diagnose(self, expected: dict[str, list[int]] | None = None) -> dict[str, str]:
        """Name the weights in use that differ from what was last received.

        Args:
            expected: fingerprints that ought to have arrived, by parameter name.

        Returns:
            Reason by parameter name; empty if every live weight is the received one.
        """
        async with self._bounded("diagnose"):
            per_worker = await self._live().collective_rpc("diagnose", args=(expected,))
        merged: dict[str, str] = {}
        for found in per_worker:
            merged.update(found)
        return merged

    async def _freeze(self, *, clear_cache: bool) -> None:
        # AsyncLLM.pause_generation adds a sleep of 20 ms that is only for its callers' comfort.
        self._paused = True
        await self._live().engine_core.pause_scheduler_async(mode="keep", clear_cache=clear_cache)
