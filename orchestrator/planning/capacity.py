"""Whether the cluster that the configuration describes can hold the run: GPUs asked and had.

Pure arithmetic on the configuration, for the plan and the dry run; what a running Ray really has is
compared in `cluster.py`. Memory is `memory.py`'s.
"""

from __future__ import annotations

from algorithms.algorithm import Algorithm
from conf.schema import TrainConfig
from orchestrator.planning import memory
from orchestrator.planning.architecture import architecture_of
from orchestrator.telemetry.counting import counted
from workers.engines.model.heads import check_heads


def gpus_asked(
    config: TrainConfig, *, references: bool, critic: bool = False
) -> list[tuple[str, float]]:
    """The terms of the sum: what for, and how many GPUs."""
    rollout, cluster, ranks = config.rollout, config.cluster, config.learner.num_ranks
    devices = rollout.tensor_parallel_size
    terms = [
        (
            f"{counted(rollout.num_engines, 'engine')} x {counted(devices, 'device')} x "
            f"{cluster.rollout.num_gpus:g}",
            rollout.num_engines * devices * cluster.rollout.num_gpus,
        ),
        (
            f"{counted(ranks, 'learner rank')} x {cluster.learner.num_gpus:g}",
            ranks * cluster.learner.num_gpus,
        ),
    ]
    if references:
        terms.append(
            (
                f"{counted(ranks, 'reference rank')} x {cluster.reference.num_gpus:g}",
                ranks * cluster.reference.num_gpus,
            )
        )
    if critic and not cluster.critic.shared:
        critics = config.critic.num_ranks
        terms.append(
            (
                f"{counted(critics, 'critic rank')} x {cluster.critic.num_gpus:g}",
                critics * cluster.critic.num_gpus,
            )
        )
    return terms


def needs_reference(config: TrainConfig, algorithm: Algorithm) -> bool:
    """Whether the run has a reference role; beside an adapter the learner holds that policy."""
    scored = "ref_logprobs" in algorithm.required_columns and not config.model.adapter.trains
    return scored and config.trainer.learns


def needs_critic(config: TrainConfig, algorithm: Algorithm) -> bool:
    """Whether the run has a critic role."""
    return algorithm.needs_critic and config.trainer.learns


def transport(config: TrainConfig, *, one_node: bool) -> str:
    """How weights reach the engines: as named, or as the places of the processes allow.

    Args:
        config: of the run.
        one_node: whether learner and engines all stand on one node.
    """
    cluster, adapter = config.cluster, config.model.adapter
    if config.rollout.transport != "auto":
        return config.rollout.transport
    by_itself = adapter.trains and adapter.publish == "adapter"  # small, and on the host
    if by_itself or not (cluster.learner.num_gpus and cluster.rollout.num_gpus):
        return "shm" if one_node else "gloo"
    if cluster.colocated or cluster.num_nodes == cluster.gpus_per_node == 1:
        return "ipc"
    engine, rank = cluster.rollout.num_gpus, cluster.learner.num_gpus
    if engine + min(engine, rank) <= 1:  # Ray may put two on one GPU, which NCCL refuses
        return "shm" if one_node else "gloo"
    return "nccl"


def planned_transport(config: TrainConfig) -> str:
    """How weights will reach the engines, as far as that is known before anything has a place."""
    return transport(config, one_node=config.cluster.num_nodes == 1 and not joins_elsewhere(config))


def joins_elsewhere(config: TrainConfig) -> bool:
    """Whether engines may join by themselves, on nodes that are not the learner's."""
    return config.rollout.max_engines is not None and config.cluster.address is not None


def check(config: TrainConfig, algorithm: Algorithm) -> None:
    """Refuse more GPUs, wider engines or more memory than the described cluster has.

    Raises:
        ValueError: with the arithmetic and what to change.
    """
    cluster, references = config.cluster, needs_reference(config, algorithm)
    critic = needs_critic(config, algorithm)
    if cluster.gpus_per_node is not None:
        have = cluster.num_nodes * cluster.gpus_per_node
        terms = gpus_asked(config, references=references, critic=critic)
        asked = sum(gpus for _, gpus in terms)
        if asked > have + 1e-6:
            raise ValueError(
                f"cluster={cluster.name} has {counted(cluster.num_nodes, 'node')} x "
                f"{cluster.gpus_per_node} = {counted(have, 'GPU')}, the run asks for {asked:g}: "
                f"{' + '.join(text for text, _ in terms)}; "
                "lower rollout.num_engines or learner.num_ranks, or choose a larger cluster="
            )
        width = config.rollout.tensor_parallel_size
        if cluster.rollout.num_gpus and width > cluster.gpus_per_node:
            raise ValueError(
                f"rollout.tensor_parallel_size={width}: an engine stands on one node, and a node "
                f"of cluster={cluster.name} has {counted(cluster.gpus_per_node, 'GPU')}; lower it"
            )
    _check_context(config)
    model = architecture_of(config.model)
    if model is not None:
        check_heads(model.num_heads, model.num_kv_heads, config.learner.sequence_parallel_size)
    named = planned_transport(config)
    if named == "ipc" and (config.rollout.max_engines or 0) > config.rollout.num_engines:
        raise ValueError(
            f"rollout.max_engines={config.rollout.max_engines}: weights go by ipc, which reaches "
            f"engines on the learner's GPU only; choose another cluster= or rollout.transport"
        )
    if cluster.num_nodes > 1 and named in ("shm", "ipc"):
        raise ValueError(
            f"rollout.transport={named}: reaches engines of its own node only, and cluster="
            f"{cluster.name} has {cluster.num_nodes} nodes; choose auto, nccl, or gloo without GPUs"
        )
    memory.check(config, references=references, critic=critic)


def _check_context(config: TrainConfig) -> None:
    """Refuse sequences longer than the model's own context, where it is known."""
    model = architecture_of(config.model)
    longest = config.rollout.max_model_len
    if model is not None and longest > model.context:
        raise ValueError(
            f"rollout.max_model_len={longest}: exceeds the context of {config.model.name}, "
            f"{model.context} tokens; lower it"
        )


def describe(config: TrainConfig, algorithm: Algorithm) -> str:
    """GPUs asked and had, then what each role keeps on its GPU."""
    cluster, references = config.cluster, needs_reference(config, algorithm)
    critic = needs_critic(config, algorithm)
    asked = sum(gpus for _, gpus in gpus_asked(config, references=references, critic=critic))
    text = f"{cluster.name}, {counted(asked, 'GPU')}"
    if cluster.gpus_per_node is not None:
        text += f" of {counted(cluster.num_nodes, 'node')} x {cluster.gpus_per_node}"
    if cluster.gpu_memory_gib is not None:
        text += f", {cluster.gpu_memory_gib:g} GiB each"
    return "\n".join([text, *memory.describe(config, references=references, critic=critic)])
