"""Find the largest bubble of a run and a setting that makes it smaller: one sentence.

Pure functions of the steps' `bubble/...` metrics (`accounting.py`) and the configuration, run by
the driver; nothing is measured here. A bubble is time in which an engine or a rank has nothing to
do, or in which all roles wait for something that is neither sampling nor training.

A learner that waits for groups waits for all that the engines do meanwhile. So the time in which
the engines in turn wait for rewards or environments is counted as the engines', and the driver's
own work as the driver's, before the bubbles are compared; the sentence gives the plain share.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from conf.schema import TrainConfig

MIN_SHARE = 0.10  # of a step; for a smaller bubble no change is proposed
SATURATED = 0.10  # idle for less than that is busy

Shares = Mapping[str, Mapping[str, float]]  # role -> activity -> share


@dataclass(frozen=True, kw_only=True)
class Bubble:
    """A share of the steps' time in which a role waits.

    Attributes:
        subject: role and state, such as "learner idle".
        share: of the steps' time.
        weight: number by which bubbles are compared: the share without the time that other bubbles
            explain.
        remedy: returns the proposed change; called only for the largest bubble.
    """

    subject: str
    share: float
    weight: float
    remedy: Callable[[], str]


def mean_shares(steps: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return the shares of the steps' time together, over the usual steps.

    Unusual are the first step and those that waited for the restart of an engine; they count only
    if there are no others.

    Args:
        steps: metrics of each, `time/step_s` among them. A role that did not answer in a step has
            no share in its mean.
    """
    lost = "rollout/engines_lost"
    usual = [now for before, now in pairwise(steps) if now.get(lost) == before.get(lost)] or steps
    summed: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for step in usual:
        for name, value in step.items():
            if name.startswith("bubble/"):
                _, role, activity = name.removesuffix("_frac").split("/")
                summed[role][activity] += value * step["time/step_s"]
    return {
        role: {activity: value / sum(shares.values()) for activity, value in shares.items()}
        for role, shares in summed.items()
    }


def describe(shares: Shares) -> list[str]:
    """Return one line per role: its activities, the longest first."""
    lines = []
    for role, activities in shares.items():
        ranked = sorted(activities.items(), key=lambda item: -item[1])
        shown = (
            f"{name.replace('_', ' ')} {_percent(share)}"
            for name, share in ranked
            if share >= 0.005
        )
        lines.append(f"{role:<10}{'  '.join(shown)}")
    return lines


def diagnose(shares: Shares, config: TrainConfig) -> str:
    """Name the largest bubble, its share of the steps' time, and a remedy, in one sentence."""
    if not shares:
        return "no step was measured"
    if "rollout" not in shares:
        found = [_replayed(shares)]
    elif "learner" not in shares:
        found = [_only_sampled(shares, config)]
    elif config.cluster.colocated:
        found = _colocated(shares, config)
    else:
        found = _separate(shares, config)
    found += _common(shares, config)
    largest = max(found, key=lambda bubble: bubble.weight)
    if largest.weight < MIN_SHARE:
        return (
            f"nothing to gain from another schedule or placement: the largest bubble is "
            f"{largest.subject} {_percent(largest.share)}"
        )
    return f"{largest.subject} {_percent(largest.share)}: {largest.remedy()}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _of(shares: Shares, role: str, *activities: str) -> float:
    return sum(shares.get(role, {}).get(activity, 0.0) for activity in activities)


def _common(shares: Shares, config: TrainConfig) -> list[Bubble]:
    """Return the bubbles that every schedule and every placement can have."""
    reward = config.reward
    rewards = _of(shares, "rollout", "wait_for_reward")
    environment = _of(shares, "rollout", "environment")
    publish, drive = _of(shares, "driver", "publish"), _of(shares, "driver", "drive")
    fewer = (
        f"raise trainer.prompts_per_step (now {config.trainer.prompts_per_step}): "
        "fewer, longer steps need less of it"
    )
    return [
        Bubble(
            subject="rollout engines waiting for rewards",
            share=rewards,
            weight=rewards,
            remedy=lambda: (
                f"raise reward.num_processes (now {reward.num_processes}) or reward.num_workers "
                f"(now {reward.num_workers})"
            ),
        ),
        Bubble(
            subject="rollout engines waiting for the environment",
            share=environment,
            weight=environment,
            remedy=lambda: (
                "make its calls faster"
                if config.schedule.max_staleness
                else "make its calls faster, or let schedule=async sample other groups meanwhile"
            ),
        ),
        Bubble(subject="publication", share=publish, weight=publish, remedy=lambda: fewer),
        Bubble(subject="the driver's own work", share=drive, weight=drive, remedy=lambda: fewer),
    ]


def _replayed(shares: Shares) -> Bubble:
    """Return the bubble of a replay: nothing is sampled, the learner waits for the disk."""
    reading = _of(shares, "driver", "generate")
    return Bubble(
        subject="learner waiting for the recording",
        share=reading,
        weight=reading,
        remedy=lambda: "put rollout.replay.folder on a faster disk",
    )


def _only_sampled(shares: Shares, config: TrainConfig) -> Bubble:
    """Return the bubble of a run that does not train: engines idle, too few groups in flight."""
    idle, ahead = _of(shares, "rollout", "idle"), config.schedule.max_staleness
    return Bubble(
        subject="rollout engines idle",
        share=idle,
        weight=idle - _of(shares, "driver", "drive"),
        remedy=lambda: (
            f"raise schedule.max_staleness (now {ahead}): more groups are in flight"
            if ahead
            else "schedule=one_step_off keeps the groups of the next batch in flight"
        ),
    )


def _separate(shares: Shares, config: TrainConfig) -> list[Bubble]:
    """Return the bubbles of engines and learner with devices of their own."""
    drive = _of(shares, "driver", "drive")
    elsewhere = _of(shares, "rollout", "wait_for_reward", "environment") + drive
    learner, engines = _of(shares, "learner", "idle"), _of(shares, "rollout", "idle")
    found = [
        Bubble(
            subject="learner idle",
            share=learner,
            weight=learner - elsewhere,
            remedy=lambda: _learner_remedy(shares, config),
        ),
        Bubble(
            subject="rollout engines idle",
            share=engines,
            weight=engines - drive,
            remedy=lambda: _engine_remedy(shares, config),
        ),
    ]
    if "critic" in shares and not config.cluster.critic.shared:
        critic = _of(shares, "critic", "idle")
        # It works only while the learner does: the rest of its idleness is the learner's.
        own = critic - learner
        remedy = "cluster.critic.placement=shared puts it on the learner's devices"
        found.append(Bubble(subject="critic idle", share=critic, weight=own, remedy=lambda: remedy))
    return found


def _overlap(shares: Shares) -> float:
    """Return the shorter of sampling and learning: the time that an overlap would save."""
    sampling = _of(shares, "driver", "generate")
    return min(sampling, _of(shares, "driver", "score", "learn", "follow"))


def _more_engines(config: TrainConfig) -> str:
    text = f"add rollout engines (rollout.num_engines, now {config.rollout.num_engines})"
    return text if config.cluster.rollout.num_gpus else f"{text}, if cores are free"


def _more_ranks(config: TrainConfig) -> str:
    text = f"add learner ranks (learner.num_ranks, now {config.learner.num_ranks})"
    return text if config.cluster.learner.num_gpus else f"{text}, if cores are free"


def _learner_remedy(shares: Shares, config: TrainConfig) -> str:
    schedule, more = config.schedule, _more_engines(config)
    if schedule.max_staleness == 0:
        if _overlap(shares) < MIN_SHARE:
            return more
        return f"schedule=one_step_off lets the engines sample meanwhile, or {more}"
    if _of(shares, "rollout", "idle") < SATURATED:
        return f"the engines never are: {more}"
    if schedule.order == "begun":
        return "schedule=async lets it train what is finished, whatever was begun before"
    return f"raise schedule.max_staleness (now {schedule.max_staleness}): the engines idle too"


def _engine_remedy(shares: Shares, config: TrainConfig) -> str:
    schedule, ranks = config.schedule, _more_ranks(config)
    sampling = _of(shares, "driver", "generate")
    tail = sampling - _of(shares, "rollout", "generate", "wait_for_reward", "environment")
    if schedule.max_staleness == 0:
        if tail >= MIN_SHARE and tail >= _of(shares, "rollout", "idle") / 2:
            return "schedule=async lets them go on while the slowest responses are finished"
        if _overlap(shares) < MIN_SHARE:
            return ranks
        return f"schedule=one_step_off lets them sample while the learner trains, or {ranks}"
    if _of(shares, "learner", "idle") < SATURATED:
        fewer = ", or take fewer engines" if config.rollout.num_engines > 1 else ""
        return f"the learner never is: {ranks}{fewer}"
    if schedule.order == "begun":
        return "schedule=async lets the learner train what is finished, so that new groups begin"
    return f"raise schedule.max_staleness (now {schedule.max_staleness})"


def _colocated(shares: Shares, config: TrainConfig) -> list[Bubble]:
    """Return the bubbles of shared devices, on which only engines or learner can be busy."""
    switch = _of(shares, "rollout", "switch") + _of(shares, "learner", "switch")
    waiting = _of(shares, "rollout", "wait_for_reward", "environment")
    engines = 1.0 - _of(shares, "rollout", "idle") - waiting
    learner = 1.0 - _of(shares, "learner", "idle")
    # A publication keeps both busy at the same time.
    both = min(_of(shares, role, "publish", "attest") for role in ("rollout", "learner"))
    idle = max(0.0, 1.0 - engines - learner + both)
    return [
        Bubble(
            subject="shared devices idle",
            share=idle,
            weight=idle - waiting - _of(shares, "driver", "drive"),
            remedy=lambda: (
                "the slowest responses hold up all of them; a cluster with engines of their own "
                "and schedule=async does not wait, and a lower rollout.sampling.max_new_tokens "
                f"(now {config.rollout.sampling.max_new_tokens}) shortens the wait"
            ),
        ),
        Bubble(
            subject="taking turns on the shared devices",
            share=switch,
            weight=switch,
            remedy=lambda: (
                f"raise trainer.prompts_per_step (now {config.trainer.prompts_per_step}): "
                "fewer, longer turns"
            ),
        ),
    ]
