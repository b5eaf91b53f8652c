"""Adapt an algorithm to training: update its coefficients, and move its reference.

The rules are pure parts of the algorithm; their state between steps is held here, in the driver,
and nowhere else. Measured metrics in; the next step's coefficients, and a reference that has moved
or not, out. A step calls `follow` once, after publication. Nothing is measured here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from algorithms.algorithm import Algorithm
from algorithms.references import ReferenceState
from orchestrator.cluster.policy_group import Policy


class Adaptation:
    """State of an algorithm's controllers and of its reference rule.

    Args:
        algorithm: holds the rules.
        learner: the policy that a reference follows.
        reference: the role that computes `ref_logprobs`; None if no such role runs.

    Attributes:
        coefficients: dotted path -> value in the next step.
    """

    def __init__(self, algorithm: Algorithm, *, learner: Policy, reference: Policy | None) -> None:
        self._algorithm, self._learner, self._reference = algorithm, learner, reference
        self._state = ReferenceState()
        self.coefficients = algorithm.coefficients

    def follow(self, measured: Mapping[str, float], num_samples: int) -> dict[str, float]:
        """Move the reference and update the coefficients by a step's metrics; return metrics of it.

        Nothing happens in a step in which the policy waits for a critic to warm up.

        Args:
            measured: metrics of the step's training and credit.
            num_samples: responses that the step trained.

        Raises:
            ValueError: a controller's metric is not among them.
        """
        if "learner/steps" not in measured:
            return {}
        return {
            **self._move_reference(measured),
            **self._update_coefficients(measured, num_samples),
        }

    def _move_reference(self, measured: Mapping[str, float]) -> dict[str, float]:
        if self._reference is None:
            return {}
        rule, before = self._algorithm.reference, self._state
        token_kl = measured.get("reference/kl", math.nan)
        if not math.isfinite(token_kl):  # a step without a finite number changes nothing
            token_kl = before.average_kl
        self._state, share = rule.update(before, token_kl)
        if share:
            self._reference.follow(self._learner, share=share)
        return {
            "reference/age_steps": float(before.age_steps),
            "reference/kl_average": self._state.average_kl,
            "reference/refreshed": share,
        }

    def _update_coefficients(
        self, measured: Mapping[str, float], num_samples: int
    ) -> dict[str, float]:
        trained_with = dict(self.coefficients)
        for controller in self._algorithm.controllers.values():
            if controller.metric not in measured:
                raise ValueError(
                    f"{controller!r} reads {controller.metric}, which the step did not measure; "
                    f"name one of {', '.join(sorted(measured))}"
                )
            observed, value = measured[controller.metric], trained_with[controller.coefficient]
            if math.isfinite(observed):
                self.coefficients[controller.coefficient] = controller.update(
                    value, observed, num_samples
                )
        return {
            f"coefficient/{name}": trained_with[controller.coefficient]
            for name, controller in self._algorithm.controllers.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return plain data for a checkpoint; the reference's weights are written by its ranks."""
        return {"coefficients": dict(self.coefficients), "reference": asdict(self._state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint; coefficients that are not in it stay."""
        kept = state["coefficients"]
        self.coefficients = {path: kept.get(path, own) for path, own in self.coefficients.items()}
        self._state = ReferenceState(**state["reference"])
