"""Starts an engine and is killed; `test_vllm_engine.py` sees whether EngineCore follows."""

import asyncio
import os
import signal
import sys

from workers.engines.vllm.settings import VLLMSettings, engine_env


async def main() -> None:
    from workers.engines.vllm.engine import VLLMEngine

    await VLLMEngine(settings).start()
    print("EngineCore is running", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    settings = VLLMSettings(
        model_path=sys.argv[1],
        kv_cache_memory_bytes=64 << 20,
        tensor_parallel_size=int(sys.argv[2]),
    )
    os.environ.update(engine_env(settings, 1))
    asyncio.run(main())
