"""Compare the GPUs of a run with those of the cluster that the configuration describes.

Pure arithmetic on the configuration, in the driver, for the plan and the dry run. The resources of
a running Ray are compared in `placement.py`, memory in `memory.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from algorithms.algorithm import Algorithm
from conf.schema import EnvironmentConfig, TrainConfig
from conf.tables.transports import AUTO, TRANSPORTS, Reach, Transport, any_of
from orchestrator.planning import engine_memory, fitting, host_memory, judges, memory
from orchestrator.planning.architecture import architecture_of
from orchestrator.planning.roles import Place, PlannedRole, roles_of
from orchestrator.telemetry.counting import counted
from workers.engines.model.heads import check_heads

ENGINES = {"rollout": "engine", "judge": "judge engine"}  # roles that may be several devices wide


def gpus_asked(roles: Sequence[PlannedRole]) -> list[tuple[str, float]]:
    """Return the terms of the sum: their text, and their GPUs.

    Example: `[("4 engines x 1 device x 1", 4.0), ("4 learner ranks x 0.75", 3.0)]`.
    """
    terms = []
    for role in roles:
        if role.bundles and (role.bundle_gpus or role.place is not Place.BESIDE_LEARNER):
            count = counted(role.num_processes, f"{role.name} rank")
            if role.name in ENGINES:
                engines = counted(role.num_processes, ENGINES[role.name])
                count = f"{engines} x {counted(role.devices, 'device')}"
            gpus = role.num_processes * role.devices * role.bundle_gpus
            terms.append((f"{count} x {role.bundle_gpus:g}", gpus))
        elif role.place is Place.ANYWHERE and role.num_gpus:
            count = counted(role.num_processes, f"{role.name} worker")
            terms.append((f"{count} x {role.num_gpus:g}", role.num_processes * role.num_gpus))
    return terms


def choose_transport(config: TrainConfig, *, one_node: bool) -> Transport:
    """Choose the transport of weights: the named one, or the first that the places allow.

    Args:
        config: of the run.
        one_node: True if learner and engines are all on one node.
    """
    named = config.rollout.named_transport
    if named is not None:
        return named
    return next(row for row in TRANSPORTS if _allowed(row, config, one_node=one_node))


def _allowed(row: Transport, config: TrainConfig, *, one_node: bool) -> bool:
    """Return True where the places of learner and engines, and what is published, allow a row."""
    cluster, adapter = config.cluster, config.model.adapter
    engine, rank = cluster.rollout.num_gpus, cluster.learner.num_gpus
    on_gpus = engine > 0 and rank > 0
    one_gpu = cluster.colocated or cluster.num_nodes == cluster.gpus_per_node == 1
    reached = {Reach.DEVICE: one_gpu, Reach.NODE: one_node, Reach.ANY: True}[row.reach]
    may_share = engine + min(engine, rank) <= 1  # Ray may put two on one GPU, which NCCL refuses
    by_itself = adapter.trains and adapter.publish == "adapter"  # small, and on the host
    return (
        reached
        and (on_gpus or not row.needs_cuda)
        and not (row.uses_nccl and may_share)
        and (row.carries_adapter or not by_itself)
    )


def planned_transport(config: TrainConfig) -> Transport:
    """Choose the transport as far as possible before any process has a place."""
    return choose_transport(
        config, one_node=config.cluster.num_nodes == 1 and not joins_elsewhere(config)
    )


def joins_elsewhere(config: TrainConfig) -> bool:
    """Return True if engines may join by themselves, on nodes other than the learner's."""
    return config.rollout.max_engines is not None and config.cluster.address is not None


def check(config: TrainConfig, algorithm: Algorithm) -> None:
    """Check that the described cluster can hold the run: GPUs, width of engines, memory.

    Raises:
        ValueError: with the arithmetic and the setting to change.
    """
    cluster, roles = config.cluster, roles_of(config, algorithm)
    if cluster.gpus_per_node is not None:
        have = cluster.num_nodes * cluster.gpus_per_node
        terms = gpus_asked(roles)
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
    chosen = planned_transport(config)
    joins = (config.rollout.max_engines or 0) > config.rollout.num_engines
    if joins and not chosen.may_grow:
        raise ValueError(
            f"rollout.max_engines={config.rollout.max_engines}: weights go by {chosen.name}, which "
            f"{chosen.limit}; choose another cluster= or rollout.transport"
        )
    if cluster.num_nodes > 1 and chosen.reach is not Reach.ANY:
        far = any_of(row for row in TRANSPORTS if row.reach is Reach.ANY)
        raise ValueError(
            f"rollout.transport={chosen.name}: {chosen.limit}, and cluster={cluster.name} has "
            f"{cluster.num_nodes} nodes; choose {AUTO}, {far}"
        )
    fitting.check(config, roles)


def _check_context(config: TrainConfig) -> None:
    """Raise ValueError where sequences exceed the model's own context, if that is known."""
    model = architecture_of(config.model)
    longest = config.rollout.max_model_len
    if model is not None and longest > model.context:
        raise ValueError(
            f"rollout.max_model_len={longest}: exceeds the context of {config.model.name}, "
            f"{model.context} tokens; lower it"
        )


def describe(config: TrainConfig, algorithm: Algorithm) -> str:
    """Describe the GPUs of run and cluster, then the memory of each role on its GPU."""
    cluster, roles = config.cluster, roles_of(config, algorithm)
    asked = sum(gpus for _, gpus in gpus_asked(roles))
    text = f"{cluster.name}, {counted(asked, 'GPU')}"
    if cluster.gpus_per_node is not None:
        text += f" of {counted(cluster.num_nodes, 'node')} x {cluster.gpus_per_node}"
    if cluster.gpu_memory_gib is not None:
        text += f", {cluster.gpu_memory_gib:g} GiB each"
    cache = engine_memory.describe_cache(config, roles)
    host = host_memory.describe_host(config)
    judge = judges.describe_memory(config)
    return "\n".join([text, *memory.describe(config, roles), *judge, *cache, *host])


def describe_turns(config: TrainConfig) -> list[str]:
    """Describe the budgets of a rollout's turns in every environment, a line each."""
    all_tokens = config.rollout.sampling.max_new_tokens
    return [
        f"{key}: {_turns(each, all_tokens)}" if key else _turns(each, all_tokens)
        for key, each in config.environments.items()
    ]


def _turns(environment: EnvironmentConfig, all_tokens: int) -> str:
    turns = counted(environment.max_turns, "turn")
    observed = "what is observed included"
    if environment.shows_images:
        observed += ", images with all of their tokens"
    whole = f"{counted(all_tokens, 'token')} behind the prompt, {observed}"
    if environment.isolation == "process":
        whole += "; each in a process of its own"
    if environment.max_turn_tokens is None:
        return f"up to {turns}, together {whole}"
    sampled = environment.max_turns * environment.max_turn_tokens
    return (
        f"up to {turns} x {counted(environment.max_turn_tokens, 'token')} = {sampled} sampled, of "
        f"{whole}"
    )
