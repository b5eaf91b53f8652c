"""Trainer: the length of a run, the size of a step, and what happens every so many steps.

Read by the driver. Chooses no schedule, see `schedule.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from conf.schema.checks import choose, require

EXPORT_DTYPES = ("source", "float32", "bfloat16", "float16")


@dataclass(kw_only=True)
class TrainerConfig:
    """Length of a run, size of a step, and intervals of evaluation and checkpoints."""

    learns: bool = True  # False: sample, score and record with the model as it is, no learner
    total_steps: int = 25
    prompts_per_step: int = 16  # groups per step
    updates_per_step: int = 1  # of a full batch, in each pass; fewer where filters leave less
    epochs_per_step: int = 1  # passes over the rollout batch; pi_old stays the one that began it
    eval_every: int = 0  # steps; 0: only before the first and after the last step
    checkpoint_every: int = 10  # steps; 0: only at the end
    keep_checkpoints: int = 2  # the newest ones; 0 keeps all
    keep_best: int = 1  # and those with the best `best_metric`; 0 keeps none for it
    best_metric: str = "reward/mean"  # of the checkpoint's own step, as in metrics.jsonl
    best_is: str = "max"  # or min
    stop_if_stuck_steps: int = 0  # steps in a row with nothing to learn from; 0: goes on
    export: bool = True  # write the final policy as a Hugging Face folder
    export_dtype: str = "source"  # of its weights: as in the policy's folder, or one for all

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        for name in ("total_steps", "prompts_per_step", "updates_per_step", "epochs_per_step"):
            value = getattr(self, name)
            require(value >= 1, f"trainer.{name}", value, "must be at least 1")
        counts = ("eval_every", "checkpoint_every", "keep_checkpoints", "keep_best")
        for name in (*counts, "stop_if_stuck_steps"):
            value = getattr(self, name)
            require(value >= 0, f"trainer.{name}", value, "must not be negative")
        choose("trainer.best_is", self.best_is, ("max", "min"))
        choose("trainer.export_dtype", self.export_dtype, EXPORT_DTYPES)
        if self.keep_best and self.checkpoint_every and self.best_metric.startswith("eval/"):
            require(
                self.eval_every > 0 and self.checkpoint_every % self.eval_every == 0,
                "trainer.best_metric",
                self.best_metric,
                "is measured only when the held-out prompts are scored; set trainer.eval_every to "
                f"a divisor of trainer.checkpoint_every={self.checkpoint_every}",
            )
        require(
            self.prompts_per_step % self.updates_per_step == 0,
            "trainer.updates_per_step",
            self.updates_per_step,
            f"must divide trainer.prompts_per_step={self.prompts_per_step}, "
            "so that groups stay whole and every update is the same size",
        )

    @property
    def num_updates(self) -> int:
        """Optimizer steps of a step, over all passes."""
        return self.updates_per_step * self.epochs_per_step

    @property
    def groups_per_update(self) -> int:
        """Groups that one optimizer step is made for."""
        return self.prompts_per_step // self.updates_per_step
