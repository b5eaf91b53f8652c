"""Settings of one ZeRO engine, and the DeepSpeed configuration made of them before it starts.

The driver makes the settings and sends them to every rank. Imports neither torch nor DeepSpeed: a
driver can validate settings without them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from workers.engines.model.lora_settings import LoraSettings
from workers.engines.zero.schedules import check_schedule

Dtype = Literal["float32", "bfloat16", "float16"]
ExportDtype = Literal["source", "float32", "bfloat16", "float16"]
EXPORT_DTYPES = get_args(ExportDtype)
# Raw DeepSpeed keys that would change what is differentiated, or belong to a setting of ours.
OWNED_KEYS = {
    "gradient_accumulation_steps": "micro-batches are the caller's",
    "managed_gradient_accumulation": "DeepSpeed's own drops micro-batches under ZeRO 1 and 2",
    "gradient_clipping": "set optimizer.max_grad_norm",
    "train_batch_size": "batches are the caller's",
    "train_micro_batch_size_per_gpu": "batches are the caller's",
    "optimizer": "set optimizer.name",
    "scheduler": "set optimizer.schedule",
    "bf16": "set model.dtype and model.param_dtype",
    "fp16": "set model.dtype and model.param_dtype",
}

BUCKET_PARAMETERS = 50_000_000  # whose gradients are reduced together
# Of ZeRO-3, on a CPU and on a GPU, where they are DeepSpeed's own: parameters that are gathered
# ahead of their layer, and that may be whole at once. A layer of 7 B parameters has 0.2 B.
PREFETCHED_PARAMETERS = (10_000_000, 50_000_000)
LIVE_PARAMETERS = (100_000_000, 1_000_000_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """Optimizer, its learning rate and the clipping of its gradient.

    Worked example, linear from 0.2e-6 up to 1e-6 in five steps, then falling to 0 at step 100:
        name "adamw"    lr 1e-6    betas (0.9, 0.999)    eps 1e-8    weight_decay 0.0
        max_grad_norm 1.0    schedule "linear"    warmup_steps 5    total_steps 100

    Attributes:
        name: "adamw" (torch's fused kernel) or "sgd" (no momentum).
        lr: learning rate after warm-up.
        betas, eps: of AdamW.
        weight_decay: for matrices and embeddings; vectors (norms, biases) are never decayed.
        max_grad_norm: the global gradient norm is clipped to it; `inf` does not clip.
        schedule: a name of `schedules.SCHEDULES`.
        warmup_steps: optimizer steps taken until the rate is reached.
        total_steps: optimizer steps after which "linear" and "cosine" have fallen to 0.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0
    total_steps: int | None = None

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "sgd"):
            raise ValueError(f"optimizer {self.name!r}: choose adamw or sgd")
        if not self.lr > 0 or not self.max_grad_norm > 0 or self.weight_decay < 0:
            raise ValueError(
                f"lr={self.lr} and max_grad_norm={self.max_grad_norm} must be positive, "
                f"weight_decay={self.weight_decay} not negative"
            )
        if not all(0 <= beta < 1 for beta in self.betas) or not self.eps > 0:
            raise ValueError(
                f"betas={self.betas} must be from 0 up to, and below, 1, and eps={self.eps} "
                "positive"
            )
        check_schedule(self.schedule, warmup_steps=self.warmup_steps, total_steps=self.total_steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroSettings:
    """Settings of one policy under DeepSpeed ZeRO.

    Worked example, a learner under ZeRO-2 and the reference of the same run:
        ZeroSettings(model="/models/qwen3_4b", zero_stage=2, dtype="bfloat16",
                     param_dtype="bfloat16", optimizer=OptimizerSettings(lr=1e-6),
                     gradient_checkpointing=True)
        ZeroSettings(model="/models/qwen3_4b", zero_stage=3, dtype="bfloat16",
                     param_dtype="bfloat16", optimizer=None)

    Attributes:
        model: Hugging Face folder with safetensors weights.
        zero_stage: 0 replicates; 1, 2, 3 partition optimizer, gradients, parameters.
        dtype: of the matrix products; log-probs are float32.
        param_dtype: of the weights that the forward pass reads. "float32" under a `dtype` of
            bfloat16 means autocast; "bfloat16" and "float16" need the same `dtype`, and the
            optimizer then steps a float32 copy (master weights), of which the model's are the
            rounded ones.
        optimizer: None for a policy that only scores (a reference).
        adapter: trains instead of the weights of `model`, which are frozen; None trains those.
        freeze: patterns of the names of parameters that do not train, such as "model.visual.*";
            None: the tower and connector of a vision-language model. See `frozen_names`.
        max_pixels: limit of the pixels of an image; None: the model's own.
        gradient_checkpointing: recompute layers in the backward pass.
        attention: a name of `attention.ATTENTION_NAMES`.
        router_balance: coefficient of the loss that balances a mixture's experts; 0 for none.
        head_chunk: rows of logits held at a time; None leaves it to `head_rows`.
        known_ids: ids, from 0 on, that can be sampled; None where the head has no other.
        longest: tokens of the run's longest sequence, by which a model with two sets of rotary
            frequencies takes one, as the engines do; None takes that of the model's context.
        sequence_parallel_size: neighbouring ranks that share every micro-batch (Ulysses).
        offload_optimizer, offload_params: to the host; parameters on stage 3 only.
        exports: True where the policy is written as a folder in the end; refused at once where
            that folder would be another model.
        export_dtype: of the weights that are written; "source" gives each tensor that of `model`.
        deepspeed: raw DeepSpeed configuration, merged over ours.
    """

    model: str
    zero_stage: int = 0
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    optimizer: OptimizerSettings | None = field(default_factory=OptimizerSettings)
    adapter: LoraSettings | None = None
    freeze: tuple[str, ...] | None = None
    max_pixels: int | None = None
    gradient_checkpointing: bool = False
    attention: str = "varlen_sdpa"
    router_balance: float = 0.0
    head_chunk: int | None = None
    known_ids: int | None = None
    longest: int | None = None
    sequence_parallel_size: int = 1
    offload_optimizer: bool = False
    offload_params: bool = False
    exports: bool = False
    export_dtype: ExportDtype = "source"
    deepspeed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage={self.zero_stage}: choose 0, 1, 2 or 3")
        check_dtypes(self.dtype, self.param_dtype)
        if self.export_dtype not in EXPORT_DTYPES:
            raise ValueError(
                f"export_dtype={self.export_dtype!r}: choose {', '.join(EXPORT_DTYPES)}"
            )
        if self.head_chunk is not None and self.head_chunk < 1:
            raise ValueError(f"head_chunk={self.head_chunk}: give at least one row, or null")
        self._check_routers()
        if self.sequence_parallel_size < 1:
            raise ValueError(
                f"sequence_parallel_size={self.sequence_parallel_size}: give 1 or more"
            )
        if self.sequence_parallel_size > 1 and self.attention != "varlen_sdpa":
            raise ValueError(
                f"sequence_parallel_size={self.sequence_parallel_size} with attention="
                f"{self.attention!r}: shared micro-batches need attention varlen_sdpa"
            )
        if self.offload_params and self.zero_stage != 3:
            raise ValueError(
                f"offload_params needs zero_stage=3, got {self.zero_stage}: "
                "other stages keep all parameters on every rank"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3, got 0")
        for key, reason in OWNED_KEYS.items():
            if key in self.deepspeed:
                raise ValueError(
                    f"deepspeed.{key}={self.deepspeed[key]!r} cannot be passed: {reason}"
                )
        stage = dict(self.deepspeed.get("zero_optimization") or {}).get("stage", self.zero_stage)
        if stage != self.zero_stage:
            raise ValueError(
                f"deepspeed.zero_optimization.stage={stage} against zero_stage={self.zero_stage}: "
                "set zero_stage"
            )

    def _check_routers(self) -> None:
        if self.router_balance < 0:
            raise ValueError(f"router_balance={self.router_balance}: must not be negative")
        if self.router_balance and self.sequence_parallel_size > 1:
            raise ValueError(
                f"router_balance={self.router_balance:g} with sequence_parallel_size="
                f"{self.sequence_parallel_size}: no rank sees all tokens of a micro-batch; set one "
                "of them to 0 or 1"
            )
        if self.router_balance and self.gradient_checkpointing and self.zero_stage == 3:
            raise ValueError(
                f"router_balance={self.router_balance:g} with gradient_checkpointing under ZeRO-3: "
                "the routers' outputs have no gradient there; choose another stage, or neither"
            )

    @property
    def has_masters(self) -> bool:
        """True where the optimizer steps a float32 copy of weights of 16 bits."""
        return self.optimizer is not None and self.param_dtype != "float32"

    @property
    def engine_stage(self) -> int:
        """Stage that DeepSpeed runs.

        Without an optimizer, 1 and 2 have nothing to divide. DeepSpeed has no master weights on
        stage 0 whose gradient is summed in float32: they are those of stage 1, divided over ranks.
        """
        if self.optimizer is None:
            return self.zero_stage if self.zero_stage == 3 else 0
        return max(self.zero_stage, 1) if self.has_masters else self.zero_stage


def check_dtypes(dtype: str, param_dtype: str) -> None:
    """Raise ValueError unless weights of `param_dtype` are multiplied in `dtype` somewhere."""
    for name, value in (("dtype", dtype), ("param_dtype", param_dtype)):
        if value not in get_args(Dtype):
            raise ValueError(f"{name}={value!r}: choose {', '.join(get_args(Dtype))}")
    if param_dtype not in ("float32", dtype):
        raise ValueError(
            f"param_dtype={param_dtype} with dtype={dtype}: weights of 16 bits are multiplied in "
            f"their own type; choose param_dtype=float32 or dtype={param_dtype}"
        )
    if dtype == "float16" != param_dtype:
        raise ValueError(
            f"dtype=float16 with param_dtype={param_dtype}: the scale of the loss that float16 "
            "needs goes with weights of float16; choose param_dtype=float16 or dtype=bfloat16"
        )


def deepspeed_config(settings: ZeroSettings, *, on_gpu: bool = False) -> dict[str, Any]:
    """Make DeepSpeed's JSON of `settings`; `settings.deepspeed` wins over every key of ours.

    Gradient accumulation is ours, not DeepSpeed's: its managed accumulation keeps only the last
    micro-batch under ZeRO 1 and 2 (0.19.5 to 0.19.8).
    """
    stage = settings.engine_stage
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": on_gpu and stage >= 2,  # the others reduce once, at the step
        "reduce_bucket_size": BUCKET_PARAMETERS,
        "allgather_bucket_size": BUCKET_PARAMETERS,
    }
    if stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": PREFETCHED_PARAMETERS[on_gpu],
            "stage3_max_live_parameters": LIVE_PARAMETERS[on_gpu],
        }
    if settings.offload_optimizer and settings.optimizer is not None:
        zero["offload_optimizer"] = {"device": "cpu"}
    if settings.offload_params:
        zero["offload_param"] = {"device": "cpu"}
    clip = settings.optimizer.max_grad_norm if settings.optimizer else 0.0
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # 0 is "off" to DeepSpeed; left out it clips to 1.0. Stage 0 is clipped by the engine,
        # because DeepSpeed's plain path neither reports the norm nor stops at NaN.
        "gradient_clipping": 0.0 if stage == 0 or clip == float("inf") else clip,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return _merge(ours | _precision(settings), settings.deepspeed)


def _precision(settings: ZeroSettings) -> dict[str, Any]:
    """Return the keys for weights of 16 bits: gradients are summed and reduced in float32."""
    if settings.param_dtype == "float32":
        return {}
    sums = {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}
    if settings.param_dtype == "bfloat16":
        return {"bf16": {"enabled": True}, **sums}
    # An overflow lowers the scale at once; DeepSpeed's own default waits for the second.
    return {"fp16": {"enabled": True, "hysteresis": 1}, **sums}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged
