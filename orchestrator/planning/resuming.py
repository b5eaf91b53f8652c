"""Check that a resumed run is still the same run: model, roles, algorithm and learning rate.

Reads the `config.yaml` that the run wrote. Runs in the driver, before the plan is printed; starts
nothing. Optimizer moments, a reference and adapted coefficients belong to the algorithm that made
them, and without these checks a forgotten override would change the run without a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from algorithms.algorithm import Algorithm
from conf.schema import TrainConfig
from workers.engines.zero.schedules import lr_factor

SHOWN = 4
ADAPTER_KEYS = ("name", "rank", "alpha", "target_modules")  # of what the weights are


def check_same_model(config: TrainConfig) -> None:
    """Raise ValueError where the run's folder belongs to another model, or to another adapter.

    Raises:
        ValueError: the message names the folder and both models; the folder is as it was.
    """
    run_dir = Path(config.output_dir).absolute() / config.run_name
    saved = run_dir / "config.yaml"
    if config.resume == "never" or not saved.exists():
        return
    before, now = OmegaConf.load(saved).model, OmegaConf.structured(config.model)
    was, wanted = (
        {
            "name": model.name,
            "path": Path(model.path or "").name,
            **{f"adapter.{key}": model.adapter[key] for key in ADAPTER_KEYS},
        }
        for model in (before, now)
    )
    if was != wanted:
        differing = [key for key in wanted if was[key] != wanted[key]]
        had = ", ".join(f"model.{key}={was[key]}" for key in differing)
        asked = ", ".join(str(wanted[key]) for key in differing)
        raise ValueError(
            f"{run_dir} is a run of {had}, not of {asked}: choose another run_name=, or that model="
        )


def check_same_roles(config: TrainConfig) -> None:
    """Raise ValueError where the run had other roles: engines or a recording, a learner or none.

    The ledger of a run of one kind has no state from which a run of the other kind could go on.

    Raises:
        ValueError: the message names the folder, the key and both values.
    """
    run_dir = Path(config.output_dir).absolute() / config.run_name
    saved = run_dir / "config.yaml"
    if config.resume == "never" or not saved.exists():
        return
    before, now = OmegaConf.load(saved), OmegaConf.structured(config)
    for key, absent in (("rollout.replay.folder", None), ("trainer.learns", True)):
        was, wanted = OmegaConf.select(before, key, default=absent), OmegaConf.select(now, key)
        if was != wanted:
            raise ValueError(
                f"{run_dir} is a run with {key}={was}, not {wanted}: resume it as it was, or choose"
                " another run_name="
            )


def check_same_algorithm(raw: DictConfig, config: TrainConfig) -> None:
    """Raise ValueError where the run had another algorithm, except under `resume=changed`.

    Raises:
        ValueError: the message names the file, the keys and both values.
    """
    saved = Path(config.output_dir).absolute() / config.run_name / "config.yaml"
    if config.resume != "auto" or not saved.exists():
        return
    before = _plain(OmegaConf.select(OmegaConf.load(saved), "algorithm"))
    now = _plain(raw.algorithm)
    changed = [
        f"{key}: {_shown(before, key)} -> {_shown(now, key)}"
        for key in sorted(before.keys() | now.keys())
        if _shown(before, key) != _shown(now, key)
    ]
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise ValueError(
            f"resume=auto with another algorithm than {saved}: {'; '.join(changed[:SHOWN])}{more}. "
            "Repeat that run's overrides, choose another run_name, or say resume=changed to go on "
            "with this one"
        )


def check_same_rate(config: TrainConfig, algorithm: Algorithm) -> None:
    """Raise ValueError where the learning rate would jump between two steps, as in a longer cosine.

    A schedule that falls to 0 ends with the run that it was made for: where `trainer.total_steps`
    is raised, the rate would be as high again as in the middle of the run. `resume=changed` accepts
    the jump.

    Raises:
        ValueError: the message names the step, and the rate before and after.
    """
    run_dir = Path(config.output_dir).absolute() / config.run_name
    saved = run_dir / "config.yaml"
    steps = [int(path.name[5:]) for path in run_dir.glob("checkpoints/step_??????")]
    if config.resume != "auto" or not config.trainer.learns or not (saved.exists() and steps):
        return
    before: Any = OmegaConf.load(saved)
    now: Any = OmegaConf.structured(config)
    step = max(steps)
    for role in ("learner", "critic") if algorithm.needs_critic else ("learner",):
        updates_before, updates_now = _num_updates(before, role), _num_updates(now, role)
        taken = _learning_steps(before, role, step) * updates_before
        was, wanted = (
            _rate(run, role, taken=taken, total=_learning_steps(run, role) * updates)
            for run, updates in ((before, updates_before), (now, updates_now))
        )
        if not math.isclose(was, wanted, rel_tol=1e-6):
            raise ValueError(
                f"resume=auto: {role}.optimizer would go on at a learning rate of {wanted:g} in "
                f"step {step + 1}, and the run was at {was:g} (its {role}.optimizer.schedule="
                f"{before[role].optimizer.schedule} over trainer.total_steps="
                f"{before.trainer.total_steps}; now {now[role].optimizer.schedule} over "
                f"{now.trainer.total_steps}). Repeat that run's values, begin a new run, or say "
                "resume=changed to accept the jump"
            )


def _num_updates(run: Any, role: str) -> int:
    own = run.trainer if role == "learner" else run.critic
    return int(own.updates_per_step * own.epochs_per_step)


def _learning_steps(run: Any, role: str, step: int | None = None) -> int:
    """Return the steps in which a role learns, of the whole run or up to `step`."""
    alone = run.critic.warmup_steps if role == "learner" else 0
    return max(0, int((run.trainer.total_steps if step is None else step) - alone))


def _rate(run: Any, role: str, *, taken: int, total: int) -> float:
    optimizer = run[role].optimizer
    factor = lr_factor(
        optimizer.schedule,
        steps_taken=taken,
        warmup_steps=optimizer.warmup_steps,
        total_steps=total,
    )
    return float(optimizer.lr) * factor


def _shown(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "absent"


def _plain(node: Any) -> dict[str, Any]:
    """Map the dotted key of every leaf to its value; an empty mapping is no leaf."""

    def walk(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    plain = OmegaConf.to_container(node, resolve=True) if node is not None else {}
    return dict(walk(plain, "algorithm."))
