"""Watch for a run that has nothing to learn from, and name the likely cause.

The driver's loop ends a run by it (`trainer.stop_if_stuck_steps`), and the last page has its
verdict. Lines in the middle of a run come from `telemetry/alerts`. Metrics are read, none is
computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from conf.schema import TrainConfig
from orchestrator.telemetry.counting import counted

LAST_STEPS = 3  # in a row: one step may be chance
RIGHT = 1.0  # a reward that needs no learning


class LearningWatch:
    """Count of the steps in a row that had nothing to learn from.

    Attributes:
        num_stuck: such steps up to the last one.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.num_stuck = 0

    def ending(self, metrics: Mapping[str, float]) -> str | None:
        """Count a step; return the reason to end the run after it, or None.

        The reason is `trainer.stop_if_stuck_steps` such steps in a row, with the cause in the last.
        """
        why = cause(metrics, self._config)
        self.num_stuck = 0 if why is None else self.num_stuck + 1
        limit = self._config.trainer.stop_if_stuck_steps
        if why is None or limit == 0 or self.num_stuck < limit:
            return None
        return (
            f"{counted(self.num_stuck, 'step')} in a row had nothing to learn from "
            f"(trainer.stop_if_stuck_steps={limit}): {why}"
        )


def cause(metrics: Mapping[str, float], config: TrainConfig) -> str | None:
    """Return the likely cause why a step had nothing to learn from; None if it had something.

    Rewards that are all right need no learning, and are no cause.
    """
    reward = metrics.get("reward/mean", 0.0)
    if reward >= RIGHT:
        return None
    if metrics.get("reward/std") == 0.0:
        if metrics.get("rollout/truncated_frac") == 1.0:
            limit = config.rollout.sampling.max_new_tokens
            return (
                f"every response is cut off at rollout.sampling.max_new_tokens={limit} and earns "
                f"{reward:g}; raise the limit, or give responses an end (rollout.sampling.stop, "
                "chat messages)"
            )
        return (
            f"every sample earns {reward:g}; look at responses (eval/, ballast data inspect): the "
            "task is too hard, or not read by the reward as it is written"
        )
    siblings = config.rollout.samples_per_prompt > 1
    if siblings and metrics.get("credit/informative_groups_frac") == 0.0:
        return (
            "the siblings of every prompt earn the same; raise rollout.samples_per_prompt or the "
            "temperature, or choose prompts that are sometimes solved"
        )
    if metrics.get("credit/zero_frac") == 1.0:
        return "every advantage is 0; see credit/* in metrics.jsonl"
    if metrics.get("learner/grad_norm") == 0.0:
        return (
            "the gradient is 0: a correction, gate or clip cuts every token; see mismatch/* and "
            "policy/* in metrics.jsonl"
        )
    return None


def verdict(steps: Sequence[Mapping[str, float]], config: TrainConfig) -> str | None:
    """Return the verdict on a whole run for its last page; None where it had something to learn."""
    causes = [cause(step, config) for step in steps]
    if causes and None not in causes:
        return f"in none of {counted(len(steps), 'step')} was there anything to learn: {causes[-1]}"
    last = causes[-LAST_STEPS:]
    if len(last) == LAST_STEPS and None not in last:
        return f"the last steps had nothing to learn from: {last[-1]}"
    return None
