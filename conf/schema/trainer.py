"""How long to train, how large a step is, and what happens every so many steps."""

from __future__ import annotations

from dataclasses import dataclass

from conf.schema.checks import require


@dataclass(kw_only=True)
class TrainerConfig:
    """How long to train, how large a step is, and what happens every so many steps."""

    total_steps: int = 25
    prompts_per_step: int = 16  # groups per step
    updates_per_step: int = 1  # optimizer steps that share one rollout batch, in each pass over it
    epochs_per_step: int = 1  # passes over the rollout batch; pi_old stays the one that began it
    eval_every: int = 0  # steps; 0: only before the first and after the last step
    checkpoint_every: int = 10  # steps; 0: only at the end
    keep_checkpoints: int = 2  # the newest ones; 0 keeps all
    export: bool = True  # write the final policy as a Hugging Face folder

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        for name in ("total_steps", "prompts_per_step", "updates_per_step", "epochs_per_step"):
            value = getattr(self, name)
            require(value >= 1, f"trainer.{name}", value, "must be at least 1")
        for name in ("eval_every", "checkpoint_every", "keep_checkpoints"):
            value = getattr(self, name)
            require(value >= 0, f"trainer.{name}", value, "must not be negative")
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
