"""One small batch through an algorithm before a run starts: later faults raise here.

Finds the first fault that a run would meet (a part that returns the wrong shape, an advantage that
is not finite) and the names of the metrics that the algorithm reports. Runs in the driver, as part
of the plan. Not a proof of anything; the checks of this package are.
"""

import difflib

import torch

from algorithms.algorithm import Algorithm
from algorithms.conformance.batches import credit_inputs, metadata_of, random_inputs


def rehearse(algorithm: Algorithm) -> frozenset[str]:
    """Compute credit, loss and weights of a random batch; return the names of all its metrics.

    Raises:
        ValueError: what a part's output or a controller's metric lacks.
    """
    inputs = random_inputs(dtype=torch.float32, reward_parts=algorithm.loss_reward_parts)
    credit = algorithm.credit(credit_inputs(reward_parts=algorithm.advantage.reward_parts))
    loss = algorithm.token_loss(inputs)
    num_sequences = 0 if inputs.rewards is None else len(inputs.rewards)
    weights = algorithm.sequence_weights(metadata_of(inputs, num_sequences))
    missing = sorted(set(loss.terms) - set(weights))
    if missing:
        raise ValueError(
            f"no weights for the loss term {', '.join(missing)}; add them to `weights`"
        )
    both = sorted(set(credit.metrics) & set(loss.metrics))
    if both:
        raise ValueError(
            f"{type(algorithm.advantage).__name__} and a part of the loss both measure "
            f"{both[0]!r}, and one would overwrite the other; rename the metric in one of them"
        )
    measured = frozenset(credit.metrics) | frozenset(loss.metrics)
    for key, controller in algorithm.controllers.items():
        if controller.metric not in measured:
            near = difflib.get_close_matches(controller.metric, sorted(measured), n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"controllers.{key}.metric={controller.metric!r} is not measured by this algorithm"
                f"{hint} It has {', '.join(sorted(measured))}"
            )
    return measured
