"""Experts that a CPU engine reloads are packed again, once for each reload."""

from dataclasses import dataclass, field
from typing import Any

from workers.engines.vllm.extensions.cpu_experts import patch_experts


@dataclass
class Experts:
    """A kernel that counts how often it packs."""

    packed: int = 0

    def process_weights_after_loading(self, layer: Any) -> None:
        self.packed += 1


@dataclass
class Kernel:
    fused_experts: Experts = field(default_factory=Experts)


def test_a_reload_packs_again_and_the_first_load_only_once() -> None:
    class Method:
        moe_kernel: Kernel | None = None

        def _setup_kernel(self, layer: Any, w13: Any, w2: Any) -> None:
            if self.moe_kernel is None:  # as vLLM does: only at first
                self.moe_kernel = Kernel()
                self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    patch_experts(Method)
    patch_experts(Method)  # harmless when done twice
    method = Method()
    counts = []
    for _ in range(3):
        method._setup_kernel(layer=None, w13=None, w2=None)
        assert method.moe_kernel is not None
        counts.append(method.moe_kernel.fused_experts.packed)
    assert counts == [1, 2, 3]
