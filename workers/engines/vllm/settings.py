"""Settings of a vLLM engine, and the environment of its process.

Data flows from the configuration to `VLLMSettings`, from there to `AsyncEngineArgs` keywords and to
the environment variables that must be set before the engine's process imports torch. The driver
makes the settings and sends them to the rollout workers. Not the engine: nothing here imports vLLM,
so that drivers and configuration checks stay light.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from conf.tables.transports import transport_named
from workers.data.images.settings import ImageLimits

MASK_CLASS = "workers.engines.vllm.extensions.known_ids:KnownIds"
EXTENSION_CLASS = "workers.weight_sync.extension.WeightSyncExtension"

#: Positions of a key/value block on CPU, the smallest that vLLM allows there. Its own choice, 128,
#: reserves so much for a short sequence that a small cache decodes few of them together.
CPU_BLOCK_TOKENS = 32

# Settings that carry an invariant of the training loop: (why, what to use instead).
RESERVED_ENGINE_KWARGS: Mapping[str, str] = {
    "logprobs_mode": "behaviour log-probs are the processed ones (after temperature)",
    "weight_transfer_config": "set weight_transfer_backend instead",
    "worker_extension_cls": "the extension registers the transports and attests what arrived",
    "model": "set model_path instead",
    "dtype": "set dtype instead",
    "seed": "set seed instead",
    "max_model_len": "set max_model_len instead",
    "tensor_parallel_size": "set tensor_parallel_size instead",
    "enable_prefix_caching": "set enable_prefix_caching instead",
    "limit_mm_per_prompt": "set data.images.max_per_prompt instead",
    "mm_processor_kwargs": "set data.images.max_pixels instead",
    "mm_device_do_normalize": "images are sent as bytes, which vLLM must normalise",
    "enable_lora": "choose model/adapter=lora model.adapter.publish=adapter",
    "pipeline_parallel_size": "an update is only atomic against engine steps without pipelining",
}
# What vLLM takes for `max_lora_rank`.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, kw_only=True, slots=True)
class VLLMSettings:
    """Settings of one engine.

    Worked example, the second engine of a CPU run, and one on two GPUs:
        VLLMSettings(model_path="/cache/smollm2", max_model_len=128, engine_id=1,
                     kv_cache_memory_bytes=1 << 28, weight_transfer_backend="shm")
        VLLMSettings(model_path="/models/qwen25_32b", device="cuda", dtype="bfloat16",
                     max_model_len=4096, tensor_parallel_size=2, gpu_memory_utilization=0.9,
                     weight_transfer_backend="nccl")

    Attributes:
        model_path: Hugging Face folder.
        device: "cpu" or "cuda".
        dtype: of weights and activations.
        max_model_len: longest prompt and response together, in tokens; None reads the model's.
        max_num_seqs: sequences decoded together.
        tensor_parallel_size: devices (or CPU processes) of one engine.
        kv_cache_memory_bytes: key/value cache of each device; None: what the engine measures to be
            left of its share of the memory.
        gpu_memory_utilization: that share, of a whole GPU; vLLM starts only where so much is free.
            None keeps vLLM's own default.
        sleeps: `sleep` is to free device memory; vLLM then allocates from pools that it can unmap.
        known_ids: ids, from 0 on, that a text can have; the head's others are never sampled.
        seed: of the engine; every request carries its own besides.
        weight_transfer_backend: name of a row of `conf/tables/transports.py`.
        engine_id: number of this engine among those of the run (ranks in a transfer group follow
            from it).
        enforce_eager: no compilation, no CUDA graphs; None: so on a CPU, where compiling takes
            longer than it saves, and not on a GPU.
        enable_prefix_caching: shares the prompt's keys and values within a group.
        recompute_kv: an update in mid-generation recomputes the running requests' keys and values
            under the new weights; without it they continue on stale ones.
        adapter_rank: rank of a LoRA adapter, where publications bring A and B beside frozen
            weights; None where they bring weights of the model.
        adapter_layers: last parts of the names of the layers that it adapts. vLLM gets this list,
            because it would adapt the head as well, and then cannot score prompts beside other
            requests.
        keep_special_tokens: the text of a sample has special tokens, but for the one that ended it.
        request_timeout_s: longest time between two tokens of a response that runs, and between two
            steps of an engine that holds requests.
        control_timeout_s: longest wait for anything else.
        images: limits of the images that prompts and environments show; None: none.
        engine_kwargs: raw `AsyncEngineArgs` keywords; they win over what is derived here.
    """

    model_path: str
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: str = "float32"
    max_model_len: int | None = None
    max_num_seqs: int = 256
    tensor_parallel_size: int = 1
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float | None = None
    sleeps: bool = False
    known_ids: int | None = None
    seed: int = 0
    weight_transfer_backend: str = "shm"
    engine_id: int = 0
    enforce_eager: bool | None = None
    enable_prefix_caching: bool = True
    recompute_kv: bool = True
    adapter_rank: int | None = None
    adapter_layers: tuple[str, ...] = ()
    keep_special_tokens: bool = False
    request_timeout_s: float = 600.0
    control_timeout_s: float = 300.0
    images: ImageLimits | None = None
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in self.engine_kwargs:
            if key in RESERVED_ENGINE_KWARGS:
                raise ValueError(
                    f"rollout engine_kwargs may not set {key!r} "
                    f"(got {self.engine_kwargs[key]!r}): {RESERVED_ENGINE_KWARGS[key]}"
                )
        if self.tensor_parallel_size < 1:
            raise ValueError(
                f"tensor_parallel_size must be at least 1, got {self.tensor_parallel_size}"
            )
        self._check_adapter()
        if self.max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, got {self.max_num_seqs}")
        if not self.recompute_kv and self.enable_prefix_caching:
            raise ValueError(
                "recompute_kv=False keeps stale keys and values, which a shared prefix would hand "
                "to new requests: set enable_prefix_caching=False with it"
            )

    def _check_adapter(self) -> None:
        if self.adapter_rank is None:
            return
        if self.adapter_rank > LORA_RANKS[-1]:
            raise ValueError(
                f"adapter_rank={self.adapter_rank}: vLLM applies adapters up to rank "
                f"{LORA_RANKS[-1]}; lower it, or publish the adapter merged"
            )
        if not self.adapter_layers:
            raise ValueError(f"adapter_rank={self.adapter_rank} needs adapter_layers: name them")

    def engine_args(self) -> dict[str, Any]:
        """Return the keywords of `AsyncEngineArgs`."""
        derived: dict[str, Any] = {
            "model": self.model_path,
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "tensor_parallel_size": self.tensor_parallel_size,
            "kv_cache_memory_bytes": self.kv_cache_memory_bytes,
            "seed": self.seed,
            "enforce_eager": (
                self.device == "cpu" if self.enforce_eager is None else self.enforce_eager
            ),
            "enable_prefix_caching": self.enable_prefix_caching,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",  # a model folder must not change how responses are sampled
            "weight_transfer_config": {"backend": self.weight_transfer_backend},
            "worker_extension_cls": EXTENSION_CLASS,
            "disable_log_stats": True,
            "enable_log_requests": False,
            "use_tqdm_on_load": False,
        }
        if self.adapter_rank is not None:
            slots = next(rank for rank in LORA_RANKS if rank >= self.adapter_rank)
            derived |= {
                "enable_lora": True,
                "max_loras": 1,
                "max_lora_rank": slots,
                "lora_target_modules": list(self.adapter_layers),
            }
        if self.gpu_memory_utilization is not None:
            derived["gpu_memory_utilization"] = self.gpu_memory_utilization
        if self.sleeps and self.device == "cuda":
            derived["enable_sleep_mode"] = True
        # Left to itself vLLM takes Ray for its workers inside an actor, and refuses its bundle.
        derived["distributed_executor_backend"] = "uni" if self.tensor_parallel_size == 1 else "mp"
        if self.device == "cpu":
            derived["block_size"] = CPU_BLOCK_TOKENS
        return {**derived, **self.engine_kwargs, **self._mask()}

    def _mask(self) -> dict[str, Any]:
        """Return the keywords by which ids that no text has are masked, beside the user's own."""
        if self.known_ids is None:
            return {}
        processors = self.engine_kwargs.get("logits_processors") or []
        extras = self.engine_kwargs.get("additional_config") or {}
        return {
            "logits_processors": [MASK_CLASS, *processors],
            "additional_config": {**extras, "known_ids": self.known_ids},
        }


def engine_env(settings: VLLMSettings, num_threads: int) -> dict[str, str]:
    """Return the environment variables that must be set before the engine's process starts.

    Args:
        settings: the engine's settings.
        num_threads: CPU threads of the engine's torch.

    Raises:
        ValueError: fewer than one thread.
    """
    if num_threads < 1:
        raise ValueError(f"an engine needs at least 1 thread, got {num_threads}")
    env = {
        **transport_named(settings.weight_transfer_backend).engine_env,
        "OMP_NUM_THREADS": str(num_threads),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if settings.device == "cpu":
        env["TORCHDYNAMO_DISABLE"] = "1"  # the first request would compile a log-prob function
        env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # "auto" pins every engine to the first core
        if settings.tensor_parallel_size == 1:
            env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the executor inside EngineCore's process
    return env
