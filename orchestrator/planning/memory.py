"""Estimate the memory of a run on every GPU from sizes alone: no weights, no GPU, no process.

Runs in the driver. Not a measurement: an estimate of the bytes that a GPU holds at once, good
enough to refuse a cluster that can't hold the run and to print the shortage. Data flows from the
configuration and a model's architecture to bytes per process, and from there to `plan`.

Legend: P parameters, N ranks, T tokens of a micro-batch on one rank, L layers, h hidden size, i
feed-forward size, q = heads x head_dim, k = key/value heads x head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from conf.schema import AdapterConfig, ArchitectureConfig, TowerConfig, TrainConfig
from orchestrator.planning.architecture import (
    architecture_of,
    layer_bytes_per_token,
    num_parameters,
)
from orchestrator.planning.roles import PlannedRole
from workers.engines.model.head_rows import head_bytes
from workers.engines.model.vision.names import KEPT_BYTES
from workers.engines.zero.settings import BUCKET_PARAMETERS, LIVE_PARAMETERS

GIB = 2**30
# CUDA context, buffers of NCCL and cuBLAS, what the allocator can't reuse, and the chunk of a
# weight publication, 1 GiB: of every process, by experience with 80 GB devices.
RESERVE_BYTES = 4 * GIB
PUBLISHED_CHUNK_BYTES = GIB  # of it; workers/weight_sync/builtin.py takes more for a larger tensor
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Up to this length a sequence on a CPU keeps the scores of its attention for the backward pass,
# `PLAIN_LENGTH` of workers/engines/model/attention_kernels.py, which the driver does not import.
SCORED_LENGTH = 128
# What libraries keep for products on a CPU, measured: MKL buffers for float32; oneDNN, for 16 bits,
# kernels that it compiles for every shape, 24 of 0.6 MiB for one number of tokens: those of the
# self-test and of one micro-batch.
CPU_LIBRARY_BYTES = {"float32": 15 << 20, "bfloat16": 32 << 20, "float16": 32 << 20}
# What a role that takes turns keeps on the GPU out of turn, orchestrator/fleet/colocation.py.
RESTING = {"rollout": ("reserve",), "learner": ("weights", "gradients", "reserve")}


@dataclass(frozen=True, kw_only=True)
class Share:
    """Memory of one process on its GPU.

    Attributes:
        role: rollout, learner, reference or critic.
        parts: name of a part -> bytes.
    """

    role: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Sum of all parts, in bytes."""
        return sum(self.parts.values())

    def resting(self) -> Share:
        """Return the share that stays on the GPU while a colocated role does not work."""
        kept = {name: size for name, size in self.parts.items() if name in RESTING[self.role]}
        return Share(role=self.role, parts=kept)

    def __str__(self) -> str:
        terms = " + ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts.items() if size)
        return f"{self.role}: {terms} = {self.total / GIB:.1f} GiB"


def num_trained(config: TrainConfig, model: ArchitectureConfig) -> int:
    """Count the parameters with a gradient.

    All of them, less a frozen tower, or with an adapter A and B beside every linear layer and
    every expert's matrices, (in + out) x rank each. An adapter on fewer layers is counted as one on
    all of them, and what patterns of `model.freeze` freeze is counted as if it trained.
    """
    adapter = config.model.adapter
    if not adapter.trains:
        frozen = model.tower.parameters if model.tower and config.model.freeze is None else 0
        return num_parameters(model) - frozen
    if model.adapter_parameters is not None:
        return adapter.rank * model.adapter_parameters
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    attention = 2 * (model.hidden_size + queries) + 2 * (model.hidden_size + keys)
    feed_forward = 3 * (model.hidden_size + model.intermediate_size)
    return model.num_layers * adapter.rank * (attention + feed_forward)


def kv_bytes_per_token(model: ArchitectureConfig, config: TrainConfig) -> float:
    """Return the bytes of one token's keys and values on one device of an engine."""
    heads = max(1.0, model.num_kv_heads / config.rollout.tensor_parallel_size)
    element = ELEMENT_BYTES[config.rollout.dtype]
    return 2 * model.num_layers * heads * model.head_dim * element


def image_bytes(config: TrainConfig, tower: TowerConfig, *, trains: bool) -> float:
    """Return the bytes of a rank's images, if every token of its micro-batch is one of an image.

    Pixels are held as bytes, with float32 values and an index of 4 bytes each; a tower keeps what a
    backward pass needs of every layer, or the activations of one layer and features for later.
    """
    frozen = config.model.freeze is None or config.model.adapter.trains
    element = ELEMENT_BYTES[config.model.dtype]
    patches = tower.patches_per_token * config.learner.token_budget
    saved = 32 * tower.hidden_size + element * (4 * tower.intermediate_size + 7 * tower.hidden_size)
    alone = not trains or frozen
    layers = 1 if alone or config.learner.gradient_checkpointing else tower.num_layers
    pixels = 9.0 * tower.values_per_patch
    return patches * (pixels + saved * layers) + (KEPT_BYTES if frozen else 0)


def policy_share(
    config: TrainConfig, model: ArchitectureConfig, *, num_ranks: int, trains: bool
) -> Share:
    """Return the share of one rank of the learner, or of a policy that only scores.

    Gradients and AdamW's moments are float32. From stage 1 on, and beside weights of 16 bits,
    DeepSpeed keeps a float32 copy of the partition that it steps.
    """
    learner = config.learner
    stage, parameters = learner.zero_stage, num_parameters(model)
    offloaded = learner.offload_params
    if not trains:
        stage, offloaded = config.reference.stage(learner), config.reference.offloads(learner)
    held = ELEMENT_BYTES[config.model.param_dtype]
    on_cpu = not config.cluster.learner.num_gpus
    masters = held < 4 or stage >= 1
    weights = float(held * parameters) / (num_ranks if stage == 3 else 1)
    whole = 4.0 * num_trained(config, model)
    divided = whole / num_ranks
    parts = {"weights": 0.0 if stage == 3 and offloaded else weights}
    if trains:
        on_device = not learner.offload_optimizer
        parts["gradients"] = divided if stage >= 2 else whole
        if held < 4:  # the backward pass's own, beside their float32 sum
            own = num_trained(config, model)
            parts["gradients"] += held * (own if stage < 2 else min(BUCKET_PARAMETERS, own))
        # Gradients wait in a bucket; where one is reduced beside the backward pass, there are two.
        buckets = 1 if on_cpu or stage < 2 else 2
        staged = buckets * 4.0 * min(BUCKET_PARAMETERS, num_trained(config, model))
        parts["buckets"] = staged if masters else 0.0
        parts["master weights"] = divided if masters and on_device else 0.0
        moments = 2 * (divided if masters else whole)
        parts["AdamW"] = moments if learner.optimizer.name == "adamw" and on_device else 0.0
    widest = max(LIVE_PARAMETERS[True], model.vocab_size * model.hidden_size)
    parts["gathered"] = float(held * min(parameters, widest)) if stage == 3 else 0.0
    element = ELEMENT_BYTES[config.model.dtype]
    # Autocast keeps a copy of every weight that it rounds, from the forward pass to its end.
    parts["bf16 weights"] = float(element * parameters) if element < held and stage < 3 else 0.0
    if trains:
        parts["publication"] = publication_bytes(config, model)
    parts["activations"] = activation_bytes(config, model, trains=trains)
    if trains and stage == 2 and held == 4:
        # When a micro-batch ends, its gradients are beside their sum, and its activations gone; but
        # on a CPU the pages of the activations stay for the next ones.
        parts["gradients"] += max(0.0, divided - (0 if on_cpu else parts["activations"]))
    if model.tower is not None:
        parts["images"] = image_bytes(config, model.tower, trains=trains)
    if on_cpu:
        parts["libraries"] = float(CPU_LIBRARY_BYTES[config.model.dtype])
    parts["reserve"] = float(RESERVE_BYTES)
    return Share(role="learner" if trains else "reference", parts=parts)


def activation_bytes(config: TrainConfig, model: ArchitectureConfig, *, trains: bool) -> float:
    """Return the bytes of a rank's activations, the chunk of the head's logits included.

    What autograd saves of every layer, or of one layer and the others' inputs.
    """
    learner, adapter = config.learner, config.model.adapter
    element, held = ELEMENT_BYTES[config.model.dtype], ELEMENT_BYTES[config.model.param_dtype]
    per_token = layer_bytes_per_token(model, element, held, frozen=adapter.trains)
    if adapter.trains:  # between A and B of seven linear layers
        per_token += element * 7 * adapter.rank
    if not config.cluster.learner.num_gpus:  # float32 scores, and probabilities of 16 bits beside
        per_token += SCORED_LENGTH * model.num_heads * (4 + (element if element < 4 else 0))
    tokens = learner.token_budget / learner.sequence_parallel_size
    one_layer = per_token * tokens
    if not trains:
        kept = one_layer
    elif learner.gradient_checkpointing:
        kept = 4.0 * model.num_layers * model.hidden_size * tokens + one_layer
    else:
        kept = one_layer * model.num_layers
    gpu = config.cluster.gpu_memory_gib
    gpu_bytes = None if gpu is None else int(gpu * GIB)
    return kept + head_bytes(model.vocab_size, gpu_bytes, learner.head_chunk, tokens=int(tokens))


def publication_bytes(config: TrainConfig, model: ArchitectureConfig) -> float:
    """Return the bytes of a publication's buffer above what every process has in reserve.

    Over vLLM's own transports a tensor is sent in one piece; the largest is the embedding.
    """
    if not config.cluster.learner.num_gpus:
        return 0.0
    widest = max(model.vocab_size, model.intermediate_size) * model.hidden_size
    return max(0.0, float(ELEMENT_BYTES[config.rollout.dtype] * widest - PUBLISHED_CHUNK_BYTES))


def critic_share(config: TrainConfig, model: ArchitectureConfig) -> Share:
    """Return the share of one rank of the critic.

    The critic is estimated as a learner with settings of its own and the policy's architecture. The
    critic's ranks never share a micro-batch, and all of its weights train.
    """
    names = [item.name for item in fields(config.learner) if hasattr(config.critic, item.name)]
    own = {name: getattr(config.critic, name) for name in names}
    learner = replace(config.learner, **own, sequence_parallel_size=1)
    whole = replace(config.model, adapter=AdapterConfig())
    alike = replace(config, learner=learner, model=whole)
    share = policy_share(alike, model, num_ranks=config.critic.num_ranks, trains=True)
    parts = {name: size for name, size in share.parts.items() if name != "publication"}
    return Share(role="critic", parts=parts)


def engine_share(config: TrainConfig, model: ArchitectureConfig) -> Share:
    """Return the share of an engine on one of its devices.

    A cache that takes what is left of the GPU is counted as one sequence of the greatest length.
    """
    rollout = config.rollout
    weights = ELEMENT_BYTES[rollout.dtype] * num_parameters(model) / rollout.tensor_parallel_size
    cache = kv_bytes_per_token(model, config) * rollout.max_model_len
    if rollout.kv_cache_gib is not None:
        cache = rollout.kv_cache_gib * GIB
    return Share(
        role="rollout",
        parts={"weights": weights, "KV cache": cache, "reserve": float(RESERVE_BYTES)},
    )


def share_of(config: TrainConfig, model: ArchitectureConfig, role: str) -> Share:
    """Return the share of one process of a role.

    Args:
        config: of the run.
        model: sizes of the policy.
        role: rollout, learner, reference or critic.
    """
    if role == "rollout":
        return engine_share(config, model)
    if role == "critic":
        return critic_share(config, model)
    if role not in ("learner", "reference"):
        raise ValueError(f"the memory of the role {role!r} is not known; give it none of a GPU")
    trains = role == "learner"
    return policy_share(config, model, num_ranks=config.learner.num_ranks, trains=trains)


def shares(
    config: TrainConfig, model: ArchitectureConfig, roles: Sequence[PlannedRole]
) -> list[Share]:
    """Return the share of one process of every role of the policy that owns a part of a GPU.

    What a reward model takes is not known here, and a judge has its GPUs for itself (`judges.py`).
    """
    others = ("reward", "judge")
    return [
        share_of(config, model, role.name)
        for role in roles
        if role.num_gpus and role.name not in others
    ]


def describe(config: TrainConfig, roles: Sequence[PlannedRole]) -> list[str]:
    """Describe each role with a GPU in a line; no line where the model's sizes are unknown."""
    model = architecture_of(config.model)
    return [] if model is None else [str(share) for share in shares(config, model, roles)]
