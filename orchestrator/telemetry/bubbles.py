"""Which bubble of a run is the largest, and what would make it smaller: one sentence.

Pure functions of the steps' `bubble/...` metrics (`accounting.py`) and the configuration. A bubble
is time in which an engine or a rank has nothing to do, or everybody waits for something that is
neither sampling nor training.

A learner that waits for groups waits for whatever the engines do meanwhile. So the time in which
the engines in turn wait for rewards or environments is counted as theirs, and the driver's own work
as the driver's, before the bubbles are compared; what is told is the plain share.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from conf.schema import TrainConfig

WORTH = 0.10  # a smaller share of a step is not worth a change
SATURATED = 0.10  # idle for less than that is busy

Shares = Mapping[str, Mapping[str, float]]  # role -> activity -> share


@dataclass(frozen=True, kw_only=True)
class Bubble:
    """Something that waits.

    Attributes:
        who: and what it does, such as "learner idle".
        share: of the steps' time.
        weight: what it is compared by: the share without what other bubbles explain of it.
        remedy: asked for only if this is the largest.
    """

    who: str
    share: float
    weight: float
    remedy: Callable[[], str]


def mean_shares(steps: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Shares of the steps' time together, without what is not the rule, if anything else is left.

    That is the first step, and those that waited for an engine to be restarted.

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
    """One line per role: its activities, the longest first."""
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
    """The largest bubble, its share of the steps' time, and a remedy, in one sentence."""
    if not shares:
        return "no step was measured"
    if "rollout" not in shares:
        found = [_replayed(shares)]
    elif "learner" not in shares:
        found = [_only_sampled(shares, config)]
    elif config.cluster.colocated:
        found = _colocated(shares, config)
    else:
        found = _apart(shares, config)
    found += _common(shares, config)
    largest = max(found, key=lambda bubble: bubble.weight)
    if largest.weight < WORTH:
        return (
            f"nothing to gain from another schedule or placement: the largest bubble is "
            f"{largest.who} {_percent(largest.share)}"
        )
    return f"{largest.who} {_percent(largest.share)}: {largest.remedy()}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _of(shares: Shares, role: str, *activities: str) -> float:
    return sum(shares.get(role, {}).get(activity, 0.0) for activity in activities)


def _common(shares: Shares, config: TrainConfig) -> list[Bubble]:
    """What makes everybody wait, whatever the schedule and the placement."""
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
            who="rollout engines waiting for rewards",
            share=rewards,
            weight=rewards,
            remedy=lambda: (
                f"raise reward.num_processes (now {reward.num_processes}) or reward.num_workers "
                f"(now {reward.num_workers})"
            ),
        ),
        Bubble(
            who="rollout engines waiting for the environment",
            share=environment,
            weight=environment,
            remedy=lambda: (
                "make its calls faster"
                if config.schedule.max_staleness
                else "make its calls faster, or let schedule=async sample other groups meanwhile"
            ),
        ),
        Bubble(who="publication", share=publish, weight=publish, remedy=lambda: fewer),
        Bubble(who="the driver's own work", share=drive, weight=drive, remedy=lambda: fewer),
    ]


def _replayed(shares: Shares) -> Bubble:
    """Nothing is sampled: the learner waits for the disk."""
    reading = _of(shares, "driver", "generate")
    return Bubble(
        who="learner waiting for the recording",
        share=reading,
        weight=reading,
        remedy=lambda: "put rollout.replay.folder on a faster disk",
    )


def _only_sampled(shares: Shares, config: TrainConfig) -> Bubble:
    """Nothing is trained: engines idle where too few groups are in flight."""
    idle, ahead = _of(shares, "rollout", "idle"), config.schedule.max_staleness
    return Bubble(
        who="rollout engines idle",
        share=idle,
        weight=idle - _of(shares, "driver", "drive"),
        remedy=lambda: (
            f"raise schedule.max_staleness (now {ahead}): more groups are in flight"
            if ahead
            else "schedule=one_step_off keeps the groups of the next batch in flight"
        ),
    )


def _apart(shares: Shares, config: TrainConfig) -> list[Bubble]:
    """Engines and learner have devices of their own."""
    drive = _of(shares, "driver", "drive")
    elsewhere = _of(shares, "rollout", "wait_for_reward", "environment") + drive
    learner, engines = _of(shares, "learner", "idle"), _of(shares, "rollout", "idle")
    found = [
        Bubble(
            who="learner idle",
            share=learner,
            weight=learner - elsewhere,
            remedy=lambda: _for_learner(shares, config),
        ),
        Bubble(
            who="rollout engines idle",
            share=engines,
            weight=engines - drive,
            remedy=lambda: _for_engines(shares, config),
        ),
    ]
    if "critic" in shares and not config.cluster.critic.shared:
        critic = _of(shares, "critic", "idle")
        # It works only while the learner does: the rest of its idleness is the learner's.
        own = critic - learner
        remedy = "cluster.critic.placement=shared puts it on the learner's devices"
        found.append(Bubble(who="critic idle", share=critic, weight=own, remedy=lambda: remedy))
    return found


def _overlap(shares: Shares) -> float:
    """The shorter of sampling and learning: what the one would hide behind the other."""
    sampling = _of(shares, "driver", "generate")
    return min(sampling, _of(shares, "driver", "score", "learn", "follow"))


def _more_engines(config: TrainConfig) -> str:
    text = f"add rollout engines (rollout.num_engines, now {config.rollout.num_engines})"
    return text if config.cluster.rollout.num_gpus else f"{text}, if cores are free"


def _more_ranks(config: TrainConfig) -> str:
    text = f"add learner ranks (learner.num_ranks, now {config.learner.num_ranks})"
    return text if config.cluster.learner.num_gpus else f"{text}, if cores are free"


def _for_learner(shares: Shares, config: TrainConfig) -> str:
    schedule, more = config.schedule, _more_engines(config)
    if schedule.max_staleness == 0:
        if _overlap(shares) < WORTH:
            return more
        return f"schedule=one_step_off lets the engines sample meanwhile, or {more}"
    if _of(shares, "rollout", "idle") < SATURATED:
        return f"the engines never are: {more}"
    if schedule.order == "begun":
        return "schedule=async lets it train what is finished, whatever was begun before"
    return f"raise schedule.max_staleness (now {schedule.max_staleness}): the engines idle too"


def _for_engines(shares: Shares, config: TrainConfig) -> str:
    schedule, ranks = config.schedule, _more_ranks(config)
    sampling = _of(shares, "driver", "generate")
    tail = sampling - _of(shares, "rollout", "generate", "wait_for_reward", "environment")
    if schedule.max_staleness == 0:
        if tail >= WORTH and tail >= _of(shares, "rollout", "idle") / 2:
            return "schedule=async lets them go on while the slowest responses are finished"
        if _overlap(shares) < WORTH:
            return ranks
        return f"schedule=one_step_off lets them sample while the learner trains, or {ranks}"
    if _of(shares, "learner", "idle") < SATURATED:
        fewer = ", or take fewer engines" if config.rollout.num_engines > 1 else ""
        return f"the learner never is: {ranks}{fewer}"
    if schedule.order == "begun":
        return "schedule=async lets the learner train what is finished, so that new groups begin"
    return f"raise schedule.max_staleness (now {schedule.max_staleness})"


def _colocated(shares: Shares, config: TrainConfig) -> list[Bubble]:
    """Engines and learner take turns on the same devices: only one of them can be busy."""
    switch = _of(shares, "rollout", "switch") + _of(shares, "learner", "switch")
    waiting = _of(shares, "rollout", "wait_for_reward", "environment")
    engines = 1.0 - _of(shares, "rollout", "idle") - waiting
    learner = 1.0 - _of(shares, "learner", "idle")
    # A publication keeps both busy at the same time.
    both = min(_of(shares, role, "publish", "attest") for role in ("rollout", "learner"))
    idle = max(0.0, 1.0 - engines - learner + both)
    return [
        Bubble(
            who="shared devices idle",
            share=idle,
            weight=idle - waiting - _of(shares, "driver", "drive"),
            remedy=lambda: (
                "the slowest responses hold up all of them; a cluster with engines of their own "
                "and schedule=async does not wait, and a lower rollout.sampling.max_new_tokens "
                f"(now {config.rollout.sampling.max_new_tokens}) shortens the wait"
            ),
        ),
        Bubble(
            who="taking turns on the shared devices",
            share=switch,
            weight=switch,
            remedy=lambda: (
                f"raise trainer.prompts_per_step (now {config.trainer.prompts_per_step}): "
                "fewer, longer turns"
            ),
        ),
    ]
