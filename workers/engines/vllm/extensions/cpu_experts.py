"""Mend of how vLLM reloads a mixture's experts on a CPU.

vLLM's CPU kernels read experts from a packed layout. vLLM 0.32 packs them when a model is loaded
and not when it is loaded again, after which the kernels would read plain weights as packed ones:
the probe's log-probs are then off by 0.008 (a tiny Qwen3-MoE). Runs inside vLLM's workers on a CPU.
Changes nothing where no expert is reloaded.
"""

from __future__ import annotations

from functools import wraps
from typing import Any


def patch_experts(method_class: Any) -> None:
    """Let `_setup_kernel` of an unquantized mixture pack again what was reloaded.

    Args:
        method_class: vLLM's `UnquantizedFusedMoEMethod`.
    """
    original = method_class._setup_kernel
    if hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def packed(self: Any, layer: Any, **weights: Any) -> None:
        again = self.moe_kernel is not None
        original(self, layer, **weights)
        if again:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    method_class._setup_kernel = packed
