"""Choose the arithmetic type that a machine computes fastest: `dtype: auto`.

A GPU computes in bfloat16. A CPU does so only with instructions for it (AVX-512 BF16, AMX or Arm's
BF16); without them every product is emulated, at about half of the speed of float32, and updates
that are small against a weight vanish when the weight is rounded. The CPU of the driver stands for
those of all nodes.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

AUTO = "auto"
CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # x86, x86, Arm


def has_bf16(cpu_info: Path = CPU_INFO) -> bool:
    """Return True where the CPU has instructions for bfloat16; False where that is unknown."""
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not BF16_FLAGS.isdisjoint(flags.split())
    return False


def fastest_dtype(num_gpus: float, cpu_info: Path = CPU_INFO) -> str:
    """Return the type in which a process with so many GPUs computes fastest."""
    return "bfloat16" if num_gpus or has_bf16(cpu_info) else "float32"


def reason(dtype: str, num_gpus: float, cpu_info: Path = CPU_INFO) -> str:
    """Return what speaks for or against `dtype` on this machine; empty on a GPU."""
    if num_gpus:
        return ""
    if has_bf16(cpu_info):
        return "this CPU has bfloat16 instructions" if dtype == "bfloat16" else ""
    if dtype == "float32":
        return "this CPU would emulate bfloat16"
    return f"this CPU emulates {dtype}, slowly: choose auto or float32"


def resolve_dtypes(config: DictConfig) -> None:
    """Replace `auto` in the types of model, engines and judge by that of the role's devices.

    In `model.param_dtype` it is float32, and float16 for a model that computes in float16.
    """
    roles = {"learner": config.model, "rollout": config.rollout, "judge": config.reward.engine}
    for role, section in roles.items():
        if section.dtype == AUTO:
            section.dtype = fastest_dtype(config.cluster[role].num_gpus)
    model = config.model
    if model.param_dtype == AUTO:
        model.param_dtype = "float16" if model.dtype == "float16" else "float32"
