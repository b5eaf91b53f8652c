"""List settings that a run accepts and that may surprise, each with the key to change.

Arithmetic on configuration and algorithm, in the driver, for the plan. Refuses nothing: what cannot
be right is refused in `plan.py`, or by the part of the algorithm itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from algorithms.algorithm import Algorithm
from algorithms.parts import TokenPart
from algorithms.policy_losses.rpg import RegularizedPolicyGradient
from algorithms.rewards import OverlongPenalty
from conf.schema import TrainConfig

OLD_COLUMNS = frozenset({"old_logprobs", "old_entropy"})  # of the policy that starts a step
SMALL_ADAPTER_LR = 5e-6  # below: a rate of full training, at which an adapter hardly moves


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """Remark on one setting.

    Example: Note(key="learner.optimizer.lr", text="1e-06 hardly moves a LoRA adapter; ...")

    Attributes:
        key: the setting to change.
        text: the effect of the present value, and what to set.
    """

    key: str
    text: str


def notes_of(config: TrainConfig, algorithm: Algorithm) -> tuple[Note, ...]:
    """Return the notes on a run with a learner."""
    return (
        *_single_update(config, algorithm),
        *_several_updates(config, algorithm),
        *_sampling(config, algorithm),
        *_turns(config),
        *_staleness(config, algorithm),
        *_adapter(config),
        *_divergence(algorithm),
        *_overlong(config, algorithm),
    )


def _single_update(config: TrainConfig, algorithm: Algorithm) -> Iterator[Note]:
    """Note parts that compare with pi_old in a run whose every step has one update."""
    if config.trainer.num_updates > 1:
        return
    parts: dict[str, TokenPart] = {f"gates.{key}": part for key, part in algorithm.gates.items()}
    parts |= {f"regularizers.{key}": part for key, part in algorithm.regularizers.items()}
    parts = {"policy_loss": algorithm.policy_loss, **parts}
    # In bypass mode the sampler is pi_old for the log-probs, which differ then; entropies do not.
    known = OLD_COLUMNS - {"old_logprobs"} if algorithm.bypass else OLD_COLUMNS
    idle = [f"{key} ({type(part).__name__})" for key, part in parts.items() if part.columns & known]
    if idle:
        yield Note(
            key="trainer.updates_per_step",
            text=f"1 update a step starts at pi_old, so every ratio to pi_old is 1, and "
            f"{', '.join(idle)} can clip, gate or weigh nothing; raise it, or epochs_per_step",
        )


def _several_updates(config: TrainConfig, algorithm: Algorithm) -> Iterator[Note]:
    """Note a loss without a ratio in a run whose steps have several updates."""
    if config.trainer.num_updates == 1 or "old_logprobs" in algorithm.policy_loss.columns:
        return
    loss = type(algorithm.policy_loss).__name__
    yield Note(
        key="trainer.updates_per_step",
        text=f"{config.trainer.num_updates} updates a step, and {loss} has neither ratio nor "
        "clip: all but the first train tokens of an older policy as their own; set 1 update and 1 "
        "epoch, or a loss with a ratio (Reinforce: algorithm.policy_loss.importance_cap)",
    )


def _sampling(config: TrainConfig, algorithm: Algorithm) -> Iterator[Note]:
    """Note sampling from a part of the vocabulary beside ratios over all of it."""
    sampling = config.rollout.sampling
    cut = {"top_p": sampling.top_p < 1, "top_k": sampling.top_k > 0}
    if not any(cut.values()) or config.rollout.replay.replays:
        return
    if algorithm.correction is not None or algorithm.bypass:
        effect = "the sampler's log-probs are those of the cut vocabulary, the learner's of all of "
        effect += "it: every ratio pi_old / mu of the correction is too small"
    elif "old_logprobs" in algorithm.policy_loss.columns:
        effect = "responses are drawn from the cut vocabulary, and ratios are over all of it"
    else:
        return
    for name in (name for name, is_cut in cut.items() if is_cut):
        full = "1.0" if name == "top_p" else "0"
        yield Note(
            key=f"rollout.sampling.{name}",
            text=f"{getattr(sampling, name)} in training: {effect}; set {full}",
        )


def _turns(config: TrainConfig) -> Iterator[Note]:
    """Note turns for which the tokens of a rollout have no room."""
    all_tokens = config.rollout.sampling.max_new_tokens
    for name, environment in config.environments.items():
        if environment.max_turns == 1 or config.rollout.replay.replays:
            continue
        key, each = f"{name}.environment" if name else "environment", environment.max_turn_tokens
        if each is None:
            yield Note(
                key=f"{key}.max_turn_tokens",
                text=f"null, so one turn may use all {all_tokens} tokens of a rollout and leave "
                f"none to the other {environment.max_turns - 1}; set about "
                f"{max(1, all_tokens // (2 * environment.max_turns))}",
            )
        elif environment.max_turns * each >= all_tokens:
            yield Note(
                key="rollout.sampling.max_new_tokens",
                text=f"{all_tokens} is for all turns and observations of a rollout, and "
                f"{environment.max_turns} turns x {each} tokens fill it: the last ones are cut; "
                f"raise it, or lower {key}.max_turns or {key}.max_turn_tokens",
            )


def _staleness(config: TrainConfig, algorithm: Algorithm) -> Iterator[Note]:
    """Note a schedule that runs ahead beside an algorithm that corrects nothing."""
    ahead = config.schedule.max_staleness
    if ahead and algorithm.correction is None and not algorithm.bypass:
        yield Note(
            key="algorithm/correction",
            text=f"none, and tokens may be of weights up to {ahead} versions older, which train "
            "as if pi_old had sampled them; add algorithm/correction=tis",
        )


def _adapter(config: TrainConfig) -> Iterator[Note]:
    """Note an adapter that trains at a rate of full training."""
    optimizer = config.learner.optimizer
    small = optimizer.name == "adamw" and optimizer.lr < SMALL_ADAPTER_LR
    if config.model.adapter.trains and small:
        yield Note(
            key="learner.optimizer.lr",
            text=f"{optimizer.lr:g} hardly moves an adapter, which takes about ten times the rate "
            "of full training; set 1e-5 to 1e-4",
        )


def _divergence(algorithm: Algorithm) -> Iterator[Note]:
    """Note a coefficient of RPG that Algorithm 1 of the paper drops (2505.17508, appendix G.2)."""
    loss = algorithm.policy_loss
    if not isinstance(loss, RegularizedPolicyGradient) or not loss.beta:
        return
    if loss.clip == "dual_joint" and loss.divergence in ("fkl", "ufkl"):
        yield Note(
            key="algorithm.policy_loss.beta",
            text=f"{loss.beta:g} has no effect: clip=dual_joint has a KL part for urkl and rkl, "
            f"and none for {loss.divergence}; set 0, or choose clip=dual or divergence=urkl",
        )


def _overlong(config: TrainConfig, algorithm: Algorithm) -> Iterator[Note]:
    """Note penalties on lengths that no response reaches."""
    budget = config.rollout.sampling.max_new_tokens
    for key, part in algorithm.reward_shaping.items():
        if not isinstance(part, OverlongPenalty):
            continue
        begins = part.max_length - part.buffer
        if part.ramps and budget > begins:
            continue
        ramp = f"begins after {begins}" if part.ramps else f"has no room in {part.max_length}"
        yield Note(
            key=f"algorithm.reward_shaping.{key}.buffer",
            text=f"{part.buffer}: the penalty never applies: responses have at most {budget} "
            f"tokens, its ramp {ramp}; set a buffer below max_length, and max_length to {budget}",
        )
