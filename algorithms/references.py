"""Reference rules: the step at which the reference takes over the policy, and by how much.

Pure transitions (state, observation) -> (state, share of the policy). Runs in the driver, once
after every step. Copies no weights (the reference's workers do) and keeps no state: the driver
keeps the state and checkpoints it.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace

from algorithms.parts import Part
from algorithms.validation import check_fraction, check_positive


@dataclass(frozen=True, kw_only=True)
class ReferenceState:
    """State of a rule between steps, written into checkpoints.

    Worked example, three steps after the second refresh of `Refreshed(every_steps=10)`, token KL
    0.01:
        age_steps 3    average_kl 0.00271    moved True

    Attributes:
        age_steps: steps trained since the reference was the policy itself.
        average_kl: moving average of the token KL since then.
        moved: the reference is no longer the model that training started from.
    """

    age_steps: int = 0
    average_kl: float = 0.0
    moved: bool = False


class ReferenceRule(Part):
    """Rule by which the reference follows the policy, applied once after every step."""

    old_policy: bool = False  # True: it is the policy that starts each step, and no role runs
    frozen: bool = False  # True: it never moves

    @abstractmethod
    def update(self, state: ReferenceState, token_kl: float) -> tuple[ReferenceState, float]:
        """Return the state after a step and the policy's share s.

        The framework then sets reference <- (1 - s) reference + s policy.

        Args:
            state: before the step.
            token_kl: mean KL(pi_old || reference) over the step's trained tokens.
        """


@dataclass(frozen=True, kw_only=True)
class Frozen(ReferenceRule):
    """Reference that stays the model that training starts from."""

    frozen = True

    def update(self, state: ReferenceState, token_kl: float) -> tuple[ReferenceState, float]:
        """See :class:`ReferenceRule`."""
        del token_kl
        return replace(state, age_steps=state.age_steps + 1), 0.0


@dataclass(frozen=True, kw_only=True)
class Refreshed(ReferenceRule):
    """Reference that becomes the policy at times. RPG (2505.17508), section 3.

    Every `every_steps` steps (rollouts), or when the moving average of the token KL exceeds
    `kl_threshold`, whichever comes first. The paper gives neither K nor kappa; its released code
    refreshes with every rollout. With `every_steps=1` the reference is the policy that starts the
    step, so its log-probs are `old_logprobs` and no reference role runs.

    Attributes:
        every_steps: K, or None.
        kl_threshold: kappa, or None.
        decay: weight of the past in the moving average, which starts at 0.
    """

    every_steps: int | None = None
    kl_threshold: float | None = None
    decay: float = 0.9

    def __post_init__(self) -> None:
        if self.every_steps is None and self.kl_threshold is None:
            raise ValueError(
                "every_steps=None and kl_threshold=None never refresh the reference; give one of "
                "them, or choose algorithm/reference=frozen"
            )
        if self.every_steps is not None:
            check_positive("every_steps", self.every_steps)
        if self.kl_threshold is not None:
            check_positive("kl_threshold", self.kl_threshold)
        check_fraction("decay", self.decay)

    @property
    def old_policy(self) -> bool:  # type: ignore[override]
        """True where every step starts with a refreshed reference."""
        return self.every_steps == 1

    def update(self, state: ReferenceState, token_kl: float) -> tuple[ReferenceState, float]:
        """See :class:`ReferenceRule`."""
        average = self.decay * state.average_kl + (1.0 - self.decay) * token_kl
        age = state.age_steps + 1
        due = self.every_steps is not None and age >= self.every_steps
        far = self.kl_threshold is not None and average > self.kl_threshold
        if due or far:
            return ReferenceState(moved=True), 1.0
        return replace(state, age_steps=age, average_kl=average), 0.0


@dataclass(frozen=True, kw_only=True)
class MovingAverage(ReferenceRule):
    """Reference that is a moving average of the policy.

    reference <- decay reference + (1 - decay) policy after every step.

    Attributes:
        decay: of the average; 1 / (1 - decay) is its memory in steps. 0 would be the old policy.
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        check_fraction("decay", self.decay)
        if self.decay in (0, 1):
            other = "refreshed with every_steps=1" if self.decay == 0 else "frozen"
            raise ValueError(
                f"decay={self.decay} is no average; choose a value between 0 and 1, or "
                f"algorithm/reference={other}"
            )

    def update(self, state: ReferenceState, token_kl: float) -> tuple[ReferenceState, float]:
        """See :class:`ReferenceRule`."""
        del token_kl
        return replace(state, age_steps=state.age_steps + 1, moved=True), 1.0 - self.decay
