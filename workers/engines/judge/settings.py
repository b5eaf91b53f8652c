"""Settings of a judge's engine: the command of its server, and the environment of that process.

The driver makes the settings of the configuration and sends them to the judge workers. Imports no
engine and starts nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from workers.engines.vllm.settings import CPU_BLOCK_TOKENS

SERVER = "vllm.entrypoints.openai.api_server"
KEY_VARIABLE = "BALLAST_JUDGE_KEY"  # of the run's processes; the server's name for it is its own
# Arguments of the server that this project sets: argument -> what to use instead.
RESERVED: Mapping[str, str] = {
    "--model": "reward.engine.model",
    "--served-model-name": "nothing: the run knows the name",
    "--dtype": "reward.engine.dtype",
    "--max-model-len": "reward.engine.max_model_len",
    "--max-num-seqs": "reward.engine.max_num_seqs",
    "--tensor-parallel-size": "reward.engine.tensor_parallel_size",
    "--kv-cache-memory-bytes": "reward.engine.kv_cache_gib",
    "--seed": "seed",
    "--host": "nothing: it is the node's address",
    "--port": "nothing: a free one is chosen",
    "--api-key": "nothing: each run has a key of its own",
    "--distributed-executor-backend": "nothing: an engine stands on one node",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSettings:
    """Settings of one engine of a judge.

    Worked example, a judge on two GPUs:
        JudgeSettings(model_path="/models/qwen3_32b", device="cuda", dtype="bfloat16",
                      max_model_len=8192, tensor_parallel_size=2)

    Attributes:
        model_path: Hugging Face folder; also the model's name in a request.
        device: "cpu" or "cuda".
        dtype: of weights and activations.
        max_model_len: longest prompt and verdict together, in tokens.
        max_num_seqs: calls that are answered together.
        tensor_parallel_size: devices (or CPU processes) of one engine.
        kv_cache_memory_bytes: key/value cache of each device; None: what is left of its memory.
        threads: of one process on CPUs.
        seed: of the engine.
        arguments: further ones of vLLM's server, such as ("--quantization", "fp8").
    """

    model_path: str
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: str = "float32"
    max_model_len: int = 4096
    max_num_seqs: int = 64
    tensor_parallel_size: int = 1
    kv_cache_memory_bytes: int | None = None
    threads: int = 1
    seed: int = 0
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for argument in self.arguments:
            name = argument.partition("=")[0].replace("_", "-")
            if name in RESERVED:
                raise ValueError(f"engine.arguments may not set {name}; use {RESERVED[name]}")

    def command(self, *, host: str, port: int) -> list[str]:
        """Return the command of the server that listens at an address of this node."""
        given: dict[str, object] = {
            "--model": self.model_path,
            "--dtype": self.dtype,
            "--max-model-len": self.max_model_len,
            "--max-num-seqs": self.max_num_seqs,
            "--tensor-parallel-size": self.tensor_parallel_size,
            "--distributed-executor-backend": "uni" if self.tensor_parallel_size == 1 else "mp",
            "--generation-config": "vllm",  # a model folder must not change how verdicts are drawn
            "--seed": self.seed,
            "--host": host,
            "--port": port,
        }
        if self.kv_cache_memory_bytes is not None:
            given["--kv-cache-memory-bytes"] = self.kv_cache_memory_bytes
        flags = ["--disable-uvicorn-access-log", "--disable-log-stats"]
        if self.device == "cpu":
            given["--block-size"] = CPU_BLOCK_TOKENS
            flags.append("--enforce-eager")  # compiling takes longer than it saves there
        pairs = [text for name, value in given.items() for text in (name, str(value))]
        return [sys.executable, "-m", SERVER, *pairs, *flags, *self.arguments]

    def environment(self) -> dict[str, str]:
        """Return the environment of the server, which is this process's with some changes.

        Raises:
            KeyError: this process has no key for the server.
        """
        own = {
            "VLLM_API_KEY": os.environ[KEY_VARIABLE],
            "OMP_NUM_THREADS": str(self.threads),
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if self.device == "cpu":
            own["TORCHDYNAMO_DISABLE"] = "1"
            own["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # "auto" takes the first core for each
        return {**os.environ, **own}
