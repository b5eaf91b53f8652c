"""Check a run before its launch, and describe its batch arithmetic and placement as text.

Runs in the driver, and for a job also on the user's machine. Starts nothing.
"""

from __future__ import annotations

import math

from algorithms.algorithm import Algorithm
from algorithms.conformance.rehearsal import rehearse
from conf import precision
from conf.schema import AdapterConfig, DataConfig, EnvironmentConfig, RoleConfig, TrainConfig
from orchestrator.planning import capacity, judges, shared_prefix
from orchestrator.planning.notes import notes_of
from orchestrator.planning.roles import roles_of
from orchestrator.planning.settings import check_settings
from orchestrator.telemetry.counting import counted


def check_launch(config: TrainConfig, algorithm: Algorithm) -> None:
    """Check a run that is to be launched: as `check` does, and the settings of its processes.

    A rehearsal, which starts no process, may be shorter than a warm-up.

    Raises:
        ValueError: the message names the values and the remedy.
    """
    check(config, algorithm)
    check_settings(config, algorithm, transport=capacity.planned_transport(config).name)


def check(config: TrainConfig, algorithm: Algorithm) -> None:
    """Check that configuration and algorithm agree.

    Raises:
        ValueError: they disagree; the message names the values and the remedy.
    """
    judges.check(config)
    if not config.trainer.learns:
        capacity.check(config, algorithm)
        return
    if algorithm.needs_groups and config.rollout.samples_per_prompt < 2:
        raise ValueError(
            f"algorithm={algorithm.name} compares siblings of one prompt, so "
            f"rollout.samples_per_prompt={config.rollout.samples_per_prompt} would train on "
            "nothing; raise it to 2 or more, or choose another algorithm/advantage"
        )
    if config.schedule.stale == "train" and algorithm.correction is None and not algorithm.bypass:
        raise ValueError(
            f"schedule.stale=train with algorithm={algorithm.name}, which corrects nothing for "
            "tokens of older weights; add algorithm/correction=tis, or set schedule.stale=drop"
        )
    if config.rollout.early_stop_samples and not algorithm.settles_early:
        raise ValueError(
            f"rollout.early_stop_samples={config.rollout.early_stop_samples} with algorithm="
            f"{algorithm.name}, none of whose filters decides on a group before all its samples "
            "are scored; add algorithm.filters (DynamicSampling, as in algorithm=dapo), or set 0"
        )
    steered = [path for path in algorithm.coefficients if path.startswith("filters.")]
    if config.rollout.early_stop_samples and steered:
        raise ValueError(
            f"rollout.early_stop_samples={config.rollout.early_stop_samples} with a controller of "
            f"{steered[0]}: the engines stop samples by the value that the run began with; set 0, "
            "or remove the controller"
        )
    produced = PRODUCED | ({"values"} if algorithm.needs_critic else frozenset())
    missing = algorithm.required_columns - produced
    if missing:
        remedy = "choose an algorithm without it"
        if "values" in missing:
            remedy = "values are a critic's: start from algorithm=ppo, or set algorithm.value_loss"
        raise ValueError(
            f"algorithm={algorithm.name} reads {', '.join(sorted(missing))}, which no role of this "
            f"configuration produces; {remedy}"
        )
    if config.cluster.colocated and algorithm.needs_critic:
        raise ValueError(
            f"cluster={config.cluster.name} has turns for engines and learner, and none for the "
            f"critic of algorithm={algorithm.name}; choose an algorithm without one, or a cluster= "
            "with cluster.colocated=false"
        )
    _check_critic(config, algorithm)
    _check_adapter(config, algorithm)
    _check_reward_parts(config, algorithm)
    shared_prefix.planned(config, algorithm)
    rehearse(algorithm)
    capacity.check(config, algorithm)


def _check_critic(config: TrainConfig, algorithm: Algorithm) -> None:
    """Raise ValueError for a critic whose values nothing reads, or settings without a critic."""
    if algorithm.needs_critic and "values" not in algorithm.credit_columns:
        raise ValueError(
            f"algorithm={algorithm.name} trains a critic ({algorithm.value_loss!r}) whose values "
            f"{type(algorithm.advantage).__name__} does not read; choose algorithm/advantage=gae "
            "or set algorithm.value_loss=null"
        )
    if config.critic.warmup_steps and not algorithm.needs_critic:
        raise ValueError(
            f"critic.warmup_steps={config.critic.warmup_steps}: algorithm={algorithm.name} has no "
            "critic to warm up; set it to 0 or choose algorithm=ppo"
        )


WEIGHTED = "workers.reward.scorers.weighted.Weighted"  # its scorers' names are its parts
SINGLE_TURN = "workers.rollout.environments.single_turn.SingleTurn"
#: Columns that some role of this system can produce; `values` only where the algorithm has a
#: critic.
PRODUCED = frozenset(
    {
        "old_logprobs",
        "old_entropy",
        "entropy",
        "ref_logprobs",
        "epoch_logprobs",
        "rollout_logprobs",
        "rewards",
        "staleness",
        "truncated",
        "turn_numbers",
        "group_ids",
    }
)


def _check_adapter(config: TrainConfig, algorithm: Algorithm) -> None:
    rule = algorithm.reference
    if config.model.adapter.trains and not (rule.frozen or rule.old_policy):
        raise ValueError(
            f"model/adapter={config.model.adapter.name} scores the reference by switching the "
            f"adapter off, so algorithm.reference={rule!r} has no weights to move; choose "
            "algorithm/reference=frozen, or model/adapter=none"
        )


def _check_reward_parts(config: TrainConfig, algorithm: Algorithm) -> None:
    """Raise ValueError where the algorithm reads a part that a weighted sum can't have.

    The sum's parts are its scorers' names, and NAME/PART. Other rewards state no parts: they are
    tried before anything starts (`trial.py`).
    """
    scorer = config.reward.scorer
    own = [source.environment or config.environment for source in config.data.sources]
    alone = any(map(scored_alone, own or [config.environment]))
    if scorer["_target_"] != WEIGHTED or not alone or config.rollout.replay.folder:
        return
    for reader, names in algorithm.part_readers.items():
        for name in names:
            if name.split("/")[0] not in scorer["scorers"]:
                raise ValueError(
                    f"{reader} reads the reward's part {name!r}; the parts of reward=weighted are "
                    f"its scorers, {', '.join(scorer['scorers'])}, and their own as SCORER/PART: "
                    "name one of them, or add a scorer to reward.scorer.scorers and weights"
                )


def scored_alone(environment: EnvironmentConfig) -> bool:
    """Return True where the scorer gives every reward, and the environment none."""
    target: str = environment.player["_target_"]
    return target == SINGLE_TURN


def _adapter(adapter: AdapterConfig) -> str:
    targets = adapter.target_modules
    where = targets if isinstance(targets, str) else ", ".join(targets)
    how = "merged" if adapter.publish == "merged" else "by itself"
    return (
        f"{adapter.name}, rank {adapter.rank}, alpha {adapter.alpha:g}, on {where}; published {how}"
    )


def describe(config: TrainConfig, algorithm: Algorithm) -> str:
    """Describe the run in about a dozen lines."""
    trainer, rollout, schedule = config.trainer, config.rollout, config.schedule
    sequences = config.sequences_per_step
    rows = [
        ("run", f"{config.run_name}, {counted(trainer.total_steps, 'step')}, seed {config.seed}"),
        *(_algorithm_rows(algorithm) if trainer.learns else []),
        ("roles", ", ".join(role.title for role in roles_of(config, algorithm))),
        ("model", config.model.path or f"{config.model.name} (built on first use)"),
        ("data", _describe_data(config.data)),
        *_images(config),
        (
            "step",
            f"{counted(trainer.prompts_per_step, 'prompt')} x "
            f"{counted(rollout.samples_per_prompt, 'sample')} = {counted(sequences, 'sequence')}, "
            f"at most {sequences * config.longest} tokens",
        ),
        ("rollout", _rollout(config)),
        *_turns(config),
        *(("judge", line) for line in judges.describe(config)),
        *(_learner_rows(config, algorithm) if trainer.learns else []),
        (
            "schedule",
            f"{schedule.name}, max_staleness {schedule.max_staleness}, trained in the order "
            f"{schedule.order}; {schedule.stale} what is staler{_oversample(config)}",
        ),
        ("cluster", capacity.describe(config, algorithm).replace("\n", f"\n{'':>12}")),
    ]
    if rollout.replay.replays:
        rows = [row for row in rows if row[0] != "schedule"]
    profile = _profile(config)
    rows += [("profile", profile)] if profile else []
    notes = notes_of(config, algorithm) if trainer.learns else ()
    if notes:
        rows.append(("notes", f"{counted(len(notes), 'setting')} to look at: key, effect, remedy"))
        rows += [("", f"{note.key}  {note.text}") for note in notes]
    return "\n".join(f"{name:>10}  {text}" for name, text in rows)


def _describe_data(data: DataConfig) -> str:
    """Return the files of the training prompts; of several sources names, weights and files."""
    if data.sources:
        weights = ["" if each.weight is None else f" x {each.weight:g}" for each in data.sources]
        pairs = zip(data.sources, weights, strict=True)
        return ", ".join(f"{each.name}{weight} ({each.path})" for each, weight in pairs)
    return data.train_path or f"{data.name} (generated on first use)"


def _algorithm_rows(algorithm: Algorithm) -> list[tuple[str, str]]:
    columns = ", ".join(sorted(algorithm.required_columns))
    return [
        ("algorithm", repr(algorithm)),
        ("columns", columns or "none beyond rewards and log-probs"),
    ]


def _images(config: TrainConfig) -> list[tuple[str, str]]:
    """Return the row about images, where prompts or environments show them."""
    data = config.data
    columns = dict.fromkeys(data.image_columns.values())
    shown = [f"column {', '.join(columns)}"] if columns else []
    if any(each.shows_images for each in config.environments.values()):
        shown.append("those that the environment sends")
    if not shown:
        return []
    limit, most = data.images.max_pixels, data.images.max_per_prompt
    size = "as large as the model takes" if limit is None else f"scaled to {limit} pixels at most"
    return [("images", f"{' and '.join(shown)}, {most} a prompt at most, {size}")]


def _rollout(config: TrainConfig) -> str:
    rollout = config.rollout
    if rollout.replay.replays:
        return f"no engine: the record of {rollout.replay.folder}"
    weights = "the model's weights"
    if config.trainer.learns:
        weights = f"weights by {capacity.planned_transport(config).name}"
    return (
        f"{counted(rollout.num_engines, 'engine')} x "
        f"{counted(rollout.tensor_parallel_size, 'device')}, "
        f"{_arithmetic(rollout.dtype, config.cluster.rollout)}, {weights}"
    )


def _turns(config: TrainConfig) -> list[tuple[str, str]]:
    """Return the rows on turns; none where all rollouts have one turn, or nothing is sampled."""
    most = max(each.max_turns for each in config.environments.values())
    if most == 1 or config.rollout.replay.replays:
        return []
    return [("turns", line) for line in capacity.describe_turns(config)]


def _learner_rows(config: TrainConfig, algorithm: Algorithm) -> list[tuple[str, str]]:
    """Return the rows of the learner: updates, ranks, adapter and critic."""
    trainer, learner = config.trainer, config.learner
    sequences, updates = config.sequences_per_step, trainer.updates_per_step
    return [
        (
            "updates",
            f"{sequences} / {updates} = {counted(config.sequences_per_update, 'sequence')} per "
            f"optimizer update, {_share_of_rows(config)}, packed to {learner.token_budget} tokens; "
            f"{trainer.epochs_per_step} x {updates} = {counted(trainer.num_updates, 'update')} "
            "a step",
        ),
        (
            "learner",
            f"{counted(learner.num_ranks, 'rank')}, ZeRO-{learner.zero_stage}, "
            f"{_arithmetic(config.model.dtype, config.cluster.learner)}{_rounded(config)}, "
            f"{learner.optimizer.name} lr {learner.optimizer.lr:g}",
        ),
        ("prefixes", shared_prefix.describe(shared_prefix.planned(config, algorithm))),
        *([("adapter", _adapter(config.model.adapter))] if config.model.adapter.trains else []),
        *([("critic", _critic(config))] if algorithm.needs_critic else []),
    ]


def _arithmetic(dtype: str, role: RoleConfig) -> str:
    """Return a type, with the reason for or against it on this machine."""
    why = precision.reason(dtype, role.num_gpus)
    return f"{dtype} ({why})" if why else dtype


def _rounded(config: TrainConfig) -> str:
    kept = config.model.param_dtype
    return "" if kept == "float32" else f" weights of {kept} under float32 master weights"


def _oversample(config: TrainConfig) -> str:
    schedule = config.schedule
    if schedule.oversample == 1:
        return ""
    begun = math.ceil(schedule.oversample * config.trainer.prompts_per_step)
    verb = {"keep": "keep", "again": "begin again", "drop": "drop"}[schedule.leftover]
    begun_for = f"{counted(begun, 'group')} begun for {config.trainer.prompts_per_step}"
    return f"; {begun_for}, {verb} the slowest"


def _share_of_rows(config: TrainConfig) -> str:
    """Describe the number of rows of an update per rank, or per group of ranks that share rows."""
    learner = config.learner
    owners, size = learner.num_data_parallel, learner.sequence_parallel_size
    owner = "rank" if size == 1 else f"group of {size} ranks"
    rows = f"{config.sequences_per_update / owners:g}"
    if owners == 1:
        return f"{rows} on one {owner}{' (sequence parallel)' if size > 1 else ''}"
    if size == 1:
        return f"about {rows} on each of {owners} ranks"
    return f"about {rows} on each of {owners} groups of {size} ranks (sequence parallel)"


def _critic(config: TrainConfig) -> str:
    critic = config.critic
    text = (
        f"{counted(critic.num_ranks, 'rank')}, ZeRO-{critic.zero_stage}, {config.model.dtype} "
        f"under a float32 head, {critic.optimizer.name} lr {critic.optimizer.lr:g}, "
        f"{counted(critic.num_updates, 'update')} a step"
    )
    if critic.warmup_steps:
        text += f"; alone in the first {counted(critic.warmup_steps, 'step')}"
    return text if critic.model is None else f"{text}; starts from {critic.model}"


def _profile(config: TrainConfig) -> str | None:
    """Describe the profiled steps in one line; None where no step is profiled."""
    settings = config.learner.profile
    if not settings.steps:
        return None
    text = f"updates of steps {settings.steps} on ranks {settings.ranks}"
    if settings.memory and not config.cluster.learner.num_gpus:
        return f"{text}; allocations are in the trace (no CUDA device, so no memory snapshot)"
    return f"{text}, with memory snapshots" if settings.memory else text
