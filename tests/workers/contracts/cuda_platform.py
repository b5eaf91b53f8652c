"""vLLM's real CUDA configuration on a machine without CUDA; prints what each engine would get.

Only what asks the driver or the compiled library is replaced: a vLLM built for CPUs has no CUDA
kernels, and the device's name, memory and number come from here. Platform, argument parser and
every check of the configuration are vLLM's own. Started by `test_vllm_on_cuda.py`, because the
platform is one of a process.
"""

from __future__ import annotations

import json
import sys
import types
from typing import Any

DEVICES = 2


def use_cuda() -> None:
    """Make vLLM's own CUDA platform that of this process."""
    sys.modules["vllm._C_stable_libtorch"] = types.ModuleType("vllm._C_stable_libtorch")
    from vllm import platforms
    from vllm.device_allocator import cumem
    from vllm.platforms import cuda
    from vllm.platforms.interface import DeviceCapability

    class H100(cuda.NonNvmlCudaPlatform):  # type: ignore[misc, name-defined]
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> Any:
            return DeviceCapability(9, 0)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "NVIDIA H100"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return 80 << 30

        @classmethod
        def device_count(cls) -> int:
            return DEVICES

        @classmethod
        def is_fully_connected(cls, physical_device_ids: list[int]) -> bool:
            return True

        @classmethod
        def log_warnings(cls) -> None:
            pass

    cumem.cumem_available = True  # a compiled extension of the CUDA build
    platforms._current_platform = H100()


def engine_config(settings: Any) -> dict[str, Any]:
    """Build vLLM's configuration as `VLLMProcess.start` does, and pick what Ballast relies on."""
    from vllm import AsyncEngineArgs

    config = AsyncEngineArgs(**settings.engine_args()).create_engine_config()
    return {
        "device": config.device_config.device_type,
        "executor": config.parallel_config.distributed_executor_backend,
        "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
        "extension": config.parallel_config.worker_extension_cls,
        "worker": config.parallel_config.worker_cls,
        "enforce_eager": config.model_config.enforce_eager,
        "graphs": config.compilation_config.cudagraph_mode.name,
        "sleeps": config.model_config.enable_sleep_mode,
        "logprobs": config.model_config.logprobs_mode,
        "fraction": config.cache_config.gpu_memory_utilization,
        "cache_bytes": config.cache_config.kv_cache_memory_bytes,
        "prefix_caching": config.cache_config.enable_prefix_caching,
        "transport": config.weight_transfer_config.backend,
        "lora_rank": config.lora_config.max_lora_rank if config.lora_config else None,
    }


def main() -> None:
    """Print one line of JSON: a configuration for each list of settings in the argument."""
    use_cuda()
    from workers.engines.vllm.settings import VLLMSettings

    cases = json.loads(sys.argv[1])
    found = {name: engine_config(VLLMSettings(**case)) for name, case in cases.items()}
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
