"""Learning-rate schedules by name: pure functions of the optimizer steps that were taken.

A skipped step (a gradient that is not finite) does not count, so warm-up is as long as stated.
Runs in every rank that trains, and in the driver, which validates settings. Changes no optimizer.
"""

import math

SCHEDULES = ("constant", "linear", "cosine")


def lr_factor(name: str, *, steps_taken: int, warmup_steps: int, total_steps: int | None) -> float:
    """Return the multiplier of the learning rate for the next step.

    Warm-up is linear and its first step already learns: (steps_taken + 1) / warmup_steps. Then
    `constant` stays at 1, `linear` and `cosine` fall to 0 at `total_steps`.
    """
    check_schedule(name, warmup_steps=warmup_steps, total_steps=total_steps)
    if steps_taken < warmup_steps:
        return (steps_taken + 1) / warmup_steps
    if name == "constant":
        return 1.0
    assert total_steps is not None
    done = min(1.0, (steps_taken - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0 - done if name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def check_schedule(name: str, *, warmup_steps: int, total_steps: int | None) -> None:
    """Raise ValueError for an unknown name or a length that the schedule cannot have."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r}: choose one of {', '.join(SCHEDULES)}")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps={warmup_steps}: give 0 or more optimizer steps")
    if name != "constant" and total_steps is None:
        raise ValueError(f"schedule {name!r} falls to 0 at total_steps: state total_steps")
    if total_steps is not None and total_steps < max(1, warmup_steps):
        raise ValueError(
            f"total_steps={total_steps} is below warmup_steps={warmup_steps} or 1: "
            "lengthen the run or shorten the warm-up"
        )
